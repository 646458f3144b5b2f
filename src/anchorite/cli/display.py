"""What commands show: the course of a training run, for people or as JSON lines, and how far a pass over images is."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from anchorite.cli.messages import RESUME_HINT
from anchorite.cli.options import OutputOptions
from anchorite.errors import NoMemoryError, StorageError, WorkerError
from anchorite.reading import one_line

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.inspect import Overview
    from anchorite.train import EpochDone, Event, StepDone, StoreProgress

_FEWEST_REPORTED = 200  # images: a pass over fewer is done before a line would be read
_SECONDS_BETWEEN = 1.0  # JSON lines on steps and on images that were decoded or validated
_SECONDS_SILENT = 30.0  # at most, of a log
_LOG_WIDTH = 80
_MOST_ROWS = 25  # of a table before its header is shown again, fewer where the terminal is lower
_REDRAWS_PER_SECOND = 4
_WIDTHS = {
    "epoch": 9, "box": 8, "object": 8, "class": 8, "img/s": 7, "mAP50": 7, "mAP75": 7, "mAP": 7, "best": 5, "left": 8
}  # fmt: skip
_BY_IMPORTANCE = ("epoch", "mAP", "best", "left", "mAP50", "box", "object", "class", "img/s", "mAP75")
_CHART, _CHART_WIDTHS = "mAP, 0 to 1", (15, 40)  # a bar of mAP behind the columns where there is room
_FEWEST_CELLS = 6  # of a bar that says anything


class EpochTable:
    """Rows of epochs with as many columns as fit, the most important ones first; console: None for a log of text."""

    def __init__(self, console: Console | None, num_epochs: int = 1) -> None:
        self._console, self._num_epochs = console, num_epochs
        is_drawn = console is not None and console.encoding.lower().startswith("utf")
        self._full, self._empty = ("\u2501", "\u2500") if is_drawn else ("#", "-")
        self._widths = _WIDTHS | {"epoch": max(7, 2 * len(str(num_epochs)) + 1)}

    @property
    def width(self) -> int:
        """Characters a line may have, which changes with the window of a terminal."""
        return _LOG_WIDTH if self._console is None else self._console.width

    def columns(self) -> list[str]:
        """The columns that fit, in their order."""
        ends = accumulate(self._widths[name] + 1 for name in _BY_IMPORTANCE)
        fitting = [name for name, end in zip(_BY_IMPORTANCE, ends, strict=True) if end - 1 <= self.width]
        return [name for name in _WIDTHS if name in fitting]

    def header(self) -> Text:
        """The names of the columns."""
        text = Text(self._line(self.columns(), {name: name for name in _WIDTHS}), "bold underline", no_wrap=True)
        if chart := self._chart_width(text):
            text.append(f"  {_CHART:<{chart - 1}}")
        return text

    def row(self, event: EpochDone, seconds_left: float) -> Text:
        """An epoch that is over; the one with the best mAP so far is marked, bold and green."""
        scores = {name: event.row.get(f"val/{name.lower()}", math.nan) for name in ("mAP50", "mAP75", "mAP")}
        is_best = event.improved and not math.isnan(scores["mAP"])
        losses = [event.row[f"train/{name}"] for name in ("box", "objectness", "classification")]
        values = self._progress(event.epoch, losses, event.row["images_per_second"])
        values |= {name: "-" if math.isnan(score) else f"{score:.4f}" for name, score in scores.items()}
        values |= {"best": ("*" if self._console is None else "best") * is_best, "left": clock(seconds_left)}
        text = Text(self._line(self.columns(), values), "bold green" if is_best else "", no_wrap=True)
        if (chart := self._chart_width(text)) and not math.isnan(scores["mAP"]):
            text.append("  ").append_text(self.bar(scores["mAP"], chart - 1))
        return text

    def running(self, event: StepDone, num_batches: int) -> Text:
        """An unfinished epoch: losses in their columns, and how far it is where its scores will be."""
        losses = [event.box, event.objectness, event.classification]
        values = self._progress(event.epoch, losses, event.images_per_second)
        columns = self.columns()
        text = Text(self._line([name for name in columns if name in values], values), no_wrap=True)
        left = f" {clock(event.seconds_left):>{self._widths['left']}}" if "left" in columns else ""
        is_over = event.batch >= num_batches
        text.append("  validating" if is_over else f"  {event.batch}/{num_batches}")
        cells = sum(self._widths[name] + 1 for name in columns) - len(text) - len(left) - 3
        if cells >= _FEWEST_CELLS and not is_over:
            text.append("  ").append_text(self.bar(event.batch / num_batches, cells))
        else:
            text.append(" " * max(0, cells + 2))
        return text.append(left)

    def bar(self, share: float, cells: int) -> Text:
        """A bar of so many characters, filled to a share."""
        full = round(min(1.0, max(0.0, share)) * cells)
        return Text(self._full * full, style="bold").append(self._empty * (cells - full), style="dim")

    def _progress(self, epoch: int, losses: Sequence[float], images_per_second: float) -> dict[str, str]:
        values = [f"{epoch}/{self._num_epochs}", *(f"{loss:.4f}" for loss in losses), f"{images_per_second:.1f}"]
        return dict(zip(("epoch", "box", "object", "class", "img/s"), values, strict=True))

    def _line(self, names: Sequence[str], values: dict[str, str]) -> str:
        return " ".join(f"{values[name]:>{self._widths[name]}}" for name in names)

    def _chart_width(self, columns: Text) -> int:
        spare = self.width - len(columns) - 2
        return min(_CHART_WIDTHS[1], spare) if spare >= _CHART_WIDTHS[0] else 0


class Pace:
    """When the next line of a log is due, so that it is never silent for more than 30 seconds."""

    def __init__(self) -> None:
        self._said_at = self._asked_at = time.monotonic()

    def said(self) -> None:
        """Note that there was a line."""
        self._said_at = self._asked_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it would be too late the next time one asks, if that takes as long as it took this time."""
        now = time.monotonic()
        next_time, self._asked_at = now + (now - self._asked_at), now
        return next_time - self._said_at > _SECONDS_SILENT


