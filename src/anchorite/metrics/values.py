"""What is compared: the truth of an image and what was found in it.

Legend: N boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from anchorite.errors import InputError


@dataclass(frozen=True)
class Truth:
    """The labelled boxes of one image.

    boxes_xyxy: (N, 4) float64, corners in pixels; class_ids: (N,) int64; ignored: (N,) bool, crowds and difficult
    objects, neither right nor wrong; areas: (N,) float64 in square pixels, which decide small, medium and large (the
    annotated area where there is one, else the box's). Raises InputError when lengths differ or a value is not finite.
    """

    boxes_xyxy: Float64[NDArray[np.float64], "N 4"]
    class_ids: Int64[NDArray[np.int64], " N"]
    ignored: Bool[NDArray[np.bool_], " N"]
    areas: Float64[NDArray[np.float64], " N"]

    def __post_init__(self) -> None:
        _check_rows("truth", self.boxes_xyxy, (self.class_ids, self.ignored, self.areas))
        _check_finite("truth", self.boxes_xyxy, self.areas)

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
        _check_rows("found", self.boxes_xyxy, (self.scores, self.class_ids))
        _check_finite("found", self.boxes_xyxy, self.scores)

    def __len__(self) -> int:
        return int(self.scores.shape[0])


def check_pairing(truths: Sequence[Truth], predictions: Sequence[Predictions], num_classes: int) -> None:
    """Raise InputError unless there is one `Found` for each `Truth` and every class number is in 0..num_classes-1."""
    if len(truths) != len(predictions):
        raise InputError(
            f"{len(truths)} images with truth but {len(predictions)} with detections; give one of each an image"
        )
    for image, (truth, found) in enumerate(zip(truths, predictions, strict=True)):
        for word, class_ids in (("truth", truth.class_ids), ("found", found.class_ids)):
            outside = class_ids[(class_ids < 0) | (class_ids >= num_classes)]
            if outside.size:
                raise InputError(
                    f"{word} of image {image}: class {outside[0]} is not in 0..{num_classes - 1}; "
                    "name every class or drop the box"
                )


def _check_rows(word: str, boxes_xyxy: NDArray[np.floating], columns: tuple[NDArray[np.generic], ...]) -> None:
    num_boxes = boxes_xyxy.shape[0]
    if boxes_xyxy.shape != (num_boxes, 4) or any(column.shape != (num_boxes,) for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise InputError(f"{word}: boxes must be (N, 4) and the rest (N,); got {boxes_xyxy.shape} and {shapes}")


def _check_finite(word: str, *columns: NDArray[np.floating]) -> None:
    if not all(np.isfinite(column).all() for column in columns):
        raise InputError(f"{word}: a box, score or area is not finite; the model or the label is broken")
