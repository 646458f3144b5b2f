"""Small line charts: numbers in, SVG path data and ticks out; templates/chart.html.j2 draws them.

Legend: E values of a line. Chart coordinates run right and down from the corner of the view box.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHART_WIDTH, CHART_HEIGHT = 320, 170
PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM = 46, 10, 312, 148
_X_ENDS, _Y_ENDS = (PLOT_LEFT + 4, PLOT_RIGHT - 4), (PLOT_BOTTOM, PLOT_TOP)
_NUM_COLOURS = 8  # of the style sheet; further lines repeat them, dashed
_MAX_POINTS, _MAX_POINTS_BRIEF = 600, 60  # the first is twice what the chart has pixels
_MAX_MAGNITUDE = 1e100  # differences of larger values overflow; they are shown as gaps
Values = NDArray[np.float64]
Tick = tuple[float, str]  # where it is, in chart coordinates, and its label


@dataclass(frozen=True, slots=True)
class Line:
    """A name, and E values over xs; a value that is not finite is a gap. note: shown beside the name."""

    name: str
    xs: Sequence[float]
    values: Sequence[float]
    note: str = ""
    strong: bool = False


class Stroke(NamedTuple):
    """A line as drawn: name and note for the legend, class names of its style, and SVG path data, broken at gaps."""

    name: str
    note: str
    style: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one pair of axes; without strokes where no line has a number.

    last: of a single line, the newest value as text. best: of a single line, the marked point (x, y). hover: JSON for
    chart.js, which shows values under the pointer: [x, label] pairs, and for each line its name and [y, value] pairs
    (null where there is no number); empty for none.
    """

    title: str
    note: str
    last: str = ""
    strokes: tuple[Stroke, ...] = ()
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    best: tuple[float, float] | None = None
    hover: str = ""


def make_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str = "epoch",
    note: str = "",
    y_range: tuple[float, float] | None = None,
    mark_highest: bool = False,
    brief: bool = False,
) -> Chart:
    """Chart the lines over the range of all their xs.

    y_range: low and high end of the vertical axis, cut into five; by default those of the values. mark_highest: mark
    the best of a single line. brief: fewer points and no values on hovering, for a page of many charts.
    """
    series = [(np.asarray(line.xs, np.float64), np.asarray(line.values, np.float64)) for line in lines]
    series = [(x, np.where(np.abs(y) < _MAX_MAGNITUDE, y, np.nan)) for x, y in series]
    shown_xs = np.concatenate([x[np.isfinite(y)] for x, y in series])
    shown_ys = np.concatenate([y[np.isfinite(y)] for _, y in series])
    is_single = len(lines) == 1
    num_gaps = len(series[0][1]) - len(shown_ys) if is_single else 0
    gaps = f"{num_gaps} without a number" if num_gaps else ""
    if not len(shown_ys):
        return Chart(title, gaps or "no epoch yet", "-")
    x_low, x_high = float(shown_xs.min()), float(shown_xs.max())
    x_marks = np.array([x_low])
    if x_high > x_low:
        step = max(1.0 if x_name.startswith("epoch") else 0.0, _round_step((x_high - x_low) / 5))
        x_marks = np.arange(math.ceil(x_low / step - 1e-9), math.floor(x_high / step + 1e-9) + 1) * np.float64(step)
    y_marks = np.linspace(*y_range, 6) if y_range else _round_marks(float(shown_ys.min()), float(shown_ys.max()))
    x_scale, y_scale = (x_low, x_high, *_X_ENDS), (float(y_marks[0]), float(y_marks[-1]), *_Y_ENDS)
    places = [(_scaled(x, *x_scale), _scaled(np.nan_to_num(y), *y_scale)) for x, y in series]
    best, best_note = None, ""
    if mark_highest and is_single:
        (x, y), (x_places, y_places) = series[0], places[0]
        top = int(np.nanargmax(y))
        best = float(x_places[top]), float(y_places[top])
        best_note = f"best {format_number(y[top])} at {x_name} {format_number(x[top])}"
    strokes = []
    for number, (line, (_, y), (x_places, y_places)) in enumerate(zip(lines, series, places, strict=True)):
        style = "strong" if line.strong else "" if is_single else line_style(number)
        path = _path(x_places, y_places, np.isfinite(y), _MAX_POINTS_BRIEF if brief else _MAX_POINTS)
        strokes.append(Stroke(line.name, line.note, style, path))
    return Chart(
        title=title,
        note=", ".join(filter(None, [note, best_note, gaps])),
        last=format_number(shown_ys[-1]) if is_single else "",
        strokes=tuple(strokes),
        x_ticks=_ticks(x_marks, x_scale),
        y_ticks=_ticks(y_marks, y_scale),
        best=best,
        hover="" if brief else _hover_json(x_name, lines, series, [y for _, y in places], x_scale),
    )


