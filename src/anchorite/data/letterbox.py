"""Letterboxing: an image scaled to fit a given size, its aspect kept, centred on grey.

Coordinates are continuous: pixel i covers i..i+1. Frames: `source`, pixels of the image as displayed; `network`, pixels
of the letterboxed image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FILL = 114
Boxes = TypeVar("Boxes", NDArray[np.float64], NDArray[np.float32], Tensor)


@dataclass(frozen=True, slots=True)
class LetterboxTransform:
    """Where the pixels of an image went: scaled from `source_size_hw` to `resized_size_hw`, centred in `size_hw`.

    All sizes are (height, width) in whole pixels. The two scales differ from each other by the rounding of the resized
    size alone; boxes use exactly the scales that the pixels had.
    """

    source_size_hw: tuple[int, int]
    resized_size_hw: tuple[int, int]
    size_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Network pixels a source pixel, along x and y."""
        return self.resized_size_hw[1] / self.source_size_hw[1], self.resized_size_hw[0] / self.source_size_hw[0]

    @property
    def pad_left_top(self) -> tuple[int, int]:
        """Whole pixels of padding before the image; what cannot be halved goes behind it."""
        return (self.size_hw[1] - self.resized_size_hw[1]) // 2, (self.size_hw[0] - self.resized_size_hw[0]) // 2

    def to_network(self, boxes_xyxy: Boxes) -> Boxes:
        """Boxes (..., 4) in source pixels as boxes in network pixels."""
        (scale_x, scale_y), (left, top) = self.scale_xy, self.pad_left_top
        moved = boxes_xyxy * 1.0  # a new array or tensor, floating
        moved[..., 0::2] = moved[..., 0::2] * scale_x + left
        moved[..., 1::2] = moved[..., 1::2] * scale_y + top
        return moved

    def to_source(self, boxes_xyxy: Boxes) -> Boxes:
        """Boxes (..., 4) in network pixels as boxes in source pixels, not clipped: undoes `to_network`."""
        (scale_x, scale_y), (left, top) = self.scale_xy, self.pad_left_top
        moved = boxes_xyxy * 1.0
        moved[..., 0::2] = (moved[..., 0::2] - left) / scale_x
        moved[..., 1::2] = (moved[..., 1::2] - top) / scale_y
        return moved


def letterbox_transform(source_size_hw: tuple[int, int], size_hw: tuple[int, int]) -> LetterboxTransform:
    """The transform that fits an image of one (height, width) into another, growing or shrinking it."""
    (source_height, source_width), (height, width) = source_size_hw, size_hw
    ratio = min(height / source_height, width / source_width)
    resized = (min(height, max(1, round(source_height * ratio))), min(width, max(1, round(source_width * ratio))))
    return LetterboxTransform(source_size_hw, resized, size_hw)


def letterbox(
    image: NDArray[np.uint8], size_hw: tuple[int, int], fill: int = FILL
) -> tuple[NDArray[np.uint8], LetterboxTransform]:
    """An image (H, W, 3) scaled into `size_hw`, centred on `fill`, and the transform of its boxes."""
    transform = letterbox_transform(image.shape[:2], size_hw)
    canvas = np.empty((*size_hw, 3), np.uint8)
    draw_letterboxed(image, transform, canvas, fill)
    return canvas, transform


def draw_letterboxed(
    image: NDArray[np.uint8], transform: LetterboxTransform, canvas: NDArray[np.uint8], fill: int = FILL
) -> None:
    """Write an image over all of `canvas` (of the transform's `size_hw`); it may come at any resolution, as stored."""
    height, width = transform.resized_size_hw
    left, top = transform.pad_left_top
    canvas[:top], canvas[top + height :] = fill, fill
    canvas[top : top + height, :left], canvas[top : top + height, left + width :] = fill, fill
    canvas[top : top + height, left : left + width] = resized(image, transform.resized_size_hw)


def resized(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """An image (H, W, 3) at another (height, width): areas averaged when it shrinks, linear when it grows."""
    height, width = image.shape[:2]
    if (height, width) == size_hw:
        return image
    is_smaller = size_hw[0] * size_hw[1] < height * width
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=method), np.uint8)


def rectangular_size(source_size_hw: tuple[int, int], long_side: int, stride: int) -> tuple[int, int]:
    """The smallest (height, width), multiples of `stride`, that hold an image scaled to a long side of `long_side`."""
    height, width = fitted_size(source_size_hw, long_side)
    return -(-height // stride) * stride, -(-width // stride) * stride


def fitted_size(source_size_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(height, width) of an image scaled, its aspect kept, so that the longer side is `long_side`."""
    return letterbox_transform(source_size_hw, (long_side, long_side)).resized_size_hw
