"""`train` and `resume`: starting a run and continuing one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchorite.anchors import AnchorSet
from anchorite.choices import Change
from anchorite.data import DatasetIndex
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError
from anchorite.model import default_anchors
from anchorite.train.checkpoint import Progress, has_checkpoint, leftovers, load_latest
from anchorite.train.events import Listener, RunFinished, ignore
from anchorite.train.loop import Run
from anchorite.train.pretrained import (
    backbone_facts,
    read_hf_backbone,
    read_pretrained,
    reread_hf_backbone,
    reread_pretrained,
    start_notes,
)
from anchorite.train.recipe import Recipe
from anchorite.train.run_folder import RunFolder, comparable_facts, left_out_facts, refuse_changes
from anchorite.train.setup import Prepared, derived_settings, prepare


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
    same arguments; rank 0 writes and sends events. Leaves best.safetensors (by mAP of the val split), last.safetensors,
    metrics.csv, recipe.yaml, summary.json and checkpoints. Raises InputError (exit 2), StorageError (4) or
    DivergedError (3).
    """
    listener = listener if world.is_main else ignore
    recipe, start = read_pretrained(recipe)
    backbone = read_hf_backbone(recipe, start)
    opened = dataset
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
        "start": None if start is None else start.facts(prepared.kept),
        "notes": list(notes),
        "backbone": backbone_facts(backbone),
        "derived": derived_settings(recipe, prepared),
        **comparable_facts(recipe, dataset, world.world_size),
    }
    del start, backbone  # as large as the network
    _refuse_other_data(facts, world)
    with prepared.loader:
        if world.is_main:
            RunFolder.create(out, recipe, facts)
        world.barrier()
        folder = RunFolder(out)
        with _held(folder, world):
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
    # Which images of a data set with bad ones are trained on is known only when they have been decoded.
    changes = refuse_changes(facts, recipe, dataset, {*allow, "data"} if dataset.skip_bad else allow, world.world_size)
    with _held(folder, world):
        anchors = AnchorSet.from_rows(facts["anchors"], default_anchors(recipe.model).strides)
        start = reread_pretrained(recipe, facts) if _starts_over(folder) else None
        backbone = reread_hf_backbone(recipe, facts, start, _starts_over(folder))
        prepared = prepare(recipe, dataset, anchors, listener, start, world, backbone)
        with prepared.loader:
            if dataset.skip_bad:
                changes = refuse_changes(facts, recipe, prepared.dataset, allow, world.world_size)
            progress, notes = _load_progress(folder, recipe, prepared)
            notes += start_notes(facts, begins_again=start is not None)
            prepared = replace(prepared, decisions=(*changes, *notes, *prepared.decisions))
            return Run(recipe, folder, prepared, listener).run(progress)


def _load_progress(folder: RunFolder, recipe: Recipe, prepared: Prepared) -> tuple[Progress, list[str]]:
    """Restore the newest valid checkpoint; its progress, and sentences about it. Leftovers of crashes are removed."""
    if _starts_over(folder):
        progress, notes = Progress(), ["stopped before its first checkpoint: starts over"]
    else:
        progress, notes = load_latest(folder.checkpoints, prepared.train_state, prepared.world)
        notes.append(f"resumed after {progress.describe(len(prepared.loader))} of {recipe.epochs}")
    for stray in (*leftovers(folder.checkpoints), *folder.path.glob(".*.tmp")) if prepared.world.is_main else ():
        stray.unlink(missing_ok=True)
        notes.append(f"{stray}: left by a crash, removed")
    return progress, notes


def _refuse_other_data(facts: dict[str, Any], world: World) -> None:
    """InputError if ranks have read different data, such as different copies on several machines."""
    prints = [{split: one["fingerprint"] for split, one in facts["splits"].items()}, facts["class_names"]]
    everyone = world.all_gather(prints)
    different = [str(number) for number, of_rank in enumerate(everyone) if of_rank != everyone[0]]
    if different:
        raise InputError(
            f"{facts['data']}: ranks {', '.join(different)} have read other images or labels there than rank 0; give "
            "all machines the same dataset"
        )


def _held(folder: RunFolder, world: World) -> AbstractContextManager[object]:
    """The folder locked against other runs, by the rank that writes."""
    return folder.held() if world.is_main else nullcontext()


def _starts_over(folder: RunFolder) -> bool:
    return len(folder.read_rows()) <= 1 and not has_checkpoint(folder.checkpoints)
