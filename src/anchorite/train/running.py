"""Starting a run and going on with one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchorite.anchors import AnchorSet
from anchorite.data import DatasetIndex
from anchorite.errors import InputError
from anchorite.model import default_anchors
from anchorite.ranks import ALONE, Ranks
from anchorite.train.checkpoint import has_checkpoint, leftovers, load_latest
from anchorite.train.differences import Change, noted_facts, refuse_changes
from anchorite.train.events import Listener, RunFinished, ignore
from anchorite.train.loop import Run
from anchorite.train.preparation import Prepared, prepare
from anchorite.train.progress import Progress
from anchorite.train.recipe import Recipe
from anchorite.train.run_folder import RunFolder, noted_left_out
from anchorite.train.starting_backbone import noted_backbone, read_borrowed, read_borrowed_again
from anchorite.train.starting_weights import read_start, read_start_again, said_at_start


def train(
    recipe: Recipe,
    dataset: DatasetIndex,
    out: Path,
    listener: Listener = ignore,
    notes: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> RunFinished:
    """Train a detector in a new folder `out`; events go to the listener. notes: sentences for the run to begin with.

    ranks: the processes that train together, from `anchorite.ranks.joined`; each calls this alike, and the first writes
    and is listened to.
    Leaves best.safetensors (by mAP of the val split), last.safetensors, metrics.csv, recipe.yaml, summary.json and
    checkpoints. Raises InputError (exit 2), StorageError (4) or DivergedError (3).
    """
    listener = listener if ranks.is_first else ignore
    recipe, start = read_start(recipe)
    borrowed = read_borrowed(recipe, start)
    opened = dataset
    prepared = prepare(recipe, dataset, listener=listener, start=start, ranks=ranks, borrowed=borrowed)
    prepared = replace(prepared, decisions=(*notes, *prepared.decisions))
    dataset, anchors = prepared.dataset, prepared.trainee.detector.anchors
    facts = {
        "data": str(dataset.root.resolve()),
        "format": dataset.format,
        "skip_bad": dataset.skip_bad,
        "allow_outside": dataset.allow_outside,
        "anchors": anchors.to_rows(),
        "left_out": noted_left_out(opened, dataset),
        "start": None if start is None else start.noted(prepared.kept),
        "notes": list(notes),
        "borrowed": noted_backbone(borrowed),
        **noted_facts(recipe, dataset, ranks.count),
    }
    del start, borrowed  # as large as the network
    _refuse_other_data(facts, ranks)
    with prepared.loader:
        if ranks.is_first:
            RunFolder.create(out, recipe, facts)
        ranks.wait()
        folder = RunFolder(out)
        with _held(folder, ranks):
            return Run(recipe, folder, prepared, listener).go(Progress())


def resume(
    out: Path,
    dataset: DatasetIndex,
    listener: Listener = ignore,
    allow: Collection[Change] = (),
    ranks: Ranks = ALONE,
) -> RunFinished:
    """Continue the run in `out` from its newest whole checkpoint, bit for bit as if it had never stopped.

    A run that was stopped before there was a checkpoint starts over. allow: which changes since the start to go on
    with; ranks: as in `train`; all must see the folder. Raises InputError when the folder is no run, another process
    trains in it, or data or recipe have changed.
    """
    listener = listener if ranks.is_first else ignore
    folder = RunFolder.open(out)
    recipe, facts = folder.read_recipe(), folder.read_facts()
    # Which images of a data set with bad ones are trained on is known only when they have been decoded.
    changes = refuse_changes(facts, recipe, dataset, {*allow, "data"} if dataset.skip_bad else allow, ranks.count)
    with _held(folder, ranks):
        anchors = AnchorSet.from_rows(facts["anchors"], default_anchors(recipe.model).strides)
        start = read_start_again(recipe, facts) if _starts_over(folder) else None
        borrowed = read_borrowed_again(recipe, facts, start, _starts_over(folder))
        prepared = prepare(recipe, dataset, anchors, listener, start, ranks, borrowed)
        with prepared.loader:
            if dataset.skip_bad:
                changes = refuse_changes(facts, recipe, prepared.dataset, allow, ranks.count)
            progress, said = _load_progress(folder, recipe, prepared)
            said += said_at_start(facts, begins_again=start is not None)
            prepared = replace(prepared, decisions=(*changes, *said, *prepared.decisions))
            return Run(recipe, folder, prepared, listener).go(progress)


def _load_progress(folder: RunFolder, recipe: Recipe, prepared: Prepared) -> tuple[Progress, list[str]]:
    """Restore the newest whole checkpoint; how far it is, and what to say of it. Crashes' leftovers are removed."""
    if _starts_over(folder):
        progress, said = Progress(), ["stopped before its first checkpoint: starts over"]
    else:
        progress, said = load_latest(folder.checkpoints, prepared.trainee, prepared.ranks)
        said.append(f"resumed after {progress.describe(len(prepared.loader))} of {recipe.epochs}")
    for stray in (*leftovers(folder.checkpoints), *folder.path.glob(".*.tmp")) if prepared.ranks.is_first else ():
        stray.unlink(missing_ok=True)
        said.append(f"{stray}: left by a crash, removed")
    return progress, said


def _refuse_other_data(facts: dict[str, Any], ranks: Ranks) -> None:
    """InputError where ranks have read different data, as copies on several machines may be."""
    prints = [{split: one["fingerprint"] for split, one in facts["splits"].items()}, facts["class_names"]]
    everyone = ranks.gather(prints)
    different = [str(number) for number, of_rank in enumerate(everyone) if of_rank != everyone[0]]
    if different:
        raise InputError(
            f"{facts['data']}: ranks {', '.join(different)} have read other images or labels there than rank 0; give "
            "all machines the same dataset"
        )


def _held(folder: RunFolder, ranks: Ranks) -> AbstractContextManager[object]:
    """The folder locked against other runs, by the rank that writes."""
    return folder.held() if ranks.is_first else nullcontext()


def _starts_over(folder: RunFolder) -> bool:
    return len(folder.read_rows()) <= 1 and not has_checkpoint(folder.checkpoints)
