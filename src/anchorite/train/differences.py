"""What has changed since a run was started: data and recipe as they are now against what the run noted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from anchorite.data import DatasetIndex
from anchorite.errors import InputError
from anchorite.train.recipe import Recipe

Change = Literal["data", "recipe", "ranks"]
CHANGES: tuple[Change, ...] = get_args(Change)

_NUM_SHOWN = 5
# Fields that change how a run goes on, not what it computes.
_FREE = frozenset({"name", "workers", "worker_timeout_s", "rank_timeout_s", "store", "checkpoint_minutes"})
# Without these the tensors of a checkpoint have no place.
_FIXED = frozenset({"model", "backbone", "optimizer.name"})


def noted_facts(recipe: Recipe, dataset: DatasetIndex, num_ranks: int = 1) -> dict[str, Any]:
    """What a run notes when it starts, for `refuse_changes` to compare with."""
    return {
        "class_names": list(dataset.class_names),
        "splits": {
            split: {
                "images": len(records),
                "boxes": records.num_boxes(),
                "fingerprint": records.fingerprint(),
            }
            for split, records in dataset.splits.items()
        },
        "recipe": recipe.model_dump(mode="json"),
        "world_size": num_ranks,
    }


def refuse_changes(
    facts: Mapping[str, Any],
    recipe: Recipe,
    dataset: DatasetIndex,
    allowed: Collection[Change] = (),
    num_ranks: int = 1,
) -> list[str]:
    """A line on each change that was allowed; InputError, with every difference, for one that was not.

    Other classes, another model or kind of optimizer are never allowed. Facts of a run that noted less are compared as
    far as they go.
    """
    now = noted_facts(recipe, dataset, num_ranks)
    classes = facts.get("class_names", now["class_names"])
    fixed = []
    if classes != now["class_names"]:
        fixed.append(f"class_names: the run has {classes}, here it is {now['class_names']}")
    # A field that the run did not know yet was what is its default now.
    then = dict(_flat(Recipe().model_dump(mode="json")) + _flat(facts.get("recipe", now["recipe"])))
    changed = [
        f"recipe.yaml: {name} was {then.get(name)}, now it is {value}"
        for name, value in _flat(now["recipe"])
        if then.get(name) != value and name not in _FREE
    ]
    fixed += [line for line in changed if line.split()[1] in _FIXED]
    if fixed:
        lines = "\n".join(fixed)
        raise InputError(f"the run cannot go on like this:\n{lines}\nput back what it was, or start a new run")
    found: dict[Change, list[str]] = {
        "recipe": changed,
        "data": _data_changes(facts, now),
        "ranks": _rank_changes(facts.get("world_size", num_ranks), num_ranks, recipe.sync_batch_norm),
    }
    refused = [kind for kind, lines in found.items() if lines and kind not in allowed]
    if refused:
        shown = "\n".join(_shortened([line for kind in refused for line in found[kind]]))
        flags = " ".join(f"--allow {kind}" for kind in refused)
        raise InputError(
            f"what the run was started with has changed:\n{shown}\nput it back, start a new run, or go on with the "
            f"change: {flags}"
        )
    return [f"allowed: {line}" for lines in found.values() for line in lines]


def _rank_changes(then: int, now: int, shared_statistics: bool) -> list[str]:
    """The same batches in other parts: equal but for rounding, unless each part is normalised by its own statistics."""
    if then == now:
        return []
    effect = "sums round otherwise" if shared_statistics else "batch normalisation is over parts of another size"
    return [f"ranks: {then} then, {now} now: {effect}"]


def _data_changes(facts: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    then, here = facts.get("splits", now["splits"]), now["splits"]
    lines = []
    for split in dict.fromkeys((*then, *here)):
        before, after = then.get(split), here.get(split)
        if before == after:
            continue
        was, is_now = (
            "none" if one is None else f"{one['images']} images, {one['boxes']} boxes" for one in (before, after)
        )
        same = was == is_now
        lines.append(f"data: {split}: " + (f"other labels or names ({was})" if same else f"{was} then, {is_now} now"))
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _NUM_SHOWN
    return lines if more <= 0 else [*lines[:_NUM_SHOWN], f"and {more} more"]