def format_number(value: float) -> str:
    """A number for people: whole ones whole, others to four digits, "-" where there is none."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.4g}"


def decimals(value: Any) -> str:
    """A score to four decimals, "-" where there is none."""
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def line_style(number: int) -> str:
    """The class names, in the style sheet, of one of several lines."""
    return f"c{number % _NUM_COLOURS}" + (" dashed" if number >= _NUM_COLOURS else "")


def _hover_json(
    x_name: str,
    lines: Sequence[Line],
    series: Sequence[tuple[Values, Values]],
    y_places: Sequence[Values],
    x_scale: tuple[float, float, float, float],
) -> str:
    at = np.unique(np.concatenate([x[_thinned(np.nan_to_num(y), _MAX_POINTS)] for x, y in series]))
    at = at[:: max(1, len(at) // _MAX_POINTS)]
    named: list[tuple[str, list[tuple[float, str] | None]]] = []
    for line, (x, y), places in zip(lines, series, y_places, strict=True):
        values: list[tuple[float, str] | None] = [None] * len(at)
        for index in np.flatnonzero(np.isin(x, at) & np.isfinite(y)).tolist():
            values[int(np.searchsorted(at, x[index]))] = float(places[index]), format_number(y[index])
        named.append((line.name, values))
    content = {"x": x_name, "at": _ticks(at, x_scale), "lines": named}
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _round_marks(low: float, high: float) -> Values:
    """Three to seven evenly spaced round numbers; the first is <= low, the last >= high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return np.arange(first, last + 1, dtype=np.float64) * np.float64(step)


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is >= rough."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _ticks(marks: Values, scale: tuple[float, float, float, float]) -> tuple[Tick, ...]:
    return tuple((float(at), format_number(mark)) for mark, at in zip(marks, _scaled(marks, *scale), strict=True))


def _scaled(values: Values, low: float, high: float, start: float, end: float) -> Values:
    """Map low..high to start..end, to a tenth of a unit; into the middle where low is high."""
    shares = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    places: Values = np.round(start + shares * (end - start), 1)
    return places


def _path(xs: Values, ys: Values, shown: NDArray[np.bool_], max_points: int) -> str:
    """SVG path data through the shown points; a lone point becomes a stroke of no length, which round caps draw."""
    breaks = np.flatnonzero(np.diff(np.concatenate([[False], shown, [False]]).astype(np.int8)))
    parts = []
    for start, end in breaks.reshape(-1, 2).tolist():
        pairs = [f"{xs[i]:g},{ys[i]:g}" for i in (start + _thinned(ys[start:end], max_points)).tolist()]
        parts.append("M" + " L".join(pairs if len(pairs) > 1 else pairs * 2))
    return " ".join(parts)


def _thinned(ys: Values, max_points: int) -> NDArray[np.int64]:
    """Indices to draw: all of them, or of a long series the lowest and highest of each stretch, so that peaks stay."""
    if len(ys) <= max_points:
        return np.arange(len(ys))
    stretches = np.array_split(np.arange(len(ys)), max_points // 2)
    extremes = [s[i] for s in stretches for i in (int(ys[s].argmin()), int(ys[s].argmax()))]
    return np.unique(np.array([0, *extremes, len(ys) - 1]))
