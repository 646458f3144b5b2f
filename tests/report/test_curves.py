"""Charts: points where the numbers are, gaps where there are none, ticks that are round and true."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorite.report.charts import (
    PLOT_BOTTOM,
    PLOT_LEFT,
    PLOT_RIGHT,
    PLOT_TOP,
    Chart,
    Line,
    format_number,
    make_chart,
)


def make_curve(title: str, epochs: Sequence[float], values: Sequence[float], **options: bool) -> Chart:
    return make_chart(title, [Line(title, epochs, values)], **options)


def path_of(chart: Chart) -> str:
    return chart.strokes[0].path if chart.strokes else ""


def _runs(path: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+),([-\d.]+)", run)]
        for run in path.split("M")
        if run.strip()
    ]


def test_a_straight_series_is_drawn_from_corner_to_corner() -> None:
    curve = make_curve("rate", [1, 2, 3, 4, 5], [0.0, 1.0, 2.0, 3.0, 4.0])
    left, right, middle = PLOT_LEFT + 4, PLOT_RIGHT - 4, (PLOT_TOP + PLOT_BOTTOM) / 2
    (run,) = _runs(path_of(curve))
    assert run[0] == (left, PLOT_BOTTOM)
    assert run[2] == ((left + right) / 2, middle)
    assert run[-1] == (right, PLOT_TOP)
    assert [label for _, label in curve.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [label for _, label in curve.x_ticks] == ["1", "2", "3", "4", "5"]
    assert curve.last == "4"
    hover = json.loads(curve.hover)
    assert hover["at"][1] == [left + (right - left) / 4, "2"]
    assert hover["lines"] == [["rate", [[float(y), str(i)] for i, (_, y) in enumerate(run)]]]


def test_missing_values_break_the_line_and_a_lone_value_is_a_dot() -> None:
    curve = make_curve("box", [1, 2, 3, 4, 5, 6], [1.0, 2.0, math.nan, 3.0, math.inf, 5.0])
    first, second, third = _runs(path_of(curve))
    assert len(first) == 2
    assert len(second) == len(third) == 2
    assert second[0] == second[1]
    assert third[0] == third[1]
    assert curve.note == "2 without a number"
    assert curve.last == "5"
    assert [value and value[1] for value in json.loads(curve.hover)["lines"][0][1]] == ["1", "2", None, "3", None, "5"]


def test_the_best_of_a_score_is_its_first_highest_value() -> None:
    curve = make_curve("map", [0, 1, 2, 3], [0.1, 0.75, 0.75, math.nan], mark_highest=True)
    assert curve.note == "best 0.75 at epoch 1, 1 without a number"
    assert curve.best is not None
    assert curve.best == tuple(_runs(path_of(curve))[0][1])
    assert make_curve("box", [0, 1], [0.1, 0.2]).best is None


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_a_series_without_numbers_is_an_empty_chart(values: list[float]) -> None:
    curve = make_curve("map", list(range(len(values))), values, mark_highest=True)
    assert (path_of(curve), curve.last, curve.hover, curve.best) == ("", "-", "", None)


def test_a_long_series_is_thinned_but_keeps_its_peaks() -> None:
    values = np.zeros(20_000)
    values[12_345] = 8.0
    for brief, limit in ((False, 602), (True, 62)):
        curve = make_curve("loss", list(range(20_000)), values.tolist(), brief=brief)
        (run,) = _runs(path_of(curve))
        assert len(run) <= limit
        assert min(y for _, y in run) == PLOT_TOP
        assert run[0][0] == PLOT_LEFT + 4
        assert run[-1][0] == PLOT_RIGHT - 4
        assert (curve.hover == "") == brief
        assert brief or len(json.loads(curve.hover)["at"]) <= limit


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_every_series_stays_inside_the_chart_between_increasing_ticks(values: list[float]) -> None:
    curve = make_curve("any", list(range(len(values))), values, mark_highest=True)
    for run in _runs(path_of(curve)):
        assert all(PLOT_LEFT <= x <= PLOT_RIGHT and PLOT_TOP <= y <= PLOT_BOTTOM for x, y in run)
    heights = [at for at, _ in curve.y_ticks]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) <= 7
    assert "nan" not in path_of(curve)
    assert not curve.strokes or len(heights) >= 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (0.123456, "0.1235"), (1e-7, "1e-07"), (math.nan, "-"), (-0.5, "-0.5"), (2e12, "2e+12")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_lines_of_different_lengths_share_their_axes() -> None:
    chart = make_chart("map", [Line("short", [1, 2], [0.0, 1.0]), Line("long", [1, 2, 3], [0.5, math.nan, 2.0])])
    left, right = PLOT_LEFT + 4, PLOT_RIGHT - 4
    short, long = (_runs(stroke.path) for stroke in chart.strokes)
    assert short == [[(left, PLOT_BOTTOM), ((left + right) / 2, (PLOT_TOP + PLOT_BOTTOM) / 2)]]
    assert long[1][0] == (right, PLOT_TOP)
    hover = json.loads(chart.hover)
    assert [label for _, label in hover["at"]] == ["1", "2", "3"]
    assert [[value and value[1] for value in values] for _, values in hover["lines"]] == [
        ["0", "1", None],
        ["0.5", None, "2"],
    ]
    assert make_chart("map", [Line(name, [1, 2], [math.nan, math.inf]) for name in "ab"]).strokes == ()