class Display:
    """A training run as it goes on: in words and a table, or as the JSON lines that docs/command-line.md lists.

    In a file or a pipe, words are lines of plain text. On a terminal finished epochs scroll away as any output does;
    below them the unfinished one is redrawn, so that hundreds of epochs cost no more than one. What a colour says, a
    word says too. is_main: False on other ranks than the first, where nothing is shown. console: by default the one of
    stdout, if that is a terminal.
    """

    def __init__(
        self, output: OutputOptions = OutputOptions(), is_main: bool = True, console: Console | None = None
    ) -> None:
        self._writes_json, self._prints_text = is_main and output.json_lines, is_main and not output.json_lines
        self._is_quiet = output.quiet or not self._prints_text
        if console is None and sys.stdout.isatty() and not self._is_quiet:
            console = Console(highlight=False, soft_wrap=True, emoji=False)
        self._console = console
        self._folder: Path | None = None  # of the run, once it has started
        self._num_batches = self._num_epochs = 0
        self._table, self._seconds_left, self._best = EpochTable(console), 0.0, ""
        self._header: list[str] = []  # the columns of the header that was printed last
        self._rows_since_header = 0
        self._current: StepDone | StoreProgress | None = None  # what the bottom of a terminal shows
        self._json_written_at = -math.inf
        self._pace = Pace()
        self._live = None if console is None else Live(
            console=console, get_renderable=self.bottom, refresh_per_second=_REDRAWS_PER_SECOND, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Add to whatever ends a started run from outside how to resume it."""
        self._current = None
        if self._live is not None:
            self._live.stop()
        from_outside = (
            KeyboardInterrupt,
            StorageError,
            NoMemoryError,
            WorkerError,
            OSError,
            MemoryError,
            RuntimeError,
        )  # the last: lost ranks
        if isinstance(error, from_outside) and self._folder is not None:
            error.add_note(f"{RESUME_HINT} anchorite train --resume {shlex.quote(str(self._folder))}")

    def say(self, text: str | Text) -> None:
        """One line on the course of the run, for people."""
        if not self._is_quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """A line that should not be missed: on stderr where stdout is for results alone."""
        if self._is_quiet:
            print(f"anchorite: {text}", file=sys.stderr)
        else:
            self._print(text)

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Advice for a first run and the command to type, on a terminal only: a log holds facts."""
        if self._console is not None:
            self._console.print(Text(f"hint: {sentence}", style="italic"), soft_wrap=False)
            if command is not None:
                self._console.print(f"      {command}", markup=False, style="bold")

    def finished(self, folder: Path) -> None:
        """Where the results are, when all of them are written, and what to do with them."""
        best, last, report = (folder / name for name in ("best.safetensors", "last.safetensors", "report.html"))
        self._write("finished", folder=folder, best_weights=best, last_weights=last, report=report)
        self._print(f"weights: {best}")
        self._print(f"report:  {report}")
        self.say(f"use it:  anchorite predict {shlex.quote(str(best))} IMAGES")

    def __call__(self, event: Event) -> None:
        """Show an event: as a JSON line, of steps and of decoded images at most one a second, or in words."""
        from anchorite.train import (
            DataChecked,
            EpochDone,
            RunStarted,
            StepDone,
            StepSkipped,
            StoreProgress,
            ValidationProgress,
        )

        match event:
            case DataChecked(dataset, overview):
                self._write("data", **dataset_facts(dataset, overview))
                is_refused = any(one.kind.startswith("no-training") for one in overview.told)  # the error says why
                for line in data_lines(dataset, overview, without="no-training"):
                    self.say(line)
                if not is_refused and not dataset.split("val"):
                    copy = f"anchorite split {shlex.quote(str(dataset.root))} NEW_FOLDER"
                    self.say(
                        f"val: no such split, so nothing is measured. To have one: {copy}, or train with --val 0.2"
                    )
                if not is_refused:
                    self.say("decoding the images and choosing what the recipe leaves open ...")
            case StoreProgress(split, done, total):
                self._current = event if done < total else None
                if self._is_due(done == total):
                    self._write("decoding", split=split, done=done, images=total)
                self._say_if_due(f"decoded {done} of {total} {split} images", is_quarter(done, total))
            case RunStarted(folder, decisions, first, num_epochs, num_batches):
                self._folder, self._num_batches, self._num_epochs = folder, num_batches, num_epochs
                self._table, self._header = EpochTable(self._console, num_epochs), []
                counts = {"first_epoch": first + 1, "num_epochs": num_epochs, "num_batches": num_batches}
                self._write("run_started", folder=folder, **counts, decisions=decisions)
                for line in (*decisions, f"run: {folder}, epochs {first + 1} to {num_epochs}"):
                    self.say(line)
            case StepDone(epoch, batch):
                self._seconds_left, self._current = event.seconds_left, event
                if self._is_due(batch == self._num_batches):
                    names = ("box", "objectness", "classification", "images_per_second", "seconds_left")
                    values = {name: getattr(event, name) for name in names}
                    self._write("step", epoch=epoch, batch=batch, num_batches=self._num_batches, **values)
                if self._console is not None:
                    self._print_header_if_due()
                losses = f"box {event.box:.4f}, object {event.objectness:.4f}, class {event.classification:.4f}"
                self._say_if_due(
                    f"epoch {epoch}/{self._num_epochs}: {event.images} of {event.num_images} images, "
                    f"{event.images_per_second:.1f} img/s, {losses}, {clock(event.seconds_left)} left"
                )
            case ValidationProgress(epoch, done, total):
                if self._is_due(is_last=False):
                    self._write("validating", epoch=epoch, done=done, images=total)
                what = f"validated {done} of {total} images" if done < total else f"computing metrics of {total} images"
                self._say_if_due(f"epoch {epoch}/{self._num_epochs}: {what}")
            case StepSkipped(facts):
                self._write("step_skipped", **facts)
                images = [Path(image).name for image in facts["images"]]
                named = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
                self.say(
                    f"epoch {facts['epoch']}, batch {facts['batch']}: {facts['not_finite']} is not finite; the step "
                    f"was not taken. Its {len(images)} images ({named}) are listed in skipped.jsonl"
                )
            case EpochDone(epoch, row, _, improved):
                self._current = None
                self._write("epoch", epoch=epoch, num_epochs=self._num_epochs, improved=improved, metrics=row)
                score = row.get("val/map", math.nan)
                if improved and not math.isnan(score):
                    self._best = f"best so far: mAP {score:.4f} at epoch {epoch}"
                self._print_header_if_due()
                self.say(self._table.row(event, self._seconds_left))
                self._rows_since_header += 1
            case _:
                self._current = None
                known = event.best_epoch is not None
                self._write("run_finished", **asdict(event) | {"best_map": event.best_map if known else math.nan})
                best = f"best mAP {event.best_map:.4f} at epoch {event.best_epoch}" if known else "no mAP is known"
                self._print(f"done ({event.reason}) in {clock(event.seconds)}: {best}")
                self.say("writing plots, pictures and the report ...")

    def concluding(self, verb: str, done: int, total: int) -> None:
        """How far a pass over the images of val is, after the last epoch; verb: "measured"."""
        self._say_if_due(f"{verb} {done} of {total} val images")

    def bottom(self) -> Text:
        """The lines that are redrawn at the bottom of a terminal: images being decoded, or the unfinished epoch."""
        from anchorite.train import StepDone, StoreProgress

        text = Text(no_wrap=True, overflow="crop")
        match self._current:
            case StoreProgress(split, done, total):
                what, note = f"decoding {split} ", f"{done}/{total} images"
                cells = min(40, self._table.width - len(what) - len(note) - 2)
                text.append(what)
                if cells >= _FEWEST_CELLS:
                    text.append_text(self._table.bar(done / total, cells)).append(" ")
                text.append(note)
            case StepDone():
                text.append_text(self._table.running(self._current, self._num_batches))
                if self._best:
                    text.append(f"\n{self._best}", style="dim")
        return text

    def _say_if_due(self, text: str, is_due: bool = False) -> None:
        """Print a line on progress into a log that was silent for long, or where one is due anyway."""
        if (self._pace.is_due() or is_due) and self._console is None:
            self.say(text)

    def _print(self, text: str | Text) -> None:
        # A log is not printed by rich, which ends the process where its output is no longer read.
        if self._console is not None:
            self._console.print(text, markup=False)
        elif self._prints_text:
            print(text)
            self._pace.said()

    def _print_header_if_due(self) -> None:
        """At first, where columns have changed, and on a terminal before the header scrolls out of sight."""
        columns = self._table.columns()
        most = math.inf if self._console is None else max(5, min(_MOST_ROWS, self._console.height - 6))
        if columns != self._header or self._rows_since_header >= most:
            self.say(self._table.header())
            self._header, self._rows_since_header = columns, 0

    def _write(self, event: str, **facts: Any) -> None:
        if self._writes_json:
            write_line(event, **facts)

    def _is_due(self, is_last: bool) -> bool:
        now = time.monotonic()
        is_due = is_last or now - self._json_written_at >= _SECONDS_BETWEEN
        if is_due:
            self._json_written_at = now
        return is_due


@contextmanager
def counting(verb: str, shown: bool = True, in_logs: bool = True) -> Iterator[Callable[..., None]]:
    """What to call with (images done, images in all) during a pass over images; verb: "decoded".

    A bar on a terminal; elsewhere a line at each quarter, and at least every 30 seconds. A second pass is shown by
    calling with its verb as third argument. shown: False for nothing at all; in_logs: False for nothing where stdout is
    no terminal.
    """
    is_bar = shown and sys.stdout.isatty()
    are_lines = shown and in_logs and not is_bar
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} images"))
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    with Progress(*columns, console=console, transient=True, disable=not is_bar) as bar:
        task, pace = bar.add_task(verb, total=0), Pace()

        def count(done: int, total: int, verb: str = verb) -> None:
            bar.update(task, description=verb, completed=done, total=total)
            if (pace.is_due() or is_quarter(done, total)) and are_lines:
                print(f"{verb} {done} of {total} images")
                pace.said()

        yield count


