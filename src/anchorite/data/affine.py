"""Affine maps of images and boxes: composed first, applied to pixels once.

A map is a (3, 3) float64 matrix on continuous coordinates (x, y, 1): pixel i covers i..i+1. OpenCV's warp counts from
pixel centres; the half pixel between the two conventions is corrected here and nowhere else.

Legend: N boxes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.scratch import Scratch

Map = NDArray[np.float64]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Warp(NamedTuple):
    """How a source image gets onto the canvas.

    map: source pixels to canvas pixels, exactly as the pixels go. seen: the rectangle of the canvas it may touch.
    crop: for maps without rotation and shear, the source rectangle that fills `seen`; else None.
    """

    map: Map
    seen: Rectangle
    crop: Rectangle | None

    @property
    def averages(self) -> bool:
        """Whether the source shrinks so much, to under a quarter, that its areas are averaged."""
        if self.crop is None:
            return False
        (left, top, right, bottom), (x0, y0, x1, y1) = self.seen, self.crop
        return (right - left) * (bottom - top) * 4 < (x1 - x0) * (y1 - y0)


def scaling(scale_x: float, scale_y: float, shift_x: float = 0.0, shift_y: float = 0.0) -> Map:
    """The map x * scale + shift, for both axes."""
    return np.array([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y], [0.0, 0.0, 1.0]])


def turning(degrees: float, shear_x_degrees: float, shear_y_degrees: float) -> Map:
    """Shear along both axes after a rotation (clockwise on screen), about the origin."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = math.tan(math.radians(shear_x_degrees)), math.tan(math.radians(shear_y_degrees))
    rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return np.array([[1.0, across, 0.0], [down, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ rotation


def plan_warp(source_map: Map, source_size_hw: tuple[int, int], size: int) -> Warp | None:
    """The warp of a whole source image onto a square canvas of `size` pixels; None when nothing of it can be seen.

    Without rotation and shear, both rectangles are rounded to whole pixels, so that a plain resize does the work, and
    the map is refitted to them (it moves by less than a pixel inside the canvas): boxes go exactly where the pixels go.
    """
    height, width = source_size_hw
    (x_of_x, x_of_y, shift_x), (y_of_x, y_of_y, shift_y), _ = source_map.tolist()
    if x_of_y == 0 and y_of_x == 0:
        along_x = _snap_axis(x_of_x, shift_x, width, size)
        along_y = _snap_axis(y_of_y, shift_y, height, size)
        if along_x is None or along_y is None:
            return None
        (scale_x, shift_x, seen_x, crop_x), (scale_y, shift_y, seen_y, crop_y) = along_x, along_y
        snapped = scaling(scale_x, scale_y, shift_x, shift_y)
        return Warp(snapped, (seen_x[0], seen_y[0], seen_x[1], seen_y[1]), (crop_x[0], crop_y[0], crop_x[1], crop_y[1]))
    left, top, right, bottom = map_boxes(source_map, np.array([[0.0, 0.0, width, height]]))[0].tolist()
    seen = (
        max(0, math.floor(left)),
        max(0, math.floor(top)),
        min(size, math.ceil(right)),
        min(size, math.ceil(bottom)),
    )
    return Warp(source_map, seen, None) if seen[0] < seen[2] and seen[1] < seen[3] else None


def _snap_axis(
    scale: float, shift: float, source_side: int, size: int
) -> tuple[float, float, tuple[int, int], tuple[int, int]] | None:
    """Scale, shift, canvas interval and source interval along one axis, the intervals in whole pixels."""
    start, stop = sorted((shift, shift + scale * source_side))
    seen = round(max(0.0, start)), round(min(float(size), stop))
    if seen[1] <= seen[0]:
        return None
    first, last = sorted(((seen[0] - shift) / scale, (seen[1] - shift) / scale))
    crop_start = min(max(0, round(first)), source_side - 1)
    crop_stop = max(min(source_side, round(last)), crop_start + 1)
    snapped = math.copysign((seen[1] - seen[0]) / (crop_stop - crop_start), scale)
    return snapped, (seen[0] if scale > 0 else seen[1]) - snapped * crop_start, seen, (crop_start, crop_stop)


def draw_warped(
    image: NDArray[np.uint8], warp: Warp, canvas: NDArray[np.uint8], scratch: Scratch | None = None
) -> None:
    """Write the warped image into the part of the canvas (H, W, 3) that it covers; the rest stays."""
    left, top, right, bottom = warp.seen
    target = canvas[top:bottom, left:right]
    if warp.crop is None:
        _draw_turned(image, warp.map, (left, top), target)
        return
    x0, y0, x1, y1 = warp.crop
    width, height = right - left, bottom - top
    method = cv2.INTER_AREA if warp.averages else cv2.INTER_LINEAR
    flip_x, flip_y = warp.map[0, 0] < 0, warp.map[1, 1] < 0
    if not flip_x and not flip_y:
        cv2.resize(image[y0:y1, x0:x1], (width, height), dst=target, interpolation=method)
        return
    upright = (scratch or Scratch()).array("upright", height, width, 3)
    cv2.resize(image[y0:y1, x0:x1], (width, height), dst=upright, interpolation=method)
    cv2.flip(upright, -1 if flip_x and flip_y else int(flip_x), dst=target)


def _draw_turned(image: NDArray[np.uint8], source_map: Map, corner: tuple[int, int], target: NDArray[np.uint8]) -> None:
    # Transparent, so that the corners of the rectangle keep what other tiles drew there. The price: the outermost half
    # pixel of the source, where no four neighbours are left to interpolate between, is not drawn either.
    to_target = scaling(1.0, 1.0, -0.5 - corner[0], -0.5 - corner[1]) @ source_map @ scaling(1.0, 1.0, 0.5, 0.5)
    cv2.warpAffine(
        image,
        to_target[:2],
        (target.shape[1], target.shape[0]),
        dst=target,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def map_boxes(maps: NDArray[np.float64], boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upright boxes (N, 4) around mapped boxes (N, 4): centres go by the map, half sides by its absolute values.

    maps: one (3, 3) for all, or (N, 3, 3), one a box.
    """
    linear, shifts = maps[..., :2, :2], maps[..., :2, 2]
    lows, highs = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    centres = np.matmul(linear, ((lows + highs) * 0.5)[..., None])[..., 0] + shifts
    half_sides = np.matmul(np.abs(linear), ((highs - lows) * 0.5)[..., None])[..., 0]
    return np.concatenate([centres - half_sides, centres + half_sides], axis=1)


def visible_boxes(
    boxes_xyxy: NDArray[np.float64], seen_xyxy: NDArray[np.float64], min_visible: float, min_side_px: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes (N, 4) cut to what is seen of their tile (N, 4), and which of them (N,) are still targets.

    A box stays when it keeps at least `min_visible` of its area and `min_side_px` of each side.
    """
    cut = np.concatenate(
        [np.maximum(boxes_xyxy[:, :2], seen_xyxy[:, :2]), np.minimum(boxes_xyxy[:, 2:], seen_xyxy[:, 2:])], axis=1
    )
    width, height = cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1]
    whole_area = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    shorter = np.minimum(width, height)
    return cut, (shorter > 0) & (shorter >= min_side_px) & (width * height >= min_visible * whole_area)
