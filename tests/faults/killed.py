"""What processes do that are to be killed: train a small run, or save one checkpoint after the other."""

from __future__ import annotations

import os
from pathlib import Path

from anchorite.data import open_dataset
from anchorite.train import Recipe, StepDone, resume, train
from anchorite.train.checkpoint import PartialEpoch, Progress, found_checkpoints, save_checkpoint
from tests.processes import ForkedProcess
from tests.train.runs import small_recipe, tiny_state

NUM_IMAGES, BATCH, EPOCHS = 6, 2, 2  # small: what a run takes decides how many can be killed
BATCHES = NUM_IMAGES // BATCH
SAVED_WIDTH = 8192  # checkpoints of 3 MB, so that a kill can fall into the middle of writing one


def started(task: str, *folders: Path) -> ForkedProcess:
    """A process with one of the tasks below."""
    return ForkedProcess(f"tests.faults.killed:{task}", *map(str, folders), stdout=None, stderr=None)


def run_to_the_end(folder: str, data: str) -> None:
    """Train in folder/run, or go on there; each batch done becomes a line of folder/done. Ctrl-C ends it with 130."""
    run, dataset = Path(folder) / "run", open_dataset(Path(data))
    done = os.open(Path(folder) / "done", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def listener(event: object) -> None:
        if isinstance(event, StepDone):
            os.write(done, f"{(event.epoch - 1) * BATCHES + event.batch}\n".encode())

    try:
        if run.exists():
            resume(run, dataset, listener)
        else:
            train(_recipe(), dataset, run, listener)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def save_for_ever(folder: str) -> None:
    """Save checkpoint after checkpoint; the number of each begun and of each finished becomes a line of folder/told."""
    train_state = tiny_state(SAVED_WIDTH)
    newest = next(iter(found_checkpoints(Path(folder))), None)
    number = newest.progress.partial.batches if newest is not None and newest.progress is not None else 0
    told = os.open(Path(folder) / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        number += 1
        os.write(told, f"begun {number}\n".encode())
        save_checkpoint(Path(folder), train_state, Progress(partial=PartialEpoch(batches=number)))
        os.write(told, f"done {number}\n".encode())


def _recipe() -> Recipe:
    return small_recipe(
        epochs=EPOCHS,
        batch=BATCH,
        optimizer__nominal_batch=2 * BATCH,  # so that some checkpoints fall between two batches of a step
        checkpoint_minutes=1e-9,
        patience=EPOCHS,
    )
