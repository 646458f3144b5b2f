"""`train` and `resume`: starting a run, continuing one, and what may have changed in between."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchorite.anchors import AnchorSet
from anchorite.choices import Change
from anchorite.data import DatasetIndex
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError
from anchorite.inspect import look_over, require_boxes, take_val
from anchorite.inspect.resplit import require_no_val
from anchorite.model import default_anchors
from anchorite.train.checkpoint import Progress, has_checkpoint, leftovers, load_latest
from anchorite.train.events import DataChecked, Listener, RunFinished, StoreProgress, ignore
from anchorite.train.loop import Run
from anchorite.train.pretrained import read_hf_backbone, read_pretrained, refuse_early, reread_start
from anchorite.train.recipe import Recipe, by_dotted_name
from anchorite.train.run_folder import RunFolder, left_out_facts, val_images, with_val
from anchorite.train.setup import derived_settings, prepare

_NUM_SHOWN = 5
# Fields that do not change what a run computes.
_FREE = frozenset(
    {"name", "workers", "worker_timeout_s", "rank_timeout_s", "store", "checkpoint_minutes", "background_ok"}
)
# The tensors of a checkpoint do not fit with others of these.
_FIXED = frozenset({"model", "backbone", "optimizer.name"})


def train(
    recipe: Recipe,
    dataset: DatasetIndex,
    out: Path,
    listener: Listener = ignore,
    notes: Sequence[str] = (),
    world: World = SINGLE_PROCESS,
) -> RunFinished:
    """Train a detector in a new folder `out`; events go to the listener. notes: sentences to report at the start.

    world: the processes that train together, from `anchorite.distributed.init_process_group`; each calls this with the
    same arguments; rank 0 writes and sends events. With `recipe.val_share`, images of train become a split val, which
    run.json names. Leaves best.safetensors (by mAP of the val split), last.safetensors,
    metrics.csv, recipe.yaml, summary.json and checkpoints. Raises InputError (exit 2), StorageError (4) or
    DivergedError (3).
    """
    listener = listener if world.is_main else ignore
    recipe, start = read_pretrained(recipe)
    backbone = read_hf_backbone(recipe, start)
    refuse_early(recipe.model, recipe.optimizer.freeze)  # before images may be decoded
    dataset, val_split = _with_val(recipe, dataset, listener, world)
    opened = dataset
    checks = _checked(recipe, dataset, listener, world)
    prepared = prepare(recipe, dataset, listener=listener, start=start, world=world, backbone=backbone)
    prepared = replace(prepared, decisions=(*notes, *prepared.decisions))
    dataset, anchors = prepared.dataset, prepared.train_state.detector.anchors
    facts = {
        "data": str(dataset.root.resolve()),
        "format": dataset.format,
        "skip_bad": dataset.skip_bad,
        "allow_outside": dataset.allow_outside,
        "anchors": anchors.to_rows(),
        "left_out": left_out_facts(opened, dataset),
        "val_split": val_split,
        "checks": checks,
        "start": start and {"weights": start.path, "sha256": start.sha256, "kept": prepared.kept},
        "notes": list(notes),
        "backbone": backbone and {"config": backbone.config.model_dump(mode="json"), "sha256": backbone.sha256},
        "derived": derived_settings(recipe, prepared),
        **_comparable_facts(recipe, dataset, world.world_size),
    }
    del start, backbone  # as large as the network
    splits = {split: one["fingerprint"] for split, one in facts["splits"].items()}
    everyone = world.all_gather([splits, facts["class_names"]])
    if different := [str(rank) for rank, of_rank in enumerate(everyone) if of_rank != everyone[0]]:
        raise InputError(
            f"{facts['data']}: ranks {', '.join(different)} have read other images or labels there than rank 0; give "
            "all machines the same dataset"
        )
    with prepared.loader:
        if world.is_main:
            RunFolder.create(out, recipe, facts)
        world.barrier()
        folder = RunFolder(out)
        with folder.held() if world.is_main else nullcontext():
            return Run(recipe, folder, prepared, listener).run(Progress())


def resume(
    out: Path,
    dataset: DatasetIndex,
    listener: Listener = ignore,
    allow: Collection[Change] = (),
    world: World = SINGLE_PROCESS,
) -> RunFinished:
    """Continue the run in `out` from its newest valid checkpoint, bit for bit as if it had never stopped.

    A run that was stopped before there was a checkpoint starts over. allow: which changes since the start are accepted;
    ranks: as in `train`; all must see the folder. Raises InputError when the folder is no run, another process trains
    in it, or data or recipe have changed.
    """
    listener = listener if world.is_main else ignore
    folder = RunFolder.open(out)
    recipe, facts = folder.read_recipe(), folder.read_facts()
    dataset = folder.with_val(dataset)
    # Which images of a data set with bad ones are trained on is known only when they have been decoded.
    changes = _refuse_changes(facts, recipe, dataset, {*allow, "data"} if dataset.skip_bad else allow, world.world_size)
    with folder.held() if world.is_main else nullcontext():
        anchors = AnchorSet.from_rows(facts["anchors"], default_anchors(recipe.model).strides)
        starts_over = len(folder.read_rows()) <= 1 and not has_checkpoint(folder.checkpoints)
        start, backbone = reread_start(recipe, facts, starts_over)
        _checked(recipe, dataset, listener, world)
        prepared = prepare(recipe, dataset, anchors, listener, start, world, backbone)
        with prepared.loader:
            if dataset.skip_bad:
                changes = _refuse_changes(facts, recipe, prepared.dataset, allow, world.world_size)
            progress, notes = Progress(), ["stopped before its first checkpoint: starts over"]
            if not starts_over:
                progress, notes = load_latest(folder.checkpoints, prepared.train_state, world)
                notes.append(f"resumed after {progress.describe(len(prepared.loader))} of {recipe.epochs}")
            for stray in (*leftovers(folder.checkpoints), *out.glob(".*.tmp")) if world.is_main else ():
                stray.unlink(missing_ok=True)
                notes.append(f"{stray}: left by a crash, removed")
            notes += facts.get("notes", ())
            if facts.get("start") and start is None:
                notes.append(f"started from {facts['start']['kept']}")
            prepared = replace(prepared, decisions=(*changes, *notes, *prepared.decisions))
            return Run(recipe, folder, prepared, listener).run(progress)


def _with_val(
    recipe: Recipe, dataset: DatasetIndex, listener: Listener, world: World
) -> tuple[DatasetIndex, dict[str, Any] | None]:
    """The dataset with the split val that the recipe asks for, and what run.json says of it; rank 0 chooses."""
    if not recipe.val_share:
        return dataset, None
    require_no_val(dataset)
    require_boxes(dataset)  # before the images are decoded, which takes long

    def tell(num_done: int, num_images: int) -> None:
        listener(StoreProgress("train", num_done, num_images))

    images: list[str] = []
    if world.is_main:
        images = val_images(take_val(dataset, recipe.val_share, recipe.seed, tell))
    images = world.broadcast(images)
    return with_val(dataset, images), {"share": recipe.val_share, "seed": recipe.seed, "images": images}


def _checked(recipe: Recipe, dataset: DatasetIndex, listener: Listener, world: World) -> dict[str, Any] | None:
    """Tell the listener what there is to say of the dataset, on rank 0, and return it for run.json."""
    overview = look_over(dataset, recipe.background_ok) if world.is_main else None
    if overview is not None:
        listener(DataChecked(dataset, overview))
    return None if overview is None else overview.to_json()


def _comparable_facts(recipe: Recipe, dataset: DatasetIndex, num_ranks: int) -> dict[str, Any]:
    """The entries of run.json that `_refuse_changes` compares with when the run is resumed."""
    return {
        "class_names": list(dataset.class_names),
        "splits": {
            split: {"images": len(records), "boxes": records.num_boxes(), "fingerprint": records.fingerprint()}
            for split, records in dataset.splits.items()
        },
        "recipe": recipe.model_dump(mode="json"),
        "world_size": num_ranks,
    }


def _refuse_changes(
    facts: Mapping[str, Any], recipe: Recipe, dataset: DatasetIndex, allowed: Collection[Change], num_ranks: int
) -> list[str]:
    """A line on each change that was allowed; InputError, with every difference, for one that was not.

    Other classes, another model or kind of optimizer are never allowed. Facts that an older run did not record are not
    compared.
    """
    now = _comparable_facts(recipe, dataset, num_ranks)
    old = {**now, **facts}
    fixed = []
    if old["class_names"] != now["class_names"]:
        fixed.append(f"class_names: the run has {old['class_names']}, here it is {now['class_names']}")
    # A field that the run did not have yet had its present default.
    fields = by_dotted_name(Recipe().model_dump(mode="json")) | by_dotted_name(old["recipe"])
    changed = {
        name: f"recipe.yaml: {name} was {fields.get(name)}, now it is {value}"
        for name, value in by_dotted_name(now["recipe"]).items()
        if fields.get(name) != value and name not in _FREE
    }
    fixed += [line for name, line in changed.items() if name in _FIXED]
    if fixed:
        shown = "\n".join(fixed)
        raise InputError(f"the run cannot be resumed with these changes:\n{shown}\nundo them, or start a new run")
    found: dict[Change, list[str]] = {"recipe": [*changed.values()], "data": [], "ranks": []}
    for split in dict.fromkeys((*old["splits"], *now["splits"])):
        pair = (old["splits"].get(split), now["splits"].get(split))
        then, here = ("none" if one is None else f"{one['images']} images, {one['boxes']} boxes" for one in pair)
        if pair[0] != pair[1]:
            said = f"{then} then, {here} now" if then != here else f"other labels or names ({then})"
            found["data"].append(f"data: {split}: {said}")
    if old["world_size"] != num_ranks:
        # The same batches in other parts: equal but for rounding, unless each part has statistics of its own.
        own = "batch normalisation is over parts of another size"
        effect = "sums round otherwise" if recipe.sync_batch_norm else own
        found["ranks"].append(f"ranks: {old['world_size']} then, {num_ranks} now: {effect}")
    refused = [kind for kind, lines in found.items() if lines and kind not in allowed]
    if refused:
        lines = [line for kind in refused for line in found[kind]]
        if len(lines) > _NUM_SHOWN:
            lines[_NUM_SHOWN:] = [f"and {len(lines) - _NUM_SHOWN} more"]
        shown = "\n".join(lines)
        flags = " ".join(f"--allow {kind}" for kind in refused)
        raise InputError(
            f"what the run was started with has changed:\n{shown}\nundo the change, start a new run, or accept the "
            f"change: {flags}"
        )
    return [f"allowed: {line}" for lines in found.values() for line in lines]
