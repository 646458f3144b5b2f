"""`train`, `resume` and `extend`: starting a run, going on with one, and training one that has ended for longer."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, get_args

from anchorite.anchors import AnchorSet
from anchorite.choices import Change
from anchorite.data import DatasetIndex
from anchorite.data.host_loader import end_unguarded_worker
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError, StorageError
from anchorite.files import StrPath
from anchorite.inspect import look_over, require_boxes, take_val
from anchorite.inspect.resplit import require_no_val
from anchorite.keywords import checks_keywords
from anchorite.model import default_anchors
from anchorite.reading import shorten
from anchorite.recipe_names import other_names
from anchorite.train.checkpoint import Progress, found_checkpoints, has_checkpoint, leftovers, load_latest
from anchorite.train.events import DataChecked, Listener, RunFinished, StoreProgress, ignore
from anchorite.train.loop import Run
from anchorite.train.memory import with_fitting_batch
from anchorite.train.pretrained import read_hf_backbone, read_pretrained, refuse_early, reread_start
from anchorite.train.recipe import MAX_SEED, Recipe, by_dotted_name, field_names, with_settings
from anchorite.train.run_folder import RunFolder, left_out_facts, val_images, with_val
from anchorite.train.setup import Prepared, derived_settings, prepare

_NUM_SHOWN = 5
# Fields that do not change what a run computes.
_FREE = frozenset(
    {"name", "workers", "worker_timeout_s", "rank_timeout_s", "store", "checkpoint_minutes", "background_ok"}
)
# The tensors of a checkpoint do not fit with others of these.
_FIXED = frozenset({"model", "backbone", "optimizer.name"})


def _field(name: str) -> str:
    """That a keyword is a field of the recipe, if it is."""
    other = other_names().get(name)
    fields = [other.field] if other and other.field else []
    fields += [field for field in field_names() if field.rpartition(".")[2] == name]
    return f'; it is a field of the recipe: load_recipe(NAME, {{"{fields[0]}": VALUE}})' if fields else ""


@checks_keywords(_field)
def train(
    recipe: Recipe,
    dataset: DatasetIndex,
    out: StrPath,
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
    end_unguarded_worker()
    if not isinstance(recipe, Recipe):
        raise InputError(f"train: recipe is what load_recipe returns; got {shorten(recipe)}")
    _refuse_unopened(dataset)
    _refuse_other_reading(recipe, dataset)
    listener = listener if world.is_main else ignore
    recipe, start = read_pretrained(recipe)
    backbone = read_hf_backbone(recipe, start)
    refuse_early(recipe.model, recipe.optimizer.freeze)  # before images may be decoded
    dataset, val_split = _with_val(recipe, dataset, listener, world)
    checks = _checked(recipe, dataset, listener, world)
    recipe, told = with_fitting_batch(recipe, dataset, world, backbone)
    prepared = prepare(recipe, dataset, listener=listener, start=start, world=world, backbone=backbone)
    prepared = replace(prepared, decisions=(*told, *prepared.decisions))
    begun = {
        "val_split": val_split,
        "checks": checks,
        "start": start and {"weights": start.path, "sha256": start.sha256, "kept": prepared.kept},
        "backbone": backbone and {"config": backbone.config.model_dump(mode="json"), "sha256": backbone.sha256},
    }
    del start, backbone  # as large as the network
    return _begin(out, recipe, dataset, prepared, notes, begun, listener)


@checks_keywords(_field)
def extend(
    run: StrPath,
    dataset: DatasetIndex,
    epochs: int,
    out: StrPath,
    listener: Listener = ignore,
    allow: Collection[Change] = (),
    world: World = SINGLE_PROCESS,
) -> RunFinished:
    """Train the run in the folder `run`, which has ended, up to `epochs` in all, as a new run in the folder `out`.

    Weights, EMA and optimizer state are those of its newest valid checkpoint; for the recipe see `extended_recipe`.
    run.json of the new run names the one that it `continues`. allow and ranks: as in `resume`. Raises what
    `extended_recipe`, `resume` and `train` raise.
    """
    end_unguarded_worker()
    _refuse_unopened(dataset)
    allow = _changes(allow)
    listener = listener if world.is_main else ignore
    ended = RunFolder.open(run)
    facts, then, dataset = ended.read_facts(), ended.read_recipe(), ended.with_val(dataset)
    recipe, continues = extended_recipe(ended, epochs)
    then = then.model_copy(update={"epochs": facts.get("recipe", {}).get("epochs", then.epochs)})  # the others may not
    changes = _refuse_changes(facts, then, dataset, {*allow, "data"} if dataset.skip_bad else allow, world.world_size)
    _, backbone = reread_start(recipe, facts, starts_over=False)
    anchors = AnchorSet.from_rows(facts["anchors"], default_anchors(recipe.model).strides)
    checks = _checked(recipe, dataset, listener, world)
    prepared = prepare(recipe, dataset, anchors, listener, None, world, backbone)
    if dataset.skip_bad:
        changes = _refuse_changes(facts, then, prepared.dataset, allow, world.world_size)
    _, told = load_latest(ended.checkpoints, prepared.train_state, world)
    rate = recipe.optimizer.lr
    note = (
        f"continues {ended.path} after epoch {continues['epochs']}, with {recipe.epochs} more, to {epochs} in all; a "
        f"new schedule, from lr {rate:g} to {rate * recipe.optimizer.lr_final:g}, and seed {recipe.seed}"
    )
    begun = {name: facts.get(name) for name in ("val_split", "start", "backbone")}
    begun |= {"checks": checks, "continues": continues}
    return _begin(out, recipe, dataset, prepared, (note, *changes, *told), begun, listener)


def extended_recipe(ended: RunFolder, epochs: int) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with which a run that has ended is trained up to `epochs` in all, and what run.json says of that run.

    It is the run's own but for the epochs, those that remain, over which the schedule is a new one; the seed, the next
    one, because the samples of the first epochs would come again; and the rate of the biases, which are trained by now,
    and so warm up from 0 as the rest does. Raises InputError when the run has not ended or has so many epochs already,
    StorageError when no checkpoint is valid.
    """
    named = shlex.quote(str(ended.path))
    if not isinstance(epochs, int):
        raise InputError(f"epochs {shorten(epochs)}: give a whole number")
    if not ended.summary.is_file():
        raise InputError(
            f"{ended.path}: has not ended, and more epochs are for a run that has; go on with it first: "
            f"anchorite train --resume {named}"
        )
    newest = next((one for one in found_checkpoints(ended.checkpoints) if one.fault is None), None)
    if newest is None or newest.progress is None:
        raise StorageError(
            f"{ended.path}: has no valid checkpoint to go on from; start a new run from its weights: "
            f"anchorite train DATA --weights {shlex.quote(str(ended.last))}"
        )
    done = newest.progress.epoch + (ended.read_facts().get("continues") or {}).get("epochs", 0)
    if epochs <= done:
        raise InputError(f"epochs {epochs}: {ended.path} has trained {done} already; give a number above {done}")
    recipe = ended.read_recipe()
    settings = {"epochs": epochs - done, "seed": (recipe.seed + 1) % MAX_SEED, "optimizer.warmup_bias_lr": 0.0}
    with newest.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return with_settings(recipe, settings), {"run": str(ended.path.resolve()), "epochs": done, "sha256": digest}


