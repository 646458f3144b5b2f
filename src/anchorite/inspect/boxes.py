"""Boxes of an image that were probably drawn twice, or given two classes.

Legend: N boxes of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from anchorite.boxes import pairwise_iou_xyxy
from anchorite.data import DatasetIndex, Record
from anchorite.inspect.findings import Finding

SAME_BOX_IOU = 0.8  # of one class: the same object drawn twice
CONFLICT_IOU = 0.9  # of two classes: one of them is wrong
_BLOCK = 1024


class BoxPair(NamedTuple):
    """Two boxes of a record, first < second, and their IoU."""

    first: int
    second: int
    iou: float


def overlapping_pairs(record: Record) -> tuple[list[BoxPair], list[BoxPair]]:
    """The pairs of one class above an IoU of 0.8, and of two classes above 0.9; crowds and difficult boxes aside."""
    same: list[BoxPair] = []
    conflicting: list[BoxPair] = []
    if len(record.boxes_xyxy) < 2:
        return same, conflicting
    boxes = torch.from_numpy(record.boxes_xyxy)
    for start in range(0, len(boxes), _BLOCK):
        iou = pairwise_iou_xyxy(boxes[start : start + _BLOCK], boxes).numpy()
        for row, column in zip(*np.nonzero(iou > SAME_BOX_IOU), strict=True):
            first, second = start + int(row), int(column)
            if first >= second or record.ignored[first] or record.ignored[second]:
                continue
            pair = BoxPair(first, second, float(iou[row, column]))
            if record.class_ids[first] == record.class_ids[second]:
                same.append(pair)
            elif pair.iou > CONFLICT_IOU:
                conflicting.append(pair)
    return same, conflicting


def redundant_boxes(pairs: list[BoxPair]) -> dict[int, BoxPair]:
    """Which boxes to leave out so that no pair is left, the first of each kept, with the pair that says why."""
    dropped: dict[int, BoxPair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.second, pair.first)):
        if pair.first not in dropped:
            dropped.setdefault(pair.second, pair)
    return dropped


def overlap_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """A finding for each pair."""
    for split, records in dataset.splits.items():
        for record in records:
            same, conflicting = overlapping_pairs(record)
            for kind, pairs in (("similar-box", same), ("class-conflict", conflicting)):
                for pair in pairs:
                    other = box_finding(dataset, split, record, pair.first)
                    box = box_finding(dataset, split, record, pair.second)
                    detail = (
                        f"{_shown(box)} overlaps {_shown(other)} by an IoU of {pair.iou:.3f}, in {record.path.name}"
                    )
                    yield replace(box, kind=kind, detail=detail, others=(record.origins[pair.first],))


def box_finding(dataset: DatasetIndex, split: str, record: Record, index: int) -> Finding:
    """Where a box is, as a finding still without a kind."""
    return Finding(
        kind="",
        detail="",
        split=split,
        image=str(record.path),
        origin=record.origins[index],
        box_xyxy=tuple(record.boxes_xyxy[index].tolist()),
        class_name=dataset.class_names[record.class_ids[index]],
    )


def _shown(box: Finding) -> str:
    assert box.box_xyxy is not None
    return f"{box.class_name} ({', '.join(f'{value:.6g}' for value in box.box_xyxy)})"
