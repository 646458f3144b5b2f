"""Boxes drawn twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anchorite.data import Record
from anchorite.inspect import checks
from anchorite.inspect.checks import overlapping_pairs
from anchorite.inspect.corrected import redundant_boxes


def record(*rows: tuple[float, ...], ignored: tuple[int, ...] = ()) -> Record:
    """A record of rows class, x1, y1, x2, y2."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Record(
        path=Path("a.png"),
        width=1000,
        height=1000,
        boxes_xyxy=table[:, 1:],
        class_ids=table[:, 0].astype(np.int64),
        ignored=np.isin(np.arange(len(table)), ignored),
        areas=(table[:, 3] - table[:, 1]) * (table[:, 4] - table[:, 2]),
        origins=tuple(f"a.txt:{row + 1}" for row in range(len(table))),
    )


def test_same_class_above_four_fifths_and_other_class_above_nine_tenths() -> None:
    # IoU of boxes of height 10 and widths 100 and w is w / 100.
    base = (0, 0, 0, 100, 10)
    same, conflicts = overlapping_pairs(record(base, (0, 0, 0, 81, 10), (1, 0, 0, 91, 10), (0, 0, 0, 60, 10)))
    assert [(pair.first, pair.second, round(pair.iou, 3)) for pair in same] == [(0, 1, 0.81)]
    assert [(pair.first, pair.second, round(pair.iou, 3)) for pair in conflicts] == [(0, 2, 0.91)]
    assert overlapping_pairs(record(base, (0, 0, 0, 80, 10), (1, 0, 0, 90, 10))) == ([], [])


def test_crowds_are_left_alone() -> None:
    assert overlapping_pairs(record((0, 0, 0, 100, 10), (0, 0, 0, 95, 10), ignored=(1,))) == ([], [])


def test_blocks_find_the_same_pairs(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (80, 2))
    rows = [(float(k % 2), x, y, x + 100, y + 100) for k, (x, y) in enumerate(corners)]
    whole = overlapping_pairs(record(*rows))
    assert len(whole[0]) > 50
    monkeypatch.setattr(checks, "_BLOCK", 7)
    assert overlapping_pairs(record(*rows)) == whole


def test_of_a_chain_the_first_stays_and_no_pair_is_left() -> None:
    # 0-1 and 1-2 overlap, 0-2 do not: without 1, both 0 and 2 may stay.
    chain = record((0, 0, 0, 100, 10), (0, 10, 0, 110, 10), (0, 20, 0, 120, 10))
    same, _ = overlapping_pairs(chain)
    assert [(pair.first, pair.second) for pair in same] == [(0, 1), (1, 2)]
    assert set(redundant_boxes(same)) == {1}
