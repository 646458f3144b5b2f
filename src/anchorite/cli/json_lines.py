"""What a program reads: one JSON object a line, each with its `event`, all of them listed in docs/command-line.md."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.train import Event, RunStarted, StepDone

_SECONDS_BETWEEN = 1.0  # steps, and images decoded, are told at most so often


def write_line(event: str, facts: Mapping[str, Any]) -> None:
    """Print one object and hand it on at once; what is not finite becomes null, a path its text."""
    print(json.dumps({"event": event, **_plain(dict(facts))}, allow_nan=False), flush=True)


class JsonLines:
    """A display of a run that prints its events, and nothing else."""

    def __init__(self) -> None:
        self.run_folder: Path | None = None  # known when the run has started
        self._num_batches = 0
        self._num_epochs = 0
        self._told_at = -math.inf

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def say(self, text: str) -> None:
        """Nothing: sentences are for people."""

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Nothing."""

    def dataset(self, dataset: DatasetIndex) -> None:
        """What was read, and how much of it reading has adjusted."""
        write_line("data", dataset_facts(dataset))

    def finished(self, folder: Path) -> None:
        """Where everything lies, when it is there."""
        write_line(
            "finished",
            {
                "folder": folder,
                "best_weights": folder / "best.safetensors",
                "last_weights": folder / "last.safetensors",
                "report": folder / "report.html",
            },
        )

    def __call__(self, event: Event) -> None:
        """One line an event; of steps and of images decoded, those that a person could follow."""
        from anchorite.train import EpochDone, RunStarted, StepDone, StepSkipped, StoreProgress

        if isinstance(event, StoreProgress):
            if self._is_due(event.num_done == event.num_images):
                write_line("decoding", {"split": event.split, "done": event.num_done, "images": event.num_images})
        elif isinstance(event, RunStarted):
            self._started(event)
        elif isinstance(event, StepDone):
            if self._is_due(event.batch == self._num_batches):
                write_line("step", _of_step(event, self._num_batches))
        elif isinstance(event, StepSkipped):
            write_line("step_skipped", event.facts)
        elif isinstance(event, EpochDone):
            counts = {"epoch": event.epoch, "num_epochs": self._num_epochs}
            write_line("epoch", {**counts, "improved": event.improved, "metrics": event.row})
        else:
            known = event.best_epoch is not None
            best = {"best_epoch": event.best_epoch, "best_map": event.best_map if known else None}
            facts = {"folder": event.folder, "reason": event.reason, **best, "seconds": event.seconds}
            write_line("run_finished", facts)

    def _started(self, event: RunStarted) -> None:
        self.run_folder = event.folder
        self._num_batches, self._num_epochs = event.num_batches, event.num_epochs
        facts = {"folder": event.folder, "first_epoch": event.first_epoch + 1, "num_epochs": event.num_epochs}
        write_line("run_started", {**facts, "num_batches": event.num_batches, "decisions": list(event.decisions)})

    def _is_due(self, is_last: bool) -> bool:
        now = time.monotonic()
        if not is_last and now - self._told_at < _SECONDS_BETWEEN:
            return False
        self._told_at = now
        return True


def dataset_facts(dataset: DatasetIndex) -> dict[str, Any]:
    """Place, format, classes, counts of splits and of adjustments."""

    return {
        "path": dataset.root,
        "format": dataset.format,
        "class_names": list(dataset.class_names),
        "splits": {
            name: {"images": len(records), "boxes": records.num_boxes()} for name, records in dataset.splits.items()
        },
        "adjustments": dict(Counter(one.kind for one in dataset.adjustments)),
    }


def _of_step(event: StepDone, num_batches: int) -> dict[str, Any]:
    return {
        "epoch": event.epoch,
        "batch": event.batch,
        "num_batches": num_batches,
        "box": event.box,
        "objectness": event.objectness,
        "classification": event.classification,
        "images_per_second": event.images_per_second,
        "seconds_left": event.seconds_left,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
