"""Processes that train, to be killed: forked in milliseconds from one that has imported everything and run nothing.

`python -m tests.faults.forked FOLDER` reads lines of JSON with a task and its folder, forks a child for each, answers
with its process number, and, once it has ended, with how.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NUM_IMAGES, BATCH, EPOCHS = 6, 2, 2  # small: what a run takes decides how many can be killed
BATCHES = NUM_IMAGES // BATCH


def _recipe() -> Any:
    from tests.train.runs import small_recipe

    return small_recipe(
        epochs=EPOCHS,
        batch=BATCH,
        optimizer__nominal_batch=2 * BATCH,  # so that some checkpoints fall between two batches of a step
        checkpoint_minutes=1e-9,
        patience=EPOCHS,
    )


def _train(folder: Path, dataset: Any) -> None:
    """Train in folder/run, or go on there; each batch done becomes a line of folder/done."""
    from anchorite.train import StepDone, resume, train

    done = os.open(folder / "done", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def listener(event: object) -> None:
        if isinstance(event, StepDone):
            os.write(done, f"{(event.epoch - 1) * BATCHES + event.batch}\n".encode())

    if (folder / "run").exists():
        resume(folder / "run", dataset, listener)
    else:
        train(_recipe(), dataset, folder / "run", listener)


def _save(folder: Path, train_state: Any) -> None:
    """Save checkpoint after checkpoint; the number of each begun and of each finished becomes a line of a file."""
    from anchorite.train.checkpoint import PartialEpoch, Progress, found_checkpoints, save_checkpoint

    newest = next(iter(found_checkpoints(folder)), None)
    number = newest.progress.partial.batches if newest is not None and newest.progress is not None else 0
    told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        number += 1
        os.write(told, f"begun {number}\n".encode())
        save_checkpoint(folder, train_state, Progress(partial=PartialEpoch(batches=number)))
        os.write(told, f"done {number}\n".encode())


def serve(data: Path) -> None:
    """What the process does that others are forked from."""
    import torch
    import torch._dynamo  # which the first optimizer of a process imports, for longer than a small run takes

    torch.set_num_threads(1)  # no pool of threads, which a fork could not take along
    from anchorite.data import open_dataset
    from anchorite.train.setup import prepare

    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background deaf to it
    dataset = open_dataset(data)
    train_state = None
    for line in sys.stdin:
        order = json.loads(line)
        if order["task"] == "save" and train_state is None:
            train_state = prepare(_recipe(), dataset).train_state
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sys.stdin.close()
                if order["task"] == "save":
                    _save(Path(order["folder"]), train_state)
                else:
                    _train(Path(order["folder"]), dataset)
                code = 0
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Forker:
    """Starts tasks in forked children, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, task: str, folder: Path) -> int:
        """Begin a task; the number of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """How the task ended: its exit code, or minus the signal."""
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def forker(folder: Path) -> Iterator[Forker]:
    """A process to fork from, with a small data set of its own under `folder`."""
    from anchorite.data.scenes import write_scenes

    data = write_scenes(folder / "scenes", NUM_IMAGES, 2, 2, seed=5, size_px=64)
    command = [sys.executable, "-m", "tests.faults.forked", str(data)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Forker(process)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
