"""The geometry of small line charts: numbers in, SVG path data and ticks out; templates/curve.html.j2 draws it.

Legend: E epochs, the rows of metrics.csv. Chart coordinates run right and down from the corner of the view box.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHART_WIDTH, CHART_HEIGHT = 320, 170
PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM = 46, 10, 312, 148

MAX_POINTS, _MAX_POINTS_BRIEF = 600, 60  # the first is twice what the chart has pixels
MAX_MAGNITUDE = 1e100  # beyond, differences overflow; such a value says no more than a gap does


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, `at` in chart coordinates."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the curve."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One chart. last: the newest value as text. path: SVG path data, broken at gaps. best: the marked point.

    hover: JSON for chart.js, which shows values under the pointer: [x, epoch] pairs, and for each line its name and
    [y, value] pairs (null where there is no number); empty for none.
    """

    title: str
    last: str
    note: str
    path: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    best: Point | None
    hover: str


def make_curve(
    title: str, epochs: Sequence[float], values: Sequence[float], *, mark_highest: bool = False, brief: bool = False
) -> Curve:
    """Chart E values over E epochs; values that are not finite are gaps.

    mark_highest: mark the best of a score. brief: fewer points and no words on hovering, for a page of many charts.
    """
    shown = np.abs(values) < MAX_MAGNITUDE  # false for nan, too
    num_gaps = int((~shown).sum())
    gaps = f"{num_gaps} without a number" if num_gaps else ""
    if not shown.any():
        return Curve(title, "-", gaps or "no epoch yet", "", (), (), None, "")
    abscissae = np.asarray(epochs, dtype=np.float64)
    ordinates = np.where(shown, values, 0.0)
    y_marks = round_marks(ordinates[shown].min(), ordinates[shown].max())
    first, last = abscissae[shown].min(), abscissae[shown].max()
    xs = scaled(abscissae, first, last, PLOT_LEFT + 4, PLOT_RIGHT - 4)
    ys = scaled(ordinates, y_marks[0], y_marks[-1], PLOT_BOTTOM, PLOT_TOP)
    indices = np.flatnonzero(shown)
    best = int(indices[ordinates[indices].argmax()]) if mark_highest else None
    best_note = ""
    if best is not None:
        best_note = f"best {format_number(ordinates[best])} at epoch {format_number(abscissae[best])}"
    kept = thinned(ys, MAX_POINTS)
    hover = (
        "" if brief else hover_data("epoch", abscissae[kept], xs[kept], [(title, values_at(values, kept), ys[kept])])
    )
    return Curve(
        title=title,
        last=format_number(ordinates[indices[-1]]),
        note=", ".join(filter(None, (best_note, gaps))),
        path=path_data(xs, ys, shown, _MAX_POINTS_BRIEF if brief else MAX_POINTS),
        x_ticks=epoch_ticks(first, last),
        y_ticks=make_ticks(y_marks, y_marks[0], y_marks[-1], PLOT_BOTTOM, PLOT_TOP),
        best=None if best is None else Point(float(xs[best]), float(ys[best])),
        hover=hover,
    )


def values_at(values: Sequence[float], indices: NDArray[np.int64]) -> list[float]:
    """The values at some places."""
    return [float(values[i]) for i in indices.tolist()]


def hover_data(
    x_name: str,
    abscissae: Sequence[float] | NDArray[np.float64],
    xs: NDArray[np.float64],
    lines: Sequence[tuple[str, Sequence[float], NDArray[np.float64]]],
) -> str:
    """What chart.js needs to show the values of E places: where each lies, and for each line its name and values."""
    return json.dumps(
        {
            "x": x_name,
            "at": [[float(x), format_number(float(value))] for x, value in zip(xs, abscissae, strict=True)],
            "lines": [
                [
                    name,
                    [
                        [float(y), format_number(value)] if abs(value) < MAX_MAGNITUDE else None
                        for value, y in zip(values, ys, strict=True)
                    ],
                ]
                for name, values, ys in lines
            ],
        },
        separators=(",", ":"),
        allow_nan=False,
    )


def format_number(value: float) -> str:
    """A number for people: whole ones whole, others to four digits, "-" where there is none."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.4g}"


def round_marks(low: float, high: float) -> NDArray[np.float64]:
    """Three to six evenly spaced round numbers; the first is <= low, the last >= high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return np.arange(first, last + 1, dtype=np.float64) * np.float64(step)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is >= rough."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def epoch_ticks(first: float, last: float) -> tuple[Tick, ...]:
    """Marks at whole epochs along the horizontal axis."""
    if last <= first:
        marks = np.array([first])
    else:
        step = max(1.0, round_step((last - first) / 5))
        marks = np.arange(math.ceil(first / step), math.floor(last / step) + 1) * step
    return make_ticks(marks, first, last, PLOT_LEFT + 4, PLOT_RIGHT - 4)


def make_ticks(marks: NDArray[np.float64], low: float, high: float, start: float, end: float) -> tuple[Tick, ...]:
    """The marks as ticks, on an axis where low..high lies at start..end."""
    places = scaled(marks, low, high, start, end)
    return tuple(Tick(float(at), format_number(mark)) for mark, at in zip(marks, places, strict=True))


def scaled(values: NDArray[np.float64], low: float, high: float, start: float, end: float) -> NDArray[np.float64]:
    """Map low..high to start..end, to a tenth of a unit; into the middle where low is high."""
    shares = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    places: NDArray[np.float64] = np.round(start + shares * (end - start), 1)
    return places


def path_data(xs: NDArray[np.float64], ys: NDArray[np.float64], shown: NDArray[np.bool_], max_points: int) -> str:
    """SVG path data through the shown points; a lone point becomes a stroke of no length, which round caps draw."""
    breaks = np.flatnonzero(np.diff(np.concatenate([[False], shown, [False]]).astype(np.int8)))
    runs = []
    for start, end in breaks.reshape(-1, 2).tolist():
        kept = start + thinned(ys[start:end], max_points)
        pairs = [f"{xs[i]:g},{ys[i]:g}" for i in kept.tolist()]
        runs.append("M" + " L".join(pairs if len(pairs) > 1 else pairs * 2))
    return " ".join(runs)


def thinned(ys: NDArray[np.float64], max_points: int) -> NDArray[np.int64]:
    """Indices to draw: all of them, or of a long series the lowest and highest of each stretch, so that peaks stay."""
    if len(ys) <= max_points:
        return np.arange(len(ys))
    stretches = np.array_split(np.arange(len(ys)), max_points // 2)
    extremes = [s[i] for s in stretches for i in (int(ys[s].argmin()), int(ys[s].argmax()))]
    return np.unique(np.array([0, *extremes, len(ys) - 1]))
