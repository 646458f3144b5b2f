"""The labels of many records as a few flat arrays, for what is computed of a whole split.

Legend: R records, N boxes of all of them, T of those that are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data.columns import RecordTable
from anchorite.data.record import Record


class FlatLabels(NamedTuple):
    """The labels of R records with N boxes: counts, widths, heights (R,) and boxes_xyxy (N, 4), class_ids, ignored,
    areas (N,), in the order of the records.
    """

    counts: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]


def training_sides(records: Sequence[Record], image_size: int) -> NDArray[np.float64]:
    """(T, 2) widths and heights of all boxes of some records that are trained on, in pixels of a letterboxed network
    input whose longer side is `image_size`.
    """
    labels = flat_labels(records)
    scales = np.repeat(image_size / np.maximum(labels.widths, labels.heights), labels.counts)
    sides = (labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]) * scales[:, None]
    return np.asarray(sides[~labels.ignored], np.float64)


def flat_labels(records: Sequence[Record]) -> FlatLabels:
    """The labels of some records as flat arrays: views, where the records are a whole table or a slice of one."""
    if not isinstance(records, RecordTable):
        return FlatLabels(
            np.array([len(record.class_ids) for record in records], np.int64),
            np.array([record.width for record in records], np.int64),
            np.array([record.height for record in records], np.int64),
            np.concatenate([np.zeros((0, 4)), *(record.boxes_xyxy.reshape(-1, 4) for record in records)]),
            np.concatenate([np.zeros(0, np.int64), *(record.class_ids for record in records)]),
            np.concatenate([np.zeros(0, np.bool_), *(record.ignored for record in records)]),
            np.concatenate([np.zeros(0), *(record.areas for record in records)]),
        )
    columns, rows = records.columns, records.rows
    boxes: slice | NDArray[np.int64]
    if isinstance(rows, range) and rows.step == 1:
        chosen: slice | NDArray[np.int64] = slice(rows.start, rows.start + len(rows))
        ends = columns.box_starts[rows.start : rows.start + len(rows) + 1]
        counts, boxes = np.diff(ends), slice(int(ends[0]), int(ends[-1]))
    else:
        chosen = np.asarray(rows, np.int64)
        starts = columns.box_starts[chosen]
        counts = columns.box_starts[chosen + 1] - starts
        boxes = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return FlatLabels(
        counts,
        columns.widths[chosen].astype(np.int64),
        columns.heights[chosen].astype(np.int64),
        columns.boxes_xyxy[boxes],
        columns.class_ids[boxes],
        columns.ignored[boxes],
        columns.areas[boxes],
    )
