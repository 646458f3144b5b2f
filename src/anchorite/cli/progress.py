"""What a command that trains shows of a run: what was read and decided, its epochs, and where everything lies."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anchorite.cli.dataset_line import dataset_line
from anchorite.cli.epoch_table import EpochLine, RunningEpoch, clock
from anchorite.cli.json_lines import JsonLines
from anchorite.cli.messages import GO_ON
from anchorite.cli.screens import Screen, choose_screen
from anchorite.data import DatasetIndex
from anchorite.errors import StorageError, WorkerError
from anchorite.train import EpochDone, Event, RunFinished, RunStarted, StepDone, StepSkipped, StoreProgress

if TYPE_CHECKING:
    from anchorite.cli.options import OutputOptions


class Display(Protocol):
    """Listens to a run, and takes what its command has to say."""

    run_folder: Path | None

    def __enter__(self) -> Display: ...

    def __exit__(self, *error: object) -> None: ...

    def __call__(self, event: Event) -> None: ...

    def say(self, text: str) -> None:
        """One line on how it goes."""

    def hint(self, sentence: str, command: str | None = None) -> None:
        """For somebody who does this for the first time: a sentence, and the command that it leads to."""

    def dataset(self, dataset: DatasetIndex) -> None:
        """What was read."""

    def finished(self, folder: Path) -> None:
        """Which files to open, and what to do with them."""


def choose_display(output: OutputOptions, is_main: bool = True) -> Display:
    """JSON lines or a screen, as asked for; nothing unless this is the first rank. InputError for both at once."""
    output.check()
    if not is_main:
        return NoDisplay()
    return JsonLines() if output.json_lines else TrainingDisplay(choose_screen(output.quiet))


class NoDisplay:
    """Shows nothing: that of the ranks other than the first."""

    run_folder: Path | None = None

    def __enter__(self) -> NoDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        pass

    def say(self, text: str) -> None:
        """Nothing."""

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Nothing."""

    def dataset(self, dataset: DatasetIndex) -> None:
        """Nothing."""

    def finished(self, folder: Path) -> None:
        """Nothing."""


class TrainingDisplay:
    """Puts the events of a run into words for a screen, by default the one that stdout is."""

    def __init__(self, screen: Screen | None = None) -> None:
        self.screen = screen or choose_screen()
        self.run_folder: Path | None = None  # known when the run has started
        self._num_batches = 0
        self._num_epochs = 0
        self._seconds_left = 0.0

    def __enter__(self) -> TrainingDisplay:
        self.screen.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.screen.__exit__(*error)

    def say(self, text: str) -> None:
        """One line on how it goes."""
        self.screen.say(text)

    def hint(self, sentence: str, command: str | None = None) -> None:
        """For somebody who does this for the first time."""
        self.screen.hint(sentence, command)

    def dataset(self, dataset: DatasetIndex) -> None:
        """One line on the data and one on each kind of adjustment made while reading."""
        self.say(f"data: {dataset_line(dataset)}")
        kinds: dict[str, list[str]] = {}
        for adjustment in dataset.adjustments:
            kinds.setdefault(adjustment.kind, []).append(adjustment.origin)
        for kind, origins in kinds.items():
            more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
            self.say(f"labels {kind}: {len(origins)} ({', '.join(origins[:3])}{more})")
        self.say("decoding the images and choosing what the recipe leaves open ...")

    def finished(self, folder: Path) -> None:
        """The last lines: which files to open, and what to do with them."""
        weights = folder / "best.safetensors"
        self.screen.result(f"weights: {weights}")
        self.screen.result(f"report:  {folder / 'report.html'}")
        self.say(f"use it:  anchorite predict {shlex.quote(str(weights))} IMAGES")

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, StepSkipped):
            self._skipped(event)
        elif isinstance(event, StoreProgress):
            self.screen.decoding(event.split, event.num_done, event.num_images)
        elif isinstance(event, RunStarted):
            self._start(event)
        else:
            self._finish(event)

    def _start(self, event: RunStarted) -> None:
        self.run_folder = event.folder
        self._num_batches, self._num_epochs = event.num_batches, event.num_epochs
        for decision in event.decisions:
            self.say(decision)
        self.say(f"run: {event.folder}, epochs {event.first_epoch + 1} to {event.num_epochs}")
        self.screen.start_table(event.num_epochs)

    def _step(self, event: StepDone) -> None:
        self._seconds_left = event.seconds_left
        self.screen.running(
            RunningEpoch(
                event.epoch,
                self._num_epochs,
                event.batch,
                self._num_batches,
                event.box,
                event.objectness,
                event.classification,
                event.images_per_second,
                event.seconds_left,
            )
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
        self.screen.epoch(
            EpochLine(
                event.epoch,
                self._num_epochs,
                row["train/box"],
                row["train/objectness"],
                row["train/classification"],
                row["images_per_second"],
                row.get("val/map50", math.nan),
                row.get("val/map75", math.nan),
                row.get("val/map", math.nan),
                event.improved,
                self._seconds_left,
            )
        )

    def _finish(self, event: RunFinished) -> None:
        known = event.best_epoch is not None
        best = f"best mAP {event.best_map:.4f} at epoch {event.best_epoch}" if known else "no mAP is known"
        self.screen.end_table()
        self.screen.result(f"done ({event.reason}) in {clock(event.seconds)}: {best}")
        self.say("writing plots, pictures and the report ...")


@contextmanager
def telling_how_to_go_on(display: Display) -> Iterator[None]:
    """Add to whatever ends a started run from outside how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, StorageError, WorkerError, OSError, RuntimeError) as error:  # the last: ranks are lost
        if display.run_folder is not None:
            error.add_note(f"{GO_ON} anchorite train --resume {shlex.quote(str(display.run_folder))}")
        raise
