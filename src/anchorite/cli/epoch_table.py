"""The lines of epochs: as a log has them, and as columns that fit a terminal of any width."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.text import Text

LOG_HEADER = (
    f"{'epoch':>9} {'box':>8} {'object':>8} {'class':>8} {'img/s':>7} {'mAP50':>7} {'mAP':>7} {'best':>5}  left"
)
_WIDTHS = {
    "epoch": 9, "box": 8, "object": 8, "class": 8, "img/s": 7, "mAP50": 7, "mAP75": 7, "mAP": 7, "best": 5, "left": 8
}  # fmt: skip
# From the one that is missed most to the one that is missed least: those at the end go first where it is narrow.
_BY_WEIGHT = ("epoch", "mAP", "best", "left", "mAP50", "box", "object", "class", "img/s", "mAP75")
_CHART = "mAP, 0 to 1"  # a bar that grows: how it goes, at a glance, where there is room for it
_CHART_WIDTHS = (15, 40)
_FEWEST_CELLS = 6  # of a bar that says anything


@dataclass(frozen=True)
class EpochLine:
    """What is shown of an epoch that is over; nan where there is nothing to measure. seconds_left: of the run."""

    epoch: int
    num_epochs: int
    box: float
    objectness: float
    classification: float
    images_per_second: float
    map50: float
    map75: float
    map_all: float
    improved: bool
    seconds_left: float

    @property
    def is_best(self) -> bool:
        """Whether it has the best mAP so far; without any mAP nothing is the best."""
        return self.improved and not math.isnan(self.map_all)


@dataclass(frozen=True)
class RunningEpoch:
    """What is shown of an epoch while it goes on; losses are means over its batches so far."""

    epoch: int
    num_epochs: int
    batch: int
    num_batches: int
    box: float
    objectness: float
    classification: float
    images_per_second: float
    seconds_left: float


def log_line(line: EpochLine) -> str:
    """The epoch under LOG_HEADER."""
    return (
        f"{line.epoch:4d}/{line.num_epochs:<4d} {line.box:8.4f} {line.objectness:8.4f} "
        f"{line.classification:8.4f} {line.images_per_second:7.1f} {_score(line.map50):>7} {_score(line.map_all):>7} "
        f"{'*' if line.improved else '':>5}  {clock(line.seconds_left)}"
    )


class EpochTable:
    """Rows for a terminal: as many columns as fit, the most important ones first.

    encoding: of the terminal; one without box-drawing characters gets plain ones.
    """

    def __init__(self, encoding: str, num_epochs: int = 1) -> None:
        self._full, self._empty = ("\u2501", "\u2500") if encoding.lower().startswith("utf") else ("#", "-")
        self._widths = _WIDTHS | {"epoch": max(7, 2 * len(str(num_epochs)) + 1)}

    def columns(self, width: int) -> tuple[str, ...]:
        """The columns that fit into so many characters, in their order."""
        chosen: list[str] = []
        for name in _BY_WEIGHT:
            if self._width_of([*chosen, name]) > width:
                break
            chosen.append(name)
        return tuple(name for name in _WIDTHS if name in chosen)

    def header(self, width: int) -> Text:
        """The names of the columns."""
        cells = [f"{name:>{self._widths[name]}}" for name in self.columns(width)]
        if self._chart_width(width):
            cells.append(f" {_CHART:<{self._chart_width(width) - 1}}")
        return Text(" ".join(cells), style="bold underline", no_wrap=True)

    def row(self, line: EpochLine, width: int) -> Text:
        """An epoch that is over; one that is the best so far is bold, green and says so."""
        values = self._known(line) | {
            "mAP50": _score(line.map50),
            "mAP75": _score(line.map75),
            "mAP": _score(line.map_all),
            "best": "best" if line.is_best else "",
            "left": clock(line.seconds_left),
        }
        text = Text(no_wrap=True, style="bold green" if line.is_best else "")
        text.append(" ".join(f"{values[name]:>{self._widths[name]}}" for name in self.columns(width)))
        cells = self._chart_width(width)
        if cells and not math.isnan(line.map_all):
            text.append("  ").append_text(self._bar(line.map_all, cells - 1))
        return text

    def running(self, epoch: RunningEpoch, width: int) -> Text:
        """An epoch that goes on: losses in their columns, and where its scores will be, how far it is."""
        columns = self.columns(width)
        known = self._known(epoch)
        first = [name for name in columns if name in known]
        text = Text(" ".join(f"{known[name]:>{self._widths[name]}}" for name in first), no_wrap=True)
        left = clock(epoch.seconds_left)
        last = f" {left:>{self._widths['left']}}" if "left" in columns else ""
        is_over = epoch.batch >= epoch.num_batches
        note = "validating" if is_over else f"{epoch.batch}/{epoch.num_batches}"
        cells = self._width_of(columns) - self._width_of(first) - len(last) - len(note) - 4
        text.append(f"  {note}")
        if cells >= _FEWEST_CELLS and not is_over:
            text.append("  ").append_text(self._bar(epoch.batch / epoch.num_batches, cells))
        else:
            text.append(" " * max(0, cells + 2))
        return text.append(last)

    def bar_line(self, what: str, share: float, note: str, width: int) -> Text:
        """A bar between what it is of and a note."""
        cells = min(40, width - len(what) - len(note) - 3)
        text = Text(what, no_wrap=True)
        if cells >= _FEWEST_CELLS:
            text.append(" ").append_text(self._bar(share, cells))
        return text.append(f" {note}")

    def _known(self, epoch: EpochLine | RunningEpoch) -> dict[str, str]:
        """The columns that an epoch has from its first batch on."""
        return {
            "epoch": f"{epoch.epoch}/{epoch.num_epochs}",
            "box": f"{epoch.box:.4f}",
            "object": f"{epoch.objectness:.4f}",
            "class": f"{epoch.classification:.4f}",
            "img/s": f"{epoch.images_per_second:.1f}",
        }

    def _width_of(self, names: list[str] | tuple[str, ...]) -> int:
        return sum(self._widths[name] for name in names) + len(names) - 1

    def _chart_width(self, width: int) -> int:
        """Cells for the chart of mAP behind the columns, with the space before it; 0 where there is no room."""
        spare = width - self._width_of(self.columns(width)) - 2
        return min(_CHART_WIDTHS[1], spare) if spare >= _CHART_WIDTHS[0] else 0

    def _bar(self, share: float, cells: int) -> Text:
        full = round(min(1.0, max(0.0, share)) * cells)
        return Text(self._full * full, style="bold").append(self._empty * (cells - full), style="dim")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as on a clock."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
