"""What `train` shows: decisions, a line per epoch, and a bar for the batches where there is a terminal."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from anchorite.cli.messages import GO_ON
from anchorite.data import DatasetIndex
from anchorite.errors import StorageError, WorkerError
from anchorite.train import EpochDone, Event, RunFinished, RunStarted, StepDone, StepSkipped, StoreProgress

_HEADER = f"{'epoch':>9} {'box':>8} {'object':>8} {'class':>8} {'img/s':>7} {'mAP50':>7} {'mAP':>7} {'best':>5}  left"
_FEWEST_TOLD = 200  # images: decoding fewer is over before a line would be read


class TrainingDisplay:
    """Prints the events of a run; plain lines when the output is no terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True, emoji=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", visible=False, note="")
        self.run_folder: Path | None = None  # known when the run has started
        self._num_batches = 0
        self._num_epochs = 0
        self._seconds_left = 0.0
        self._speed = 0.0

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def dataset(self, dataset: DatasetIndex) -> None:
        """One line on the data and one on each kind of adjustment made while reading."""
        counts = ", ".join(
            f"{name} {len(records)} images / {sum(len(record.class_ids) for record in records)} boxes"
            for name, records in dataset.splits.items()
        )
        self.say(f"data: {dataset.root} ({dataset.format}), {len(dataset.class_names)} classes; {counts}")
        kinds: dict[str, list[str]] = {}
        for adjustment in dataset.adjustments:
            kinds.setdefault(adjustment.kind, []).append(adjustment.origin)
        for kind, origins in kinds.items():
            more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
            self.say(f"labels {kind}: {len(origins)} ({', '.join(origins[:3])}{more})")
        self.say("decoding the images and choosing what the recipe leaves open ...")

    def where_to_look(self, folder: Path) -> None:
        """The last lines: which files to open, and what to do with them."""
        weights = folder / "best.safetensors"
        self.say(f"weights: {weights}")
        self.say(f"report:  {folder / 'report.html'}")
        self.say(f"use it:  anchorite predict {shlex.quote(str(weights))} IMAGES")

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        if self._bar.disable:
            print(text)  # not by rich, which would end the process where nobody reads its output any more
        else:
            self.console.print(text, markup=False)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, StepSkipped):
            self._skipped(event)
        elif isinstance(event, StoreProgress):
            self._store(event)
        elif isinstance(event, RunStarted):
            self._start(event)
        else:
            self._finish(event)

    def _store(self, event: StoreProgress) -> None:
        """On a terminal the bar; elsewhere a line at each quarter."""
        done, total = event.num_done, event.num_images
        self._bar.update(
            self._task,
            description=f"decoding {event.split}",
            completed=done,
            total=total,
            visible=done < total,
            note=f"{done}/{total} images",
        )
        if self._bar.disable and total >= _FEWEST_TOLD and 4 * done // total > 4 * (done - 1) // total:
            self.say(f"decoded {done} of {total} {event.split} images")

    def _start(self, event: RunStarted) -> None:
        self.run_folder = event.folder
        self._num_batches, self._num_epochs = event.num_batches, event.num_epochs
        for decision in event.decisions:
            self.say(decision)
        self.say(f"run: {event.folder}, epochs {event.first_epoch + 1} to {event.num_epochs}")
        self.say(_HEADER)

    def _step(self, event: StepDone) -> None:
        self._seconds_left, self._speed = event.seconds_left, event.images_per_second
        note = (
            f"{event.batch}/{self._num_batches}  box {event.box:.4f}  object {event.objectness:.4f}  "
            f"class {event.classification:.4f}  {event.images_per_second:.1f} img/s  {_clock(event.seconds_left)} left"
        )
        self._bar.update(
            self._task,
            description=f"epoch {event.epoch}",
            completed=event.batch,
            total=self._num_batches,
            visible=True,
            note=note,
        )

    def _skipped(self, event: StepSkipped) -> None:
        facts = event.facts
        images = facts["images"]
        named = ", ".join(Path(image).name for image in images[:3]) + (", ..." if len(images) > 3 else "")
        self.say(
            f"epoch {facts['epoch']}, batch {facts['batch']}: {facts['not_finite']} is not finite; the step was not "
            f"taken. Its {len(images)} images ({named}) are listed in skipped.jsonl"
        )

    def _epoch(self, event: EpochDone) -> None:
        row = event.row
        metrics = event.validation.metrics if event.validation is not None else None
        map50, map_all = (_score(metrics.map50), _score(metrics.map)) if metrics else ("-", "-")
        self.say(
            f"{event.epoch:4d}/{self._num_epochs:<4d} {row['train/box']:8.4f} {row['train/objectness']:8.4f} "
            f"{row['train/classification']:8.4f} {row['images_per_second']:7.1f} {map50:>7} {map_all:>7} "
            f"{'*' if event.improved else '':>5}  {_clock(self._seconds_left)}"
        )

    def _finish(self, event: RunFinished) -> None:
        known = event.best_epoch is not None
        best = f"best mAP {event.best_map:.4f} at epoch {event.best_epoch}" if known else "no mAP is known"
        self._bar.update(self._task, visible=False)
        self.say(f"done ({event.reason}) in {_clock(event.seconds)}: {best}")
        self.say("writing plots, pictures and the report ...")


@contextmanager
def telling_how_to_go_on(display: TrainingDisplay) -> Iterator[None]:
    """Add to whatever ends a started run from outside how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, StorageError, WorkerError, OSError) as error:
        if display.run_folder is not None:
            error.add_note(f"{GO_ON} anchorite train --resume {shlex.quote(str(display.run_folder))}")
        raise


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
