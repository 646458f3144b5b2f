"""Charts of several lines over one pair of axes: classes of a validation, runs side by side, a planned schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anchorite.report.curves import (
    MAX_MAGNITUDE,
    MAX_POINTS,
    PLOT_BOTTOM,
    PLOT_LEFT,
    PLOT_RIGHT,
    PLOT_TOP,
    Tick,
    hover_data,
    make_ticks,
    path_data,
    round_marks,
    round_step,
    scaled,
    thinned,
)

NUM_COLOURS = 8  # of the style sheet; later lines take them again, dashed


@dataclass(frozen=True, slots=True)
class Line:
    """A name, and values over abscissae; a value that is not finite is a gap. note: said beside the name."""

    name: str
    xs: Sequence[float]
    values: Sequence[float]
    note: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line as drawn: the class names of its style, its path, and what the legend says."""

    name: str
    note: str
    style: str
    path: str


@dataclass(frozen=True, slots=True)
class Overlay:
    """A chart of several lines, hover as in `Curve`."""

    title: str
    note: str
    strokes: tuple[Stroke, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    hover: str


def make_overlay(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str = "epoch",
    note: str = "",
    y_range: tuple[float, float] | None = None,
) -> Overlay | None:
    """Chart the lines over the range of all their abscissae; None where no line has a number.

    y_range: low and high end of the axis of values, cut into five; by default those of the values.
    """
    pairs = [_finite(line) for line in lines]
    every_x = np.concatenate([x[np.isfinite(y)] for x, y in pairs] or [np.zeros(0)])
    every_y = np.concatenate([y[np.isfinite(y)] for _, y in pairs] or [np.zeros(0)])
    if not len(every_y):
        return None
    low_x, high_x = float(every_x.min()), float(every_x.max())
    marks = np.linspace(*y_range, 6) if y_range else round_marks(float(every_y.min()), float(every_y.max()))
    places = np.unique(np.concatenate([x[thinned(np.nan_to_num(y), MAX_POINTS)] for x, y in pairs]))
    if len(places) > 2 * MAX_POINTS:
        places = places[:: len(places) // MAX_POINTS]
    strokes, hovered = [], []
    for number, (line, (x, y)) in enumerate(zip(lines, pairs, strict=True)):
        shown = np.isfinite(y)
        xs = scaled(x, low_x, high_x, PLOT_LEFT + 4, PLOT_RIGHT - 4)
        ys = scaled(np.where(shown, y, marks[0]), marks[0], marks[-1], PLOT_BOTTOM, PLOT_TOP)
        style = f"c{number % NUM_COLOURS}" + (" dashed" if number >= NUM_COLOURS else "")
        path = path_data(xs, ys, shown, MAX_POINTS)
        strokes.append(Stroke(line.name, line.note, "strong" if line.strong else style, path))
        hovered.append(_at(line.name, places, x, y, ys))
    xs = scaled(places, low_x, high_x, PLOT_LEFT + 4, PLOT_RIGHT - 4)
    return Overlay(
        title,
        note,
        tuple(strokes),
        _x_ticks(low_x, high_x),
        make_ticks(marks, marks[0], marks[-1], PLOT_BOTTOM, PLOT_TOP),
        hover_data(x_name, places, xs, hovered),
    )


def _x_ticks(low: float, high: float) -> tuple[Tick, ...]:
    if high <= low:
        return make_ticks(np.array([low]), low, high, PLOT_LEFT + 4, PLOT_RIGHT - 4)
    step = round_step((high - low) / 5)
    marks = np.arange(math.floor(low / step), math.ceil(high / step) + 1, dtype=np.float64) * np.float64(step)
    marks = marks[(marks >= low - 1e-9) & (marks <= high + 1e-9)]
    if high > 5:  # epochs, of which there are no halves
        marks = marks[np.isclose(marks, np.round(marks))]
    return make_ticks(marks, low, high, PLOT_LEFT + 4, PLOT_RIGHT - 4)


def _finite(line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(line.xs, np.float64), np.asarray(line.values, np.float64)
    return x, np.where(np.abs(y) < MAX_MAGNITUDE, y, np.nan)


def _at(
    name: str,
    places: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    ys: NDArray[np.float64],
) -> tuple[str, list[float], NDArray[np.float64]]:
    """The line's values at the places, nan where it has none."""
    values, heights = np.full(len(places), np.nan), np.zeros(len(places))
    kept = np.isin(x, places)
    where = np.searchsorted(places, x[kept])
    values[where], heights[where] = y[kept], ys[kept]
    return name, values.tolist(), heights
