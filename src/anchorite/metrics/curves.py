"""Precision, recall and F1 of each class over confidence and over recall, and the confusion matrix, at one IoU.

Legend: K classes, K1 = K + 1 with the background, G confidences, R recall points, N detections of the whole data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from anchorite.errors import accepts_iou_limit
from anchorite.metrics.matching import (
    Predictions,
    Truth,
    image_of_each,
    joined,
    judged,
    match,
    overlapping_pairs,
    ratio,
)

_NUM_CONFIDENCES = 1001
_NUM_RECALLS = 101


@dataclass(frozen=True)
class Curves:
    """How good each class is when only detections of some confidence or more are kept.

    confidences: (G,) 0..1. precision, recall, f1: (K, G) at those; precision is nan where nothing is found, recall and
    F1 where the class has no labelled box. recalls: (R,) 0..1; envelope: (K, R), the best precision at that recall or
    more (0 where it is never reached, nan without labelled boxes); its mean is the class's AP at this IoU.
    """

    class_names: tuple[str, ...]
    iou_threshold: float
    confidences: Float64[NDArray[np.float64], " G"]
    precision: Float64[NDArray[np.float64], "K G"]
    recall: Float64[NDArray[np.float64], "K G"]
    f1: Float64[NDArray[np.float64], "K G"]
    recalls: Float64[NDArray[np.float64], " R"]
    envelope: Float64[NDArray[np.float64], "K R"]

    def average_precision(self) -> Float64[NDArray[np.float64], " K"]:
        """AP (K,) of each class at this IoU, from all detections (COCO's numbers stop at 100 an image and class)."""
        return np.asarray(self.envelope.mean(axis=1))

    def mean_f1(self) -> Float64[NDArray[np.float64], " G"]:
        """F1 (G,) averaged over the classes with labelled boxes; nan where there is none."""
        return mean_of_defined(self.f1)

    def best_confidence(self) -> tuple[float, float]:
        """The confidence with the highest mean F1, and that F1; the middle of the run where several share it.

        Both are nan without any labelled box; the confidence alone is nan where nothing is right at any.
        """
        return _middle_of_best(self.confidences, self.mean_f1())

    def best_confidences(self) -> list[tuple[float, float]]:
        """`best_confidence` of each class alone."""
        return [_middle_of_best(self.confidences, row) for row in self.f1]


@accepts_iou_limit
def detection_curves(
    truths: Sequence[Truth], predictions: Sequence[Predictions], class_names: Sequence[str], iou_threshold: float = 0.5
) -> Curves:
    """Match as COCO does at one IoU, and count.

    Each detection, best first, takes the free box of its class that it overlaps most. Detections that match nothing and
    lie in an ignored box of their class, or of any, are left out, as are those of classes that the labels of their
    image do not cover. Raises InputError as `coco_metrics` does.
    """
    predictions = judged(truths, predictions, len(class_names))
    num_classes = len(class_names)
    scores = joined((found.scores for found in predictions), float)
    class_ids = joined(found.class_ids for found in predictions)
    num_truths = np.bincount(joined(truth.class_ids[~truth.ignored] for truth in truths), minlength=num_classes)
    pairs = overlapping_pairs(truths, predictions, iou_threshold)
    is_right = match(pairs, scores, sum(map(len, truths)), by_score=True) >= 0
    counted = np.flatnonzero(is_right | ~pairs.in_ignored)
    by_class = counted[np.lexsort((-scores[counted], class_ids[counted]))]  # of each class the best first
    starts = np.searchsorted(class_ids[by_class], np.arange(num_classes + 1))

    confidences, recalls = np.linspace(0, 1, _NUM_CONFIDENCES), np.linspace(0, 1, _NUM_RECALLS)
    precision, recall, f1 = np.full((3, num_classes, _NUM_CONFIDENCES), np.nan)
    envelope = np.full((num_classes, _NUM_RECALLS), np.nan)
    for k in range(num_classes):
        of_class = by_class[starts[k] : starts[k + 1]]
        right = np.concatenate([[0], np.cumsum(is_right[of_class])])
        kept = np.searchsorted(-scores[of_class], -confidences, side="right")
        precision[k] = ratio(right[kept], kept, np.nan)
        if num_truths[k]:
            recall[k] = right[kept] / num_truths[k]
            f1[k] = 2 * right[kept] / (kept + num_truths[k])
            # From right answers counted down the ranking: the best precision from here on, at the first that reaches.
            best = np.maximum.accumulate((right[1:] / np.arange(1, len(right)))[::-1])[::-1]
            envelope[k] = np.append(best, 0.0)[np.searchsorted(right[1:] / num_truths[k], recalls, side="left")]
    return Curves(tuple(class_names), iou_threshold, confidences, precision, recall, f1, recalls, envelope)


def mean_of_defined(rows: Float64[NDArray[np.float64], "K columns"]) -> Float64[NDArray[np.float64], " columns"]:
    """The mean (columns,) of rows (K, columns) over those that are not nan; nan where all are."""
    defined = ~np.isnan(rows)
    return ratio(np.where(defined, rows, 0).sum(axis=0), defined.sum(axis=0), np.nan)


def _middle_of_best(confidences: NDArray[np.float64], f1: NDArray[np.float64]) -> tuple[float, float]:
    if np.isnan(f1).all():
        return float("nan"), float("nan")
    first, best = int(np.nanargmax(f1)), float(np.nanmax(f1))
    count = int(np.append(f1[first:] == best, False).argmin())  # of equals in a row
    return float(confidences[first + (count - 1) // 2]) if best else float("nan"), best


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
        return ratio(self.counts, self.counts.sum(axis=1, keepdims=True), np.nan)


def most_confused(counts: Int64[NDArray[np.int64], "K1 K1"], most: int) -> list[int]:
    """The rows, in their order, of the `most` classes with the most errors, and the background: all where K <= most."""
    background = len(counts) - 1
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return [*sorted(np.argsort(-errors[:-1], kind="stable")[:most].tolist()), background]


@accepts_iou_limit
def confusion_matrix(
    truths: Sequence[Truth],
    predictions: Sequence[Predictions],
    class_names: Sequence[str],
    confidence: float = 0.25,
    iou_threshold: float = 0.5,
) -> Confusion:
    """The `outcomes`, counted by the two classes."""
    pairs = outcomes(truths, predictions, class_names, confidence, iou_threshold)[:, 1:]
    counts = np.zeros((len(class_names) + 1, len(class_names) + 1), dtype=np.int64)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    return Confusion(counts, tuple(class_names), confidence, iou_threshold)


@accepts_iou_limit
def outcomes(
    truths: Sequence[Truth],
    predictions: Sequence[Predictions],
    class_names: Sequence[str],
    confidence: float = 0.25,
    iou_threshold: float = 0.5,
) -> Int64[NDArray[np.int64], "N 3"]:
    """What became of each labelled box and each detection, a row (N, 3) int64 for each pair of them and for each alone:
    image, class of the labelled box, class found; K, the background, for none.

    Detections and labelled boxes of any class match greedily, the largest overlap first. Ignored boxes are left out,
    and so are detections that match nothing and lie in an ignored box, whatever their class. Detections of classes that
    the labels of their image do not cover are left out first. The result does not depend on the order of the
    detections, except among exact equals. Raises InputError as `coco_metrics` does.
    """
    known = judged(truths, predictions, len(class_names))
    confident = [found.chosen(found.scores >= confidence) for found in known]
    pairs = overlapping_pairs(truths, confident, iou_threshold, same_class=False)
    of_found, of_truths = (
        np.stack([image_of_each(images), joined(one.class_ids for one in images)]) for images in (confident, truths)
    )
    scores = joined((found.scores for found in confident), float)
    truth_of_found = match(pairs, scores, of_truths.shape[1], by_score=False)
    matched = truth_of_found >= 0
    is_missed = ~joined((truth.ignored for truth in truths), bool)
    is_missed[truth_of_found[matched]] = False
    is_alarm, background = ~matched & ~pairs.in_ignored, len(class_names)
    parts = [
        (*of_truths[:, truth_of_found[matched]], of_found[1, matched]),
        (*of_truths[:, is_missed], background),
        (of_found[0, is_alarm], background, of_found[1, is_alarm]),
    ]
    return np.concatenate([np.stack(np.broadcast_arrays(*part), axis=1) for part in parts])
