"""Augmentation: what may be done to a training image, the plan of one sample, and how OpenCV paints it.

All that is random is settled in the plan, before any pixel is touched; `device` paints the same plans on an
accelerator. A map is a (3, 3) float64 matrix on continuous coordinates (x, y, 1): pixel i covers i..i+1. OpenCV's warp
counts from pixel centres; the half pixel between the two conventions is corrected in `draw_warped` and nowhere else.

Legend: N boxes, S side of the canvas in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from anchorite.data.dataset import Record
from anchorite.data.images import FILL

NUM_HUES = 180  # OpenCV keeps the hue of a uint8 image in half degrees
STRIP_PIXELS = 102_400  # what is worked on at a time, so that the intermediate planes stay in the processor's cache
_LINE = 64  # bytes of a cache line, and of the widest vector

Map = NDArray[np.float64]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Probability = Annotated[float, Field(ge=0, le=1)]
Gain = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, lt=90)]


class AugmentConfig(BaseModel):
    """Probabilities and ranges; a range is drawn from evenly, and 0 switches its augmentation off.

    mosaic: probability that four images share the canvas. mixup: probability that a second sample is blended in.
    hue: largest shift, in turns of the colour circle. saturation, value: factors from 1 - gain to 1 + gain.
    rotation, shear: largest angles in degrees, either way. translation: largest shift as a fraction of the canvas.
    scale: factors from 1 - scale to 1 + scale. flip_horizontal, flip_vertical: probabilities.
    close_mosaic_epochs: the last epochs see neither mosaic nor mixup. min_visible: a box stays a target when at least
    this fraction of its area is still seen, and min_side_px of each side.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    mosaic: Probability = 1.0
    mixup: Probability = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.015
    saturation: Gain = 0.7
    value: Gain = 0.4
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    translation: Gain = 0.1
    scale: Gain = 0.5
    shear: Degrees = 0.0
    flip_horizontal: Probability = 0.5
    flip_vertical: Probability = 0.0
    close_mosaic_epochs: Annotated[int, Field(ge=0)] = 10
    min_visible: Probability = 0.1
    min_side_px: Annotated[float, Field(ge=0)] = 2.0

    @classmethod
    def none(cls) -> AugmentConfig:
        """No augmentation: letterboxed images as they are."""
        off = ("mosaic", "hue", "saturation", "value", "translation", "scale", "flip_horizontal")
        return cls(**dict.fromkeys(off, 0.0), close_mosaic_epochs=0)


