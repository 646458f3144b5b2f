"""Cut-outs of suspects as JPEG data URIs, within a number of bytes, and where the boxes lie in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anchorite.data import decode_image
from anchorite.jpeg import shrunk
from anchorite.report.page import jpeg_uri
from anchorite.report.suspects.ranking import Suspect

# Longer side in pixels and JPEG quality, from fine to coarse; what fits first is taken.
_SIZES = ((320, 82), (256, 75), (192, 68), (128, 60))
_MARGIN = 0.45  # of the boxes' longer side, around them: what else is there decides many a case
_LEAST_SIDE_PX = 32
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Crop:
    """uri: the JPEG; box_xyxy: the part of the image it shows, whole pixels; width, height: of the JPEG."""

    uri: str
    box_xyxy: tuple[int, int, int, int]
    width: int
    height: int


def make_crops(suspects: Sequence[Suspect], max_bytes: int) -> list[Crop]:
    """The crops of the first suspects, all if they fit within `max_bytes` together, in the finest size that does.

    Every image is decoded once, one at a time. Raises InputError naming an image that cannot be decoded any more.
    """
    made: dict[int, list[Crop]] = {}
    by_image: dict[Path, list[int]] = {}
    for number, suspect in enumerate(suspects):
        by_image.setdefault(suspect.image, []).append(number)
    for path, numbers in by_image.items():
        image = decode_image(path)
        for number in numbers:
            made[number] = _crops(image, suspects[number])
    in_order = [made[number] for number in range(len(suspects))]
    for size in range(len(_SIZES)):
        if sum(len(crops[size].uri) for crops in in_order) <= max_bytes:
            return [crops[size] for crops in in_order]
    kept, left = [], max_bytes
    for crops in in_order:
        left -= len(crops[-1].uri)
        if left < 0:
            break
        kept.append(crops[-1])
    return kept


def crop_box(boxes_xyxy: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image of that size to show: all boxes with a margin, not beyond the image, in whole pixels."""
    corners = np.array(boxes_xyxy)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    margin = max(_MARGIN * float((high - low).max()), (_LEAST_SIDE_PX - float((high - low).max())) / 2)
    left, top = (int(edge) for edge in np.floor(np.clip(low - margin, 0, (width - 1, height - 1))))
    right, bottom = (int(edge) for edge in np.ceil(np.clip(high + margin, (left + 1, top + 1), (width, height))))
    return left, top, right, bottom


def _crops(image: NDArray[np.uint8], suspect: Suspect) -> list[Crop]:
    """One crop a size."""
    height, width = image.shape[:2]
    boxes = [box for box in (suspect.label_xyxy, suspect.seen_xyxy) if box is not None]
    left, top, right, bottom = crop_box(boxes, width, height)
    part = np.ascontiguousarray(image[top:bottom, left:right])
    crops = []
    for side, quality in _SIZES:
        smaller = shrunk(part, side)
        uri = jpeg_uri(smaller, side, quality)
        crops.append(Crop(uri, (left, top, right, bottom), smaller.shape[1], smaller.shape[0]))
    return crops
