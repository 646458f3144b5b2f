"""The confusion matrix of a detector: which class is taken for which, missed, or seen where there is nothing.

Legend: K classes, K1 = K + 1 with the background, N detections, T labelled boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from anchorite.errors import accepts_iou_limit
from anchorite.metrics.matching import match_in_order, order_by_overlap, overlapping_pairs
from anchorite.metrics.values import Predictions, Truth, check_pairing


@dataclass(frozen=True)
class Confusion:
    """Counts (K + 1, K + 1) int64, row: class of the labelled box, column: class found; the last one is background.

    The last column holds missed boxes, the last row false alarms; the corner of both is always 0. Made from
    detections of `confidence` or more, matched at IoU `iou_threshold` or more.
    """

    counts: Int64[NDArray[np.int64], "K1 K1"]
    class_names: tuple[str, ...]
    confidence: float
    iou_threshold: float

    def shares(self) -> Float64[NDArray[np.float64], "K1 K1"]:
        """The counts (K + 1, K + 1) as shares of their row; rows without any box are nan."""
        totals = self.counts.sum(axis=1, keepdims=True)
        shares = np.full(self.counts.shape, np.nan)
        np.divide(self.counts, totals, out=shares, where=totals > 0)
        return shares


@accepts_iou_limit
def confusion_matrix(
    truths: Sequence[Truth],
    predictions: Sequence[Predictions],
    class_names: Sequence[str],
    confidence: float = 0.25,
    iou_threshold: float = 0.5,
) -> Confusion:
    """Match detections and labelled boxes of any class greedily, the largest overlap first, and count their classes.

    Ignored boxes are left out, and so are detections that match nothing and lie in an ignored box, whatever their
    class. The result does not depend on the order of the detections, except among exact equals. Raises InputError as
    `coco_metrics` does.
    """
    check_pairing(truths, predictions, len(class_names))
    confident = [_at_least(found, confidence) for found in predictions]
    pairs = overlapping_pairs(truths, confident, iou_threshold, same_class=False)
    found_class = np.concatenate([np.zeros(0, np.int64), *(found.class_ids for found in confident)])
    truth_class = np.concatenate([np.zeros(0, np.int64), *(truth.class_ids for truth in truths)])
    ignored = np.concatenate([np.zeros(0, np.bool_), *(truth.ignored for truth in truths)])
    scores = np.concatenate([np.zeros(0), *(found.scores for found in confident)])
    match = match_in_order(pairs, order_by_overlap(pairs, scores), len(found_class), len(truth_class))

    background = len(class_names)
    counts = np.zeros((background + 1, background + 1), dtype=np.int64)
    matched = match >= 0
    np.add.at(counts, (truth_class[match[matched]], found_class[matched]), 1)
    false_alarms = found_class[~matched & ~pairs.in_ignored]
    counts[background] += np.bincount(false_alarms, minlength=background + 1)
    is_missed = ~ignored
    is_missed[match[matched]] = False
    counts[:, background] += np.bincount(truth_class[is_missed], minlength=background + 1)
    return Confusion(counts, tuple(class_names), confidence, iou_threshold)


def _at_least(found: Predictions, confidence: float) -> Predictions:
    kept = found.scores >= confidence
    return Predictions(found.boxes_xyxy[kept], found.scores[kept], found.class_ids[kept])
