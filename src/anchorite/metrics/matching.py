"""The truth and the predictions of an image, and which detection is matched with which labelled box, over all images.

Legend: N detections and T labelled boxes of the whole data set (images one after another), Q pairs of one of each; for
`Truth` and `Predictions`, N boxes of one image; K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from anchorite.errors import InputError

_PAIRS_AT_ONCE = 1 << 20  # of an image with thousands of boxes
ANY_CLASS = -1  # of an ignored box in which detections of every class are neither right nor wrong


@dataclass(frozen=True)
class Truth:
    """The labelled boxes of one image.

    boxes_xyxy: (N, 4) float64, corners in pixels; class_ids: (N,) int64, of ignored boxes also `ANY_CLASS`; ignored:
    (N,) bool, crowds, difficult objects and places that nobody labelled, neither right nor wrong; areas: (N,) float64
    in square pixels, which decide small, medium and large (the annotated area where there is one, else the box's).
    covered: (K,) bool, the classes that were labelled; detections of others are neither right nor wrong, as if the
    whole image were a crowd of each; None: all were. Raises InputError when lengths differ or a value is not finite.
    """

    boxes_xyxy: Float64[NDArray[np.float64], "N 4"]
    class_ids: Int64[NDArray[np.int64], " N"]
    ignored: Bool[NDArray[np.bool_], " N"]
    areas: Float64[NDArray[np.float64], " N"]
    covered: Bool[NDArray[np.bool_], " K"] | None = None

    def __post_init__(self) -> None:
        _check("truth", self.boxes_xyxy, self.class_ids, self.ignored, self.areas)

    def __len__(self) -> int:
        return int(self.class_ids.shape[0])


@dataclass(frozen=True)
class Predictions:
    """What a detector found in one image, in any order; of equal scores the earlier counts as the better.

    boxes_xyxy: (N, 4) float, corners in the same pixels as the truth; scores: (N,) float; class_ids: (N,) int64.
    Raises InputError when lengths differ or a value is not finite.
    """

    boxes_xyxy: Float[NDArray[np.floating], "N 4"]
    scores: Float[NDArray[np.floating], " N"]
    class_ids: Int64[NDArray[np.int64], " N"]

    def __post_init__(self) -> None:
        _check("found", self.boxes_xyxy, self.scores, self.class_ids)

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def chosen(self, which: NDArray[Any]) -> Predictions:
        """Some of them, by a mask or by indices (N,)."""
        return Predictions(self.boxes_xyxy[which], self.scores[which], self.class_ids[which])


def judged(truths: Sequence[Truth], predictions: Sequence[Predictions], num_classes: int) -> list[Predictions]:
    """The detections that the truth of their image can judge: those of classes that its labels cover.

    Raises InputError unless each `Truth` has its `Predictions` and every class number is in 0..num_classes-1, but for
    ignored boxes of any class.
    """
    if len(truths) != len(predictions):
        raise InputError(
            f"{len(truths)} images with truth but {len(predictions)} with detections; give one of each an image"
        )
    for image, (truth, found) in enumerate(zip(truths, predictions, strict=True)):
        of_truth = truth.class_ids[~truth.ignored | (truth.class_ids != ANY_CLASS)]
        for word, class_ids in (("truth", of_truth), ("found", found.class_ids)):
            outside = class_ids[(class_ids < 0) | (class_ids >= num_classes)]
            if outside.size:
                raise InputError(
                    f"{word} of image {image}: class {outside[0]} is not in 0..{num_classes - 1}; "
                    "name every class or drop the box"
                )
        if truth.covered is not None and len(truth.covered) != num_classes:
            raise InputError(f"truth of image {image}: {len(truth.covered)} covered flags for {num_classes} classes")
    return [
        found if truth.covered is None or truth.covered.all() else found.chosen(truth.covered[found.class_ids])
        for truth, found in zip(truths, predictions, strict=True)
    ]


def _check(word: str, boxes_xyxy: NDArray[np.floating], *columns: NDArray[Any]) -> None:
    num_boxes = boxes_xyxy.shape[0]
    if boxes_xyxy.shape != (num_boxes, 4) or any(column.shape != (num_boxes,) for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise InputError(f"{word}: boxes must be (N, 4) and the rest (N,); got {boxes_xyxy.shape} and {shapes}")
    if not all(np.isfinite(column).all() for column in (boxes_xyxy, *columns)):
        raise InputError(f"{word}: a box, score or area is not finite; the model or the label is broken")


def joined(parts: Iterable[NDArray[Any]], dtype: type = np.int64) -> NDArray[Any]:
    """The values of all images (N,), one image after the other; there may be no image."""
    return np.concatenate([np.zeros(0, dtype), *parts])


def image_of_each(images: Sequence[Truth | Predictions]) -> Int64[NDArray[np.int64], " N"]:
    """The number of the image (N,) of each of their boxes, one image after the other."""
    return np.repeat(np.arange(len(images)), np.fromiter(map(len, images), np.int64))


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


def overlaps(found: Predictions, truth: Truth) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU of each detection and each labelled box of an image, and the share of the detection that lies in it: (N, T)
    each."""
    boxes, others = found.boxes_xyxy.astype(np.float64)[:, None], truth.boxes_xyxy.astype(np.float64)
    sides = np.minimum(boxes[..., 2:], others[:, 2:]) - np.maximum(boxes[..., :2], others[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=-1)
    own_area = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    union = own_area + np.prod(others[:, 2:] - others[:, :2], axis=-1) - intersection
    return ratio(intersection, union), ratio(intersection, own_area)


def overlapping_pairs(
    truths: Sequence[Truth], predictions: Sequence[Predictions], iou_threshold: float, same_class: bool = True
) -> Pairs:
    """The pairs of every image with IoU >= iou_threshold; with `same_class`, only those of equal class.

    Ignored labelled boxes pair with nothing and show in `in_ignored` alone.
    """
    found_parts, truth_parts, iou_parts, ignored_parts = [], [], [], []
    first_found = first_truth = 0
    for truth, found in zip(truths, predictions, strict=True):
        step = max(1, _PAIRS_AT_ONCE // max(1, len(truth)))
        for start in range(0, len(found), step):
            part = found if step >= len(found) else found.chosen(np.arange(start, min(start + step, len(found))))
            iou, share_inside = overlaps(part, truth)
            comparable = np.ones_like(iou, dtype=bool)
            if same_class:
                comparable = (part.class_ids[:, None] == truth.class_ids) | (truth.class_ids == ANY_CLASS)
            rows, columns = np.nonzero((iou >= iou_threshold) & comparable & ~truth.ignored)
            found_parts.append(rows + (first_found + start))
            truth_parts.append(columns + first_truth)
            iou_parts.append(iou[rows, columns])
            ignored_parts.append(((share_inside >= iou_threshold) & comparable & truth.ignored).any(axis=1))
        first_found, first_truth = first_found + len(found), first_truth + len(truth)
    return Pairs(joined(found_parts), joined(truth_parts), joined(iou_parts, float), joined(ignored_parts, bool))


def match(
    pairs: Pairs, scores: Float[NDArray[np.floating], " N"], num_truths: int, by_score: bool
) -> Int64[NDArray[np.int64], " N"]:
    """Match greedily; a detection, with its score, and a labelled box match once.

    by_score: in COCO's order, the best detection (of equals the earlier) first, which takes the box that it overlaps
    most (of equal overlaps the later, as in COCO's tools); else the largest overlap first, then the best score, the
    earlier detection and the earlier box. Returns (N,) the labelled box of each detection, -1 for none.
    """
    founds, truths, iou = pairs.found, pairs.truth, pairs.iou
    by_rank = -scores[founds]
    order = np.lexsort((-truths, -iou, founds, by_rank) if by_score else (truths, founds, by_rank, -iou))
    match_of_found = [-1] * len(scores)
    truth_is_free = [True] * num_truths
    for found, truth in zip(founds[order].tolist(), truths[order].tolist(), strict=True):
        if truth_is_free[truth] and match_of_found[found] < 0:
            match_of_found[found] = truth
            truth_is_free[truth] = False
    return np.asarray(match_of_found, dtype=np.int64)


def ratio(part: NDArray[Any], whole: NDArray[Any], otherwise: float = 0.0) -> NDArray[np.float64]:
    """Part over whole, `otherwise` where there is no whole."""
    quotient = np.full(part.shape, otherwise)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient
