"""What commands show: the course of a training run, for people or as JSON lines, and how far a pass over images is."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from anchorite.cli import RESUME_HINT

if TYPE_CHECKING:
    from anchorite.cli.options import OutputOptions
    from anchorite.data import DatasetIndex
    from anchorite.train import EpochDone, Event, RunFinished, StepDone, StepSkipped, StoreProgress

_FEWEST_REPORTED = 200  # images: a pass over fewer is done before a line would be read
_SECONDS_BETWEEN = 1.0  # JSON lines on steps and on decoded images
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
    """Rows of epochs with as many columns as fit, the most important ones first.

    encoding: of the terminal; without box-drawing characters bars are of # and -. best_mark: shown beside the best mAP.
    """

    def __init__(self, encoding: str, num_epochs: int = 1, best_mark: str = "best") -> None:
        self._full, self._empty = ("\u2501", "\u2500") if encoding.lower().startswith("utf") else ("#", "-")
        self._num_epochs, self._best_mark = num_epochs, best_mark
        self._widths = _WIDTHS | {"epoch": max(7, 2 * len(str(num_epochs)) + 1)}

    def columns(self, width: int) -> tuple[str, ...]:
        """The columns that fit into so many characters, in their order."""
        chosen: list[str] = []
        for name in _BY_IMPORTANCE:
            if self._width_of([*chosen, name]) > width:
                break
            chosen.append(name)
        return tuple(name for name in _WIDTHS if name in chosen)

    def header(self, width: int) -> Text:
        """The names of the columns."""
        cells = [f"{name:>{self._widths[name]}}" for name in self.columns(width)]
        if chart := self._chart_width(width):
            cells.append(f" {_CHART:<{chart - 1}}")
        return Text(" ".join(cells), style="bold underline", no_wrap=True)

    def row(self, event: EpochDone, seconds_left: float, width: int) -> Text:
        """An epoch that is over; the one with the best mAP so far is marked, bold and green."""
        scores = {name: event.row.get(f"val/{name.lower()}", math.nan) for name in ("mAP50", "mAP75", "mAP")}
        is_best = event.improved and not math.isnan(scores["mAP"])
        losses = [event.row[f"train/{name}"] for name in ("box", "objectness", "classification")]
        values = self._values(event.epoch, losses, event.row["images_per_second"]) | {
            **{name: "-" if math.isnan(score) else f"{score:.4f}" for name, score in scores.items()},
            "best": self._best_mark if is_best else "",
            "left": clock(seconds_left),
        }
        text = Text(no_wrap=True, style="bold green" if is_best else "")
        text.append(" ".join(f"{values[name]:>{self._widths[name]}}" for name in self.columns(width)))
        if (chart := self._chart_width(width)) and not math.isnan(scores["mAP"]):
            text.append("  ").append_text(self.bar(scores["mAP"], chart - 1))
        return text

    def running(self, event: StepDone, num_batches: int, width: int) -> Text:
        """An unfinished epoch: losses in their columns, and how far it is where its scores will be."""
        columns = self.columns(width)
        losses = [event.box, event.objectness, event.classification]
        values = self._values(event.epoch, losses, event.images_per_second)
        first = [name for name in columns if name in values]
        text = Text(" ".join(f"{values[name]:>{self._widths[name]}}" for name in first), no_wrap=True)
        last = f" {clock(event.seconds_left):>{self._widths['left']}}" if "left" in columns else ""
        is_over = event.batch >= num_batches
        note = "validating" if is_over else f"{event.batch}/{num_batches}"
        cells = self._width_of(columns) - self._width_of(first) - len(last) - len(note) - 4
        text.append(f"  {note}")
        if cells >= _FEWEST_CELLS and not is_over:
            text.append("  ").append_text(self.bar(event.batch / num_batches, cells))
        else:
            text.append(" " * max(0, cells + 2))
        return text.append(last)

    def bar(self, share: float, cells: int) -> Text:
        """A bar of so many characters, filled to a share."""
        full = round(min(1.0, max(0.0, share)) * cells)
        return Text(self._full * full, style="bold").append(self._empty * (cells - full), style="dim")

    def _values(self, epoch: int, losses: Sequence[float], images_per_second: float) -> dict[str, str]:
        named = zip(("box", "object", "class"), (f"{loss:.4f}" for loss in losses), strict=True)
        return {"epoch": f"{epoch}/{self._num_epochs}", **dict(named), "img/s": f"{images_per_second:.1f}"}

    def _width_of(self, names: Sequence[str]) -> int:
        return sum(self._widths[name] for name in names) + len(names) - 1

    def _chart_width(self, width: int) -> int:
        spare = width - self._width_of(self.columns(width)) - 2
        return min(_CHART_WIDTHS[1], spare) if spare >= _CHART_WIDTHS[0] else 0


class TextDisplay:
    """A run in words and a table: lines of plain text in a file or a pipe, and more on a terminal.

    On a terminal finished epochs scroll away as any output does; below them the unfinished one is redrawn, so that
    hundreds of epochs cost no more than one. What a colour says, a word says too. quiet: results alone, plain.
    console: by default the one of stdout, if that is a terminal.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        if console is None and sys.stdout.isatty() and not quiet:
            console = Console(highlight=False, soft_wrap=True, emoji=False)
        self.run_folder: Path | None = None  # known when the run has started
        self._quiet, self._console = quiet, console
        self._num_batches, self._seconds_left = 0, 0.0
        self._best = ""
        self._draw: Callable[[int], list[Text]] | None = None  # the lines at the bottom, for a width
        self._columns: tuple[str, ...] = ()
        self._rows_since_header = 0
        self._table = self._new_table(1)
        self._live = None if console is None else Live(
            console=console, get_renderable=self.bottom, refresh_per_second=_REDRAWS_PER_SECOND, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> TextDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._draw = None
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line on the course of the run."""
        if not self._quiet:
            self._result(text)

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Advice for a first run and the command to type, on a terminal only: a log holds facts."""
        if self._console is not None:
            self._console.print(Text(f"hint: {sentence}", style="italic"), soft_wrap=False)
            if command is not None:
                self._console.print(f"      {command}", markup=False, style="bold")

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
        self._result(f"weights: {weights}")
        self._result(f"report:  {folder / 'report.html'}")
        self.say(f"use it:  anchorite predict {shlex.quote(str(weights))} IMAGES")

    def __call__(self, event: Event) -> None:
        from anchorite.train import EpochDone, RunStarted, StepDone, StepSkipped, StoreProgress

        match event:
            case StepDone():
                self._step(event)
            case EpochDone():
                self._epoch(event)
            case StepSkipped():
                self._skipped(event)
            case StoreProgress():
                self._decoding(event)
            case RunStarted():
                self.run_folder, self._num_batches = event.folder, event.num_batches
                for decision in event.decisions:
                    self.say(decision)
                self.say(f"run: {event.folder}, epochs {event.first_epoch + 1} to {event.num_epochs}")
                self._table, self._columns = self._new_table(event.num_epochs), ()
            case _:
                self._finish(event)

    def bottom(self) -> RenderableType:
        """The lines that are redrawn at the bottom of a terminal."""
        lines = self._draw(self._width) if self._draw is not None else []
        return Text("\n", no_wrap=True, overflow="crop").join(lines)

    @property
    def _width(self) -> int:
        return _LOG_WIDTH if self._console is None else self._console.width

    def _new_table(self, num_epochs: int) -> EpochTable:
        if self._console is None:
            return EpochTable("ascii", num_epochs, best_mark="*")
        return EpochTable(self._console.encoding, num_epochs)

    def _result(self, text: str | Text) -> None:
        # A log is not printed by rich, which ends the process where its output is no longer read.
        if self._console is None:
            print(text)
        else:
            self._console.print(text, markup=False)

    def _decoding(self, event: StoreProgress) -> None:
        done, total = event.num_done, event.num_images
        if self._console is None:
            if is_quarter(done, total):
                self.say(f"decoded {done} of {total} {event.split} images")
            return
        what, note = f"decoding {event.split}", f"{done}/{total} images"

        def draw(width: int) -> list[Text]:
            cells = min(40, width - len(what) - len(note) - 3)
            bar = self._table.bar(done / total, cells).append(" ") if cells >= _FEWEST_CELLS else ""
            return [Text(f"{what} ", no_wrap=True).append(bar).append(note)]

        self._draw = draw if done < total else None

    def _step(self, event: StepDone) -> None:
        self._seconds_left = event.seconds_left
        if self._console is None:
            return
        self._header_if_due()

        def draw(width: int) -> list[Text]:
            best = [Text(self._best, style="dim")] if self._best else []
            return [self._table.running(event, self._num_batches, width), *best]

        self._draw = draw

    def _epoch(self, event: EpochDone) -> None:
        self._draw = None
        score = event.row.get("val/map", math.nan)
        if event.improved and not math.isnan(score):
            self._best = f"best so far: mAP {score:.4f} at epoch {event.epoch}"
        self._header_if_due()
        if not self._quiet:
            self._result(self._table.row(event, self._seconds_left, self._width))
        self._rows_since_header += 1

    def _skipped(self, event: StepSkipped) -> None:
        facts, images = event.facts, event.facts["images"]
        named = ", ".join(Path(image).name for image in images[:3]) + (", ..." if len(images) > 3 else "")
        self.say(
            f"epoch {facts['epoch']}, batch {facts['batch']}: {facts['not_finite']} is not finite; the step was not "
            f"taken. Its {len(images)} images ({named}) are listed in skipped.jsonl"
        )

    def _finish(self, event: RunFinished) -> None:
        self._draw = None
        known = event.best_epoch is not None
        best = f"best mAP {event.best_map:.4f} at epoch {event.best_epoch}" if known else "no mAP is known"
        self._result(f"done ({event.reason}) in {clock(event.seconds)}: {best}")
        self.say("writing plots, pictures and the report ...")

    def _header_if_due(self) -> None:
        """Print the header: at first, where columns have changed, and on a terminal before it scrolls out of sight."""
        columns = self._table.columns(self._width)
        most = math.inf if self._console is None else max(5, min(_MOST_ROWS, self._console.height - 6))
        if columns != self._columns or self._rows_since_header >= most:
            if not self._quiet:
                self._result(self._table.header(self._width))
            self._columns, self._rows_since_header = columns, 0


class JsonDisplay:
    """A run as JSON lines, each with its `event`, all of them listed in docs/command-line.md. write: takes one."""

    def __init__(self, write: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        self.run_folder: Path | None = None  # known when the run has started
        self._write = write or write_line
        self._num_batches = self._num_epochs = 0
        self._written_at = -math.inf

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def say(self, text: str) -> None:
        """Nothing: sentences are for people."""

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Nothing."""

    def dataset(self, dataset: DatasetIndex) -> None:
        """What was read, and how much of it reading has adjusted."""
        self._write("data", dataset_facts(dataset))

    def finished(self, folder: Path) -> None:
        """Where the results are, when all of them are written."""
        names = {"best_weights": "best.safetensors", "last_weights": "last.safetensors", "report": "report.html"}
        self._write("finished", {"folder": folder, **{key: folder / name for key, name in names.items()}})

    def __call__(self, event: Event) -> None:
        """One line an event; of steps and of decoded images at most one a second."""
        from anchorite.train import EpochDone, RunStarted, StepDone, StepSkipped, StoreProgress

        match event:
            case StoreProgress():
                if self._is_due(event.num_done == event.num_images):
                    facts = {"split": event.split, "done": event.num_done, "images": event.num_images}
                    self._write("decoding", facts)
            case RunStarted():
                self.run_folder = event.folder
                self._num_batches, self._num_epochs = event.num_batches, event.num_epochs
                facts = {"folder": event.folder, "first_epoch": event.first_epoch + 1, "num_epochs": event.num_epochs}
                facts |= {"num_batches": event.num_batches, "decisions": list(event.decisions)}
                self._write("run_started", facts)
            case StepDone():
                if self._is_due(event.batch == self._num_batches):
                    names = ("box", "objectness", "classification", "images_per_second", "seconds_left")
                    counts = {"epoch": event.epoch, "batch": event.batch, "num_batches": self._num_batches}
                    self._write("step", counts | {name: getattr(event, name) for name in names})
            case StepSkipped():
                self._write("step_skipped", event.facts)
            case EpochDone():
                counts = {"epoch": event.epoch, "num_epochs": self._num_epochs}
                self._write("epoch", {**counts, "improved": event.improved, "metrics": event.row})
            case _:
                facts = {"folder": event.folder, "reason": event.reason, "best_epoch": event.best_epoch}
                facts |= {"best_map": math.nan if event.best_epoch is None else event.best_map}
                facts |= {"seconds": event.seconds}
                self._write("run_finished", facts)

    def _is_due(self, is_last: bool) -> bool:
        now = time.monotonic()
        if not is_last and now - self._written_at < _SECONDS_BETWEEN:
            return False
        self._written_at = now
        return True


Display = TextDisplay | JsonDisplay


def choose_display(output: OutputOptions, is_main: bool = True) -> Display:
    """As asked for; on other ranks than the first one that shows nothing. InputError for --quiet with --json-lines."""
    output.check()
    if not is_main:
        return JsonDisplay(lambda event, facts: None)
    return JsonDisplay() if output.json_lines else TextDisplay(output.quiet)


@contextmanager
def resume_hint(display: Display) -> Iterator[None]:
    """Add to whatever ends a started run from outside how to resume it."""
    from anchorite.errors import StorageError, WorkerError

    try:
        yield
    except (KeyboardInterrupt, StorageError, WorkerError, OSError, RuntimeError) as error:  # the last: lost ranks
        if display.run_folder is not None:
            error.add_note(f"{RESUME_HINT} anchorite train --resume {shlex.quote(str(display.run_folder))}")
        raise


@contextmanager
def counting(verb: str, shown: bool = True, in_logs: bool = True) -> Iterator[Callable[..., None]]:
    """What to call with (images done, images in all) during a pass over images; verb: "decoded".

    A bar on a terminal, a line at each quarter elsewhere. A second pass is shown by calling with its verb as third
    argument. shown: False for nothing at all; in_logs: False for nothing where stdout is no terminal.
    """
    is_bar = shown and sys.stdout.isatty()
    are_lines = shown and in_logs and not is_bar
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=True, disable=not is_bar) as bar:
        task = bar.add_task(verb, note="")

        def count(done: int, total: int, verb: str = verb) -> None:
            bar.update(task, description=verb, completed=done, total=total, note=f"{done}/{total} images")
            if are_lines and is_quarter(done, total):
                print(f"{verb} {done} of {total} images")

        yield count


def is_quarter(done: int, total: int) -> bool:
    """Whether one more image completes a quarter of a pass that is long enough to be reported."""
    return total >= _FEWEST_REPORTED and 4 * done // total > 4 * (done - 1) // total


def hint(sentence: str, command: str) -> None:
    """The next command, for a person at a terminal; nothing in a log, which holds facts."""
    if sys.stdout.isatty():
        print(f"hint: {sentence}\n      {command}")


def dataset_line(dataset: DatasetIndex) -> str:
    """Path, format, classes, and what is in each split."""
    return f"{dataset.root} ({dataset.format}), {len(dataset.class_names)} classes; {split_counts(dataset)}"


def split_counts(dataset: DatasetIndex) -> str:
    """Images and boxes of each split."""
    splits = dataset_facts(dataset)["splits"]
    return ", ".join(f"{name} {of['images']} images / {of['boxes']} boxes" for name, of in splits.items())


def dataset_facts(dataset: DatasetIndex) -> dict[str, Any]:
    """Path, format, classes, counts of splits and of adjustments."""
    counts = {name: {"images": len(one), "boxes": one.num_boxes()} for name, one in dataset.splits.items()}
    return {
        "path": dataset.root,
        "format": dataset.format,
        "class_names": list(dataset.class_names),
        "splits": counts,
        "adjustments": dict(Counter(one.kind for one in dataset.adjustments)),
    }


def write_line(event: str, facts: Mapping[str, Any]) -> None:
    """Print one JSON object and flush; what is not finite becomes null, a path its text."""
    print(json.dumps({"event": event, **_plain(dict(facts))}, allow_nan=False), flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as on a clock."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