class Scratch:
    """Byte arrays by name, used again from sample to sample: the first touch of fresh memory costs as much as the work.

    For one thread at a time; an array is valid until the same name is asked for again.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, *shape: int, skew: int = 8) -> NDArray[np.uint8]:
        """An uninitialised uint8 array of this shape that begins `skew` bytes after a cache line does.

        OpenCV's split and merge write past the cache, which makes the next read several times slower, when all
        their outputs are aligned alike: give their outputs different skews, none a multiple of 3.
        """
        size = math.prod(shape)
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = np.empty(size + _LINE + skew, np.uint8)
            array = self._arrays[name] = array[-array.ctypes.data % _LINE + skew :]
        return array[:size].reshape(shape)


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
        scale_x, shift_x, left, right, x0, x1 = along_x
        scale_y, shift_y, top, bottom, y0, y1 = along_y
        return Warp(scaling(scale_x, scale_y, shift_x, shift_y), (left, top, right, bottom), (x0, y0, x1, y1))
    corners = map_boxes(source_map, np.array([[0.0, 0.0, width, height]]))[0]
    (left, top), (right, bottom) = np.floor(corners[:2]).astype(int).tolist(), np.ceil(corners[2:]).astype(int).tolist()
    seen = max(0, left), max(0, top), min(size, right), min(size, bottom)
    return Warp(source_map, seen, None) if seen[0] < seen[2] and seen[1] < seen[3] else None


def _snap_axis(scale: float, shift: float, side: int, size: int) -> tuple[float, float, int, int, int, int] | None:
    """Scale, shift, canvas interval and source interval along one axis of a source, the intervals in whole pixels."""
    lowest, highest = sorted((shift, shift + scale * side))
    start, stop = round(max(0.0, lowest)), round(min(float(size), highest))
    if stop <= start:
        return None
    first, last = sorted(((start - shift) / scale, (stop - shift) / scale))
    crop_start = min(max(0, round(first)), side - 1)
    crop_stop = max(min(side, round(last)), crop_start + 1)
    snapped = math.copysign((stop - start) / (crop_stop - crop_start), scale)
    return snapped, (start if scale > 0 else stop) - snapped * crop_start, start, stop, crop_start, crop_stop


def draw_warped(
    image: NDArray[np.uint8], warp: Warp, canvas: NDArray[np.uint8], scratch: Scratch | None = None
) -> None:
    """Write the warped image into the part of the canvas (H, W, 3) that it covers; the rest stays."""
    left, top, right, bottom = warp.seen
    target, size_wh = canvas[top:bottom, left:right], (right - left, bottom - top)
    if warp.crop is None:
        # Transparent, so that the corners of the rectangle keep what other tiles drew there. The price: the outermost
        # half pixel of the source, where no four neighbours are left to interpolate between, is not drawn either.
        to_target = scaling(1.0, 1.0, -0.5 - left, -0.5 - top) @ warp.map @ scaling(1.0, 1.0, 0.5, 0.5)
        border = cv2.BORDER_TRANSPARENT
        cv2.warpAffine(image, to_target[:2], size_wh, dst=target, flags=cv2.INTER_LINEAR, borderMode=border)
        return
    x0, y0, x1, y1 = warp.crop
    method = cv2.INTER_AREA if warp.averages else cv2.INTER_LINEAR
    flip_x, flip_y = warp.map[0, 0] < 0, warp.map[1, 1] < 0
    upright = (scratch or Scratch()).array("upright", *target.shape) if flip_x or flip_y else target
    cv2.resize(image[y0:y1, x0:x1], size_wh, dst=upright, interpolation=method)
    if flip_x or flip_y:
        cv2.flip(upright, -1 if flip_x and flip_y else int(flip_x), dst=target)


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


def seen_extents(
    maps: NDArray[np.float64], boxes_xyxy: NDArray[np.float64], seen_xyxy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The upright boxes (N, 4) around what is seen of mapped boxes (N, 4); of those that are not seen, upside down.

    maps: (N, 3, 3); seen_xyxy: (N, 4), what is seen of their tile. Of a turned box that reaches out of it, that is
    less than the box around all of it. Its corners are where the sides of either shape enter and leave the other one.
    """
    corners = np.array([[0, 1], [2, 1], [2, 3], [0, 3]])
    linear, shifts = maps[:, None, :2, :2], maps[:, None, :2, 2]
    mapped = np.matmul(linear, boxes_xyxy[:, corners][..., None])[..., 0] + shifts
    unmapped = np.matmul(np.linalg.inv(linear), (seen_xyxy[:, corners] - shifts)[..., None])[..., 0]
    lows, highs = np.full((len(maps), 2), np.inf), np.full((len(maps), 2), -np.inf)
    for points, tested, bounds in ((mapped, mapped, seen_xyxy), (seen_xyxy[:, corners], unmapped, boxes_xyxy)):
        steps = np.roll(tested, -1, axis=1) - tested
        steps[steps == 0] = np.finfo(np.float64).tiny  # along a bound: on its right side throughout, or never
        with np.errstate(over="ignore"):
            crossings = (bounds.reshape(-1, 1, 2, 2) - tested[:, :, None]) / steps[:, :, None]
        enters = crossings.min(axis=2).max(axis=2, initial=0)
        leaves = crossings.max(axis=2).min(axis=2, initial=1)
        is_seen = (enters <= leaves)[..., None]
        for fractions in (enters, leaves):
            places = points + fractions.clip(0, 1)[..., None] * (np.roll(points, -1, axis=1) - points)
            lows = np.minimum(lows, places.min(axis=1, initial=np.inf, where=is_seen))
            highs = np.maximum(highs, places.max(axis=1, initial=-np.inf, where=is_seen))
    return np.concatenate([np.maximum(lows, seen_xyxy[:, :2]), np.minimum(highs, seen_xyxy[:, 2:])], axis=1)


