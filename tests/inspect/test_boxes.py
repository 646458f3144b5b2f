"""Boxes drawn twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anchorite.data import Record
from anchorite.inspect import checks
from anchorite.inspect.checks import corrected_dataset, overlaps
from tests.inspect.samples import inspected, yolo_folder


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


def pairs_of(*rows: tuple[float, ...], ignored: tuple[int, ...] = ()) -> list[tuple[str, int, int, float]]:
    return [
        (kind, first, second, round(iou, 3)) for kind, first, second, iou in overlaps(record(*rows, ignored=ignored))
    ]


def test_same_class_above_four_fifths_and_other_class_above_nine_tenths() -> None:
    # IoU of boxes of height 10 and widths 100 and w is w / 100.
    base = (0, 0, 0, 100, 10)
    found = pairs_of(base, (0, 0, 0, 81, 10), (1, 0, 0, 91, 10), (0, 0, 0, 60, 10))
    assert found == [("similar-box", 0, 1, 0.81), ("class-conflict", 0, 2, 0.91)]
    assert pairs_of(base, (0, 0, 0, 80, 10), (1, 0, 0, 90, 10)) == []


def test_crowds_are_left_alone() -> None:
    assert pairs_of((0, 0, 0, 100, 10), (0, 0, 0, 95, 10), ignored=(1,)) == []


def test_blocks_find_the_same_pairs(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (80, 2))
    rows = [(float(k % 2), x, y, x + 100, y + 100) for k, (x, y) in enumerate(corners)]
    whole = pairs_of(*rows)
    assert len([pair for pair in whole if pair[0] == "similar-box"]) > 50
    monkeypatch.setattr(checks, "_BLOCK", 7)
    assert pairs_of(*rows) == whole


def test_of_a_chain_the_first_stays_and_no_pair_is_left(tmp_path: Path) -> None:
    # 0-1 and 1-2 overlap, 0-2 do not: without 1, both 0 and 2 may stay.
    rows = "".join(f"0 {0.4 + shift} 0.5 0.5 0.5\n" for shift in (0, 0.05, 0.1))
    inspection = inspected(yolo_folder(tmp_path, {"train": {"a": rows}}))
    assert inspection.counts()["similar-box"] == 2
    dataset, changes = corrected_dataset(inspection)
    assert [finding.origin for _, finding in changes] == [str(tmp_path / "labels/train/a.txt:2")]
    assert [origin[-2:] for origin in dataset.splits["train"][0].origins] == [":1", ":3"]