def _changes(allow: Collection[Change]) -> Collection[Change]:
    """What may have changed; a single word stands for itself. InputError for any other word."""
    changes: Collection[Any] = (allow,) if isinstance(allow, str) else tuple(allow)
    for one in changes:
        if one not in get_args(Change):
            raise InputError(f"allow {shorten(one)}: no such change; there are {', '.join(get_args(Change))}")
    return changes


def _refuse_unopened(dataset: object) -> None:
    if not isinstance(dataset, DatasetIndex):
        raise InputError(f"dataset is what open_dataset returns; got {shorten(dataset)}")


def _refuse_other_reading(recipe: Recipe, dataset: DatasetIndex) -> None:
    """InputError where the dataset was opened in another way than the recipe says."""
    missing = [name for name in recipe.ignore_classes if name not in dataset.ignored_classes]
    if missing or recipe.scores not in ("ignore", dataset.scores):
        wanted = f"ignore_classes={list(recipe.ignore_classes)}, scores={recipe.scores!r}"
        raise InputError(f"{dataset.root}: the recipe wants it read otherwise; open_dataset({wanted})")


def _begin(
    out: StrPath,
    recipe: Recipe,
    opened: DatasetIndex,
    prepared: Prepared,
    notes: Sequence[str],
    begun: Mapping[str, Any],
    listener: Listener,
) -> RunFinished:
    """Make the folder of a new run and train in it. begun: what run.json says of where data and weights come from.

    A run that continues another has a checkpoint from its start, so that it does not need the other any more.
    """
    world = prepared.world
    prepared = replace(prepared, decisions=(*notes, *prepared.decisions))
    dataset, anchors = prepared.dataset, prepared.train_state.detector.anchors
    facts = {
        **dataset.reading_facts(),
        "anchors": anchors.to_rows(),
        "left_out": left_out_facts(opened, dataset),
        "notes": list(notes),
        **begun,
        "derived": derived_settings(recipe, prepared),
        **_comparable_facts(recipe, dataset, world.world_size),
    }
    splits = {split: one["fingerprint"] for split, one in facts["splits"].items()}
    everyone = world.all_gather([splits, facts["class_names"]])
    if different := [str(rank) for rank, of_rank in enumerate(everyone) if of_rank != everyone[0]]:
        raise InputError(
            f"{facts['data']}: ranks {', '.join(different)} have read other images or labels there than rank 0; give "
            "all machines the same dataset"
        )
    with prepared.loader:
        if world.is_main:
            RunFolder.create(out, recipe, facts, prepared.train_state if "continues" in begun else None)
        world.barrier()
        folder = RunFolder(out)
        with folder.held() if world.is_main else nullcontext():
            return Run(recipe, folder, prepared, listener).run(Progress())


@checks_keywords(_field)
def resume(
    out: StrPath,
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
    end_unguarded_worker()
    _refuse_unopened(dataset)
    allow = _changes(allow)
    listener = listener if world.is_main else ignore
    folder = RunFolder.open(out)
    recipe, facts = folder.read_recipe(), folder.read_facts()
    if recipe.batch == "auto":
        then = facts.get("recipe", {}).get("batch", "a number")
        raise InputError(f"{folder.recipe}: batch auto: it is chosen when a run starts, here {then}; give a number")
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
                if facts.get("recipe", {}).get("batch", recipe.batch) != recipe.batch:
                    sizes, accumulation = (
                        prepared.loader.batches.sizes,
                        recipe.optimizer.accumulation(recipe.batch_size),
                    )
                    progress = progress.in_batches_of(recipe.batch_size, sizes.num_samples, accumulation)
                notes.append(f"resumed after {progress.describe(len(prepared.loader))} of {recipe.epochs}")
            for stray in (*leftovers(folder.checkpoints), *folder.path.glob(".*.tmp")) if world.is_main else ():
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