class Jitter(NamedTuple):
    """hue: shift in turns of the colour circle; saturation, value: factors."""

    hue: float
    saturation: float
    value: float


NO_JITTER = Jitter(0.0, 1.0, 1.0)


def jitter_colours(
    image: NDArray[np.uint8], jitter: Jitter, out: NDArray[np.uint8] | None = None, scratch: Scratch | None = None
) -> None:
    """Shift the hue and scale saturation and value of an RGB image (H, W, 3), saturating at 255.

    out: where the result goes, (H, W, 3); None changes the image in place.
    """
    out = image if out is None else out
    if jitter == NO_JITTER:
        if out is not image:
            out[:] = image
        return
    scratch = scratch or Scratch()
    height, width = image.shape[:2]
    strip_height = min(height, max(1, STRIP_PIXELS // width))
    hues = ((np.arange(256) + hue_steps(jitter.hue)) % NUM_HUES).astype(np.uint8)
    for top in range(0, height, strip_height):
        strip = image[top : top + strip_height]
        hsv = scratch.array("hsv", *strip.shape)
        planes = [scratch.array(f"plane {skew}", *strip.shape[:2], skew=skew) for skew in (8, 16, 32)]
        cv2.cvtColor(strip, cv2.COLOR_RGB2HSV, dst=hsv)
        hue, saturation, value = cv2.split(hsv, planes)
        cv2.LUT(hue, hues, dst=hue)
        cv2.convertScaleAbs(saturation, dst=saturation, alpha=jitter.saturation)  # as tables would, but vectorised
        cv2.convertScaleAbs(value, dst=value, alpha=jitter.value)
        cv2.merge((hue, saturation, value), dst=hsv)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=out[top : top + strip_height])


def hue_steps(shift: float) -> int:
    """A shift of the hue, a fraction of the colour circle, in OpenCV's half degrees."""
    return round(shift * NUM_HUES)


class Images(Protocol):
    """Decoded images by the index of their record, and the (height, width) of each."""

    sizes_hw: list[tuple[int, int]]

    @property
    def records(self) -> Sequence[Record]: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB."""
        ...


class Tile(NamedTuple):
    """One image on a canvas: source, the index of its record, and how it gets there."""

    source: int
    warp: Warp


class SamplePlan(NamedTuple):
    """A sample before it is painted.

    size: canvas side S. layers: the canvases to blend (two with mixup), each its tiles in the order of drawing. share:
    the weight of the first layer when there are two. jitter: of the colours, once all is blended.
    """

    size: int
    layers: tuple[tuple[Tile, ...], ...]
    share: float
    jitter: Jitter


def paint(plan: SamplePlan, images: Images, canvas: NDArray[np.uint8], scratch: Scratch) -> None:
    """Paint a planned sample over all of `canvas` (S, S, 3); `scratch` serves from sample to sample."""
    # What is worked on stays in the processor's cache; the canvas, new in every batch, is written once.
    draft = canvas if plan.jitter == NO_JITTER else scratch.array("draft", *canvas.shape)
    for number, tiles in enumerate(plan.layers):
        layer = scratch.array("layer", *canvas.shape) if number else draft
        layer.fill(FILL)
        for tile in tiles:
            draw_warped(images.image(tile.source), tile.warp, layer, scratch)
        if number:
            cv2.addWeighted(draft, plan.share, layer, 1.0 - plan.share, 0.0, dst=draft)
    jitter_colours(draft, plan.jitter, canvas, scratch)
