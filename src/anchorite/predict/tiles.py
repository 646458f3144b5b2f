"""Windows that cover a large image, each looked at as an image of its own.

Coordinates are continuous: pixel i covers i..i+1. Legend: N boxes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Window = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels of the image."""

_ROUNDING = 1e-9


def windows(height: int, width: int, side: int, overlap: float) -> list[Window]:
    """The fewest windows that cover an image of (height, width) pixels, row by row.

    side: of a window in pixels; along an axis on which the image is shorter, windows are as long as the image. overlap:
    share of the side, 0 or more and below 1, that neighbours have in common at least; the last of a row or column is
    moved inside, and has more. Whatever is at most overlap * side pixels wide and high lies whole in some window.
    """
    columns = _spans(width, side, overlap)
    return [(left, top, right, bottom) for top, bottom in _spans(height, side, overlap) for left, right in columns]


def touches_seam(
    boxes_xyxy: Float[Tensor, "N 4"], window: Window, size_hw: tuple[int, int], margin: float
) -> Bool[Tensor, " N"]:
    """Which boxes (N, 4), in pixels of the image, end within `margin` pixels of an inner edge of their window.

    size_hw: height and width of the image; edges that are the image's own are no inner ones.
    """
    height, width = size_hw
    left, top, right, bottom = window
    touching = torch.zeros(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    if left > 0:
        touching |= boxes_xyxy[:, 0] <= left + margin
    if top > 0:
        touching |= boxes_xyxy[:, 1] <= top + margin
    if right < width:
        touching |= boxes_xyxy[:, 2] >= right - margin
    if bottom < height:
        touching |= boxes_xyxy[:, 3] >= bottom - margin
    return touching


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    step = max(1, side - math.ceil(overlap * side - _ROUNDING))
    count = math.ceil((length - side) / step) + 1
    starts = (min(number * step, length - side) for number in range(count))
    return [(start, start + side) for start in starts]
