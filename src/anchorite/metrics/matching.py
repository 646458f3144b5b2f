"""Which detection answers for which labelled box, over all images at once.

Legend: N detections and T labelled boxes of the whole data set (images one after another), Q pairs of one of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from anchorite.metrics.values import Predictions, Truth


@dataclass(frozen=True)
class Pairs:
    """Detections and labelled boxes of one image each that overlap by the limit or more, in any order.

    found, truth: (Q,) int64, numbers in the whole data set; iou: (Q,) float64. in_ignored: (N,) bool, the detection
    lies in an ignored box: their intersection is the limit or more of the detection's own area, as for COCO's crowds.
    """

    found: Int64[NDArray[np.int64], " Q"]
    truth: Int64[NDArray[np.int64], " Q"]
    iou: Float64[NDArray[np.float64], " Q"]
    in_ignored: Bool[NDArray[np.bool_], " N"]


def overlapping_pairs(
    truths: Sequence[Truth], predictions: Sequence[Predictions], iou_threshold: float, same_class: bool = True
) -> Pairs:
    """The pairs of every image with IoU >= iou_threshold; with `same_class`, only those of equal class.

    Ignored labelled boxes pair with nothing and show in `in_ignored` alone.
    """
    found_parts, truth_parts, iou_parts, ignored_parts = [_NO_INDEX], [_NO_INDEX], [np.zeros(0)], [np.zeros(0, bool)]
    first_found = first_truth = 0
    for truth, found in zip(truths, predictions, strict=True):
        intersection, union, own_area = _overlaps(found.boxes_xyxy, truth.boxes_xyxy)
        comparable = np.ones_like(union, dtype=bool)
        if same_class:
            comparable = found.class_ids[:, None] == truth.class_ids
        iou = _ratio(intersection, union)
        rows, columns = np.nonzero((iou >= iou_threshold) & comparable & ~truth.ignored)
        found_parts.append(rows + first_found)
        truth_parts.append(columns + first_truth)
        iou_parts.append(iou[rows, columns])
        covered = _ratio(intersection, own_area) >= iou_threshold
        ignored_parts.append((covered & comparable & truth.ignored).any(axis=1))
        first_found, first_truth = first_found + len(found), first_truth + len(truth)
    parts = (found_parts, truth_parts, iou_parts, ignored_parts)
    return Pairs(*(np.concatenate(part) for part in parts))


def match_in_order(
    pairs: Pairs, order: Int64[NDArray[np.int64], " Q"], num_found: int, num_truths: int
) -> Int64[NDArray[np.int64], " N"]:
    """Match greedily, trying the pairs in `order` (Q,); a detection and a labelled box match once.

    Returns (N,) the labelled box of each detection, -1 for none.
    """
    match_of_found = [-1] * num_found
    truth_is_free = [True] * num_truths
    for found, truth in zip(pairs.found[order].tolist(), pairs.truth[order].tolist(), strict=True):
        if truth_is_free[truth] and match_of_found[found] < 0:
            match_of_found[found] = truth
            truth_is_free[truth] = False
    return np.asarray(match_of_found, dtype=np.int64)


def order_by_score(pairs: Pairs, scores: Float[NDArray[np.floating], " N"]) -> Int64[NDArray[np.int64], " Q"]:
    """COCO's order: the best detection (of equals the earlier) chooses first, and takes the box it overlaps most.

    scores: (N,). Of equal overlaps the later box goes first, as in COCO's tools.
    """
    return np.lexsort((-pairs.truth, -pairs.iou, pairs.found, -scores[pairs.found]))


def order_by_overlap(pairs: Pairs, scores: Float[NDArray[np.floating], " N"]) -> Int64[NDArray[np.int64], " Q"]:
    """The largest overlap first, then the best score, then the earlier detection and the earlier box."""
    return np.lexsort((pairs.truth, pairs.found, -scores[pairs.found], -pairs.iou))


_NO_INDEX = np.zeros(0, dtype=np.int64)


def _overlaps(
    boxes_xyxy: NDArray[np.floating], others_xyxy: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Intersections and unions (N, T) of boxes (N, 4) with others (T, 4), and the area of the boxes, (N, 1)."""
    boxes, others = boxes_xyxy.astype(np.float64)[:, None], others_xyxy.astype(np.float64)
    sides = np.minimum(boxes[..., 2:], others[:, 2:]) - np.maximum(boxes[..., :2], others[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=-1)
    own_area = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    return intersection, own_area + np.prod(others[:, 2:] - others[:, :2], axis=-1) - intersection, own_area


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part over whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