def is_quarter(done: int, total: int) -> bool:
    """Whether one more image completes a quarter of a pass that is long enough to be reported."""
    return total >= _FEWEST_REPORTED and 4 * done // total > 4 * (done - 1) // total


def data_lines(dataset: DatasetIndex, overview: Overview, without: str = "") -> list[str]:
    """Path, format and number of classes; what each split holds; what was found wrong. without: how kinds of findings
    begin that are not told."""
    classes = f"{len(dataset.class_names)} class{'' if len(dataset.class_names) == 1 else 'es'}"
    if dataset.ignored_classes:
        classes += f"; ignored: {one_line(', '.join(dataset.ignored_classes))}"
    if dataset.scores != "ignore":
        classes += "; scores are weights"
    told = [one for one in overview.told if not (without and one.kind.startswith(without))]
    return [f"data: {dataset.root} ({dataset.format}), {classes}", *replace(overview, told=tuple(told)).lines()]


def dataset_facts(dataset: DatasetIndex, overview: Overview) -> dict[str, Any]:
    """Path, format, classes, counts of splits and of adjustments, and what was found wrong."""
    splits = {
        one.split: {
            "images": one.images,
            "boxes": one.boxes + one.ignored,
            "boxes_to_learn": one.boxes,
            "boxes_ignored": one.ignored,
            "boxes_weighted": one.weighted,
            "mean_weight": one.mean_weight,
            "images_without_labels": one.empty_images,
            "images_left_out": dict(one.left_out),
        }
        for one in overview.balances
    }
    return {
        "path": dataset.root,
        "format": dataset.format,
        "class_names": dataset.class_names,
        "splits": splits,
        "sources": [asdict(one) for one in overview.sources],
        "adjustments": count_adjustments(dataset),
        "findings": [one._asdict() for one in overview.told],
    }


def count_adjustments(dataset: DatasetIndex) -> dict[str, int]:
    """How many adjustments of each kind reading made."""
    return dict(Counter(one.kind for one in dataset.adjustments))


def split_counts(dataset: DatasetIndex) -> str:
    """Images and boxes of each split."""
    return ", ".join(f"{name} {len(one)} images / {one.num_boxes()} boxes" for name, one in dataset.splits.items())


def write_line(event: str, **facts: Any) -> None:
    """Print one JSON object and flush; what is not finite becomes null, a path its text."""
    print(json.dumps({"event": event, **_finite(facts)}, allow_nan=False, default=str), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as on a clock."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
