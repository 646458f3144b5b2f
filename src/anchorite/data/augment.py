"""Augmentation: what may be done to a training image, the plan of one sample, and how OpenCV paints it.

All that is random is settled in the plan, before any pixel is touched; `device` paints the same plans on an
accelerator. A map is a (3, 3) float64 matrix on continuous coordinates (x, y, 1): pixel i covers i..i+1. OpenCV's warp
counts from pixel centres; the half pixel between the two conventions is corrected in `draw_warped` and nowhere else.

Legend: N boxes or maps, B samples, M tiles of all of them, S side of the canvas in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    """How source images get onto canvases: of one image, or of M with a leading dimension (M,) everywhere.

    map: (3, 3), source pixels to canvas pixels, exactly as the pixels go. seen: (4,) int64, left, top, right, bottom of
    the rectangle of the canvas that it may touch. crop: (4,) int64, for maps without rotation and shear the rectangle
    of the source that fills `seen`; else zeros. averages: () bool, whether the source shrinks so much, to under a
    quarter, that its areas are averaged.
    """

    map: Map
    seen: NDArray[np.int64]
    crop: NDArray[np.int64]
    averages: NDArray[np.bool_]

    @property
    def is_straight(self) -> NDArray[np.bool_]:
        """() bool, whether there is neither rotation nor shear."""
        return self.crop[..., 2] > 0

    def at(self, places: int | slice | NDArray[np.int64]) -> Warp:
        """That of one place of M, or of several."""
        return Warp(self.map[places], self.seen[places], self.crop[places], self.averages[places])


Numbers = float | NDArray[np.float64]


def scaling(scale_x: Numbers, scale_y: Numbers, shift_x: Numbers = 0.0, shift_y: Numbers = 0.0) -> Map:
    """The map x * scale + shift, for both axes: (3, 3) of numbers, (N, 3, 3) of arrays (N,)."""
    maps = np.zeros((*np.broadcast(scale_x, scale_y, shift_x, shift_y).shape, 3, 3))
    maps[..., 0, 0], maps[..., 1, 1], maps[..., 2, 2] = scale_x, scale_y, 1.0
    maps[..., 0, 2], maps[..., 1, 2] = shift_x, shift_y
    return maps


def turning(degrees: NDArray[np.float64]) -> Map:
    """Shear along both axes after a rotation (clockwise on screen), about the origin: (N, 3, 3).

    degrees: (N, 3), the angles of the rotation and of the shear along x and y.
    """
    # Not by NumPy's functions, whose last bit depends on the processor.
    turns = [(math.cos(turn), math.sin(turn), math.tan(x), math.tan(y)) for turn, x, y in np.radians(degrees).tolist()]
    cosine, sine, across, down = np.array(turns).reshape(-1, 4).T
    rotation, shear = scaling(cosine, cosine), scaling(np.ones(len(turns)), 1.0)
    rotation[:, 0, 1], rotation[:, 1, 0] = -sine, sine
    shear[:, 0, 1], shear[:, 1, 0] = across, down
    return shear @ rotation


def plan_warp(maps: Map, sizes_wh: NDArray[np.int64], size: int) -> Warp:
    """The warps of M whole source images onto square canvases of `size` pixels; where nothing of one can be seen, its
    `seen` is empty or upside down.

    maps: (M, 3, 3); sizes_wh: (M, 2) of the sources. Without rotation and shear, both rectangles are rounded to whole
    pixels, so that a plain resize does the work, and the map is refitted to them (it moves by less than a pixel inside
    the canvas): boxes go exactly where the pixels go.
    """
    is_straight = (maps[:, 0, 1] == 0) & (maps[:, 1, 0] == 0)
    if is_straight.all():
        return _snapped(maps, sizes_wh, size)
    corners = map_boxes(maps, np.concatenate([np.zeros_like(sizes_wh), sizes_wh], axis=1))
    lows, highs = np.maximum(0, np.floor(corners[:, :2])), np.minimum(size, np.ceil(corners[:, 2:]))
    seen = np.concatenate([lows, highs], axis=1).astype(np.int64)
    warp = Warp(maps.copy(), seen, np.zeros_like(seen), np.zeros(len(maps), bool))
    for part, snapped in zip(warp, _snapped(maps[is_straight], sizes_wh[is_straight], size), strict=True):
        part[is_straight] = snapped
    return warp


def _snapped(maps: Map, sizes_wh: NDArray[np.int64], size: int) -> Warp:
    """`plan_warp` of maps (M, 3, 3) without rotation and shear; each step along both axes, (M, 2)."""
    scales, shifts = maps[:, (0, 1), (0, 1)], maps[:, :2, 2]
    ends = shifts + scales * sizes_wh
    starts = np.rint(np.maximum(0.0, np.minimum(shifts, ends)))
    stops = np.rint(np.minimum(size, np.maximum(shifts, ends)))
    first, last = (starts - shifts) / scales, (stops - shifts) / scales
    crop_starts = np.minimum(np.maximum(0.0, np.rint(np.minimum(first, last))), sizes_wh - 1)
    crop_stops = np.maximum(np.minimum(sizes_wh, np.rint(np.maximum(first, last))), crop_starts + 1)
    shown, used = stops - starts, crop_stops - crop_starts
    scales = np.copysign(shown / used, scales)
    shifts = np.where(scales > 0, starts, stops) - scales * crop_starts
    rectangles = (starts, stops), (crop_starts, crop_stops)
    seen, crop = (np.concatenate(edges, axis=1).astype(np.int64) for edges in rectangles)
    averages = shown[:, 0] * shown[:, 1] * 4 < used[:, 0] * used[:, 1]
    return Warp(scaling(*scales.T, *shifts.T), seen, crop, averages)


def draw_warped(
    image: NDArray[np.uint8], warp: Warp, canvas: NDArray[np.uint8], scratch: Scratch | None = None
) -> None:
    """Write an image, warped, into the part of the canvas (H, W, 3) that it covers; the rest stays."""
    left, top, right, bottom = warp.seen.tolist()
    target, size_wh = canvas[top:bottom, left:right], (right - left, bottom - top)
    if not warp.is_straight:
        # Transparent, so that the corners of the rectangle keep what other tiles drew there. The price: the outermost
        # half pixel of the source, where no four neighbours are left to interpolate between, is not drawn either.
        to_target = scaling(1.0, 1.0, -0.5 - left, -0.5 - top) @ warp.map @ scaling(1.0, 1.0, 0.5, 0.5)
        border = cv2.BORDER_TRANSPARENT
        cv2.warpAffine(image, to_target[:2], size_wh, dst=target, flags=cv2.INTER_LINEAR, borderMode=border)
        return
    x0, y0, x1, y1 = warp.crop.tolist()
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
    middles, halves = (lows + highs) * 0.5, (highs - lows) * 0.5
    if linear[..., 0, 1].any() or linear[..., 1, 0].any():
        centres = np.matmul(linear, middles[..., None])[..., 0] + shifts
        half_sides = np.matmul(np.abs(linear), halves[..., None])[..., 0]
    else:  # the same numbers in a quarter of the time
        scales = linear.diagonal(axis1=-2, axis2=-1)
        centres, half_sides = middles * scales + shifts, halves * np.abs(scales)
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


def hue_steps(shift: Numbers) -> Numbers:
    """A shift of the hue, a fraction of the colour circle, in OpenCV's half degrees, a whole number."""
    return np.rint(shift * NUM_HUES) + 0.0  # no zero is negative


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


@dataclass(frozen=True)
class SamplePlans:
    """The plans of B samples of one size, as arrays; one of them as a `SamplePlan` by its number.

    num_layers: (B,) int64; shares: (B,); jitters: (B, 3). Of all M tiles, in the order of samples, layers and drawing:
    samples: (M,) int64, numbers of their samples; layers: (M,) int64, 0 or 1; sources: (M,) int64; sizes_wh: (M, 2)
    int64, of their images as stored; warp: (M,) of them.
    """

    size: int
    num_layers: NDArray[np.int64]
    shares: NDArray[np.float64]
    jitters: NDArray[np.float64]
    samples: NDArray[np.int64]
    layers: NDArray[np.int64]
    sources: NDArray[np.int64]
    sizes_wh: NDArray[np.int64]
    warp: Warp

    def __len__(self) -> int:
        return len(self.num_layers)

    def __iter__(self) -> Iterator[SamplePlan]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> SamplePlan:
        layers: list[list[Tile]] = [[] for _ in range(self.num_layers[number])]
        for tile in range(*np.searchsorted(self.samples, (number, number + 1)).tolist()):
            layers[self.layers[tile]].append(Tile(int(self.sources[tile]), self.warp.at(tile)))
        jitter = Jitter(*self.jitters[number].tolist())
        return SamplePlan(self.size, tuple(map(tuple, layers)), float(self.shares[number]), jitter)

    def part(self, start: int, stop: int) -> SamplePlans:
        """The plans of the samples from `start` up to `stop`."""
        own, tiles = slice(start, stop), slice(*np.searchsorted(self.samples, (start, stop)).tolist())
        return SamplePlans(
            self.size,
            self.num_layers[own],
            self.shares[own],
            self.jitters[own],
            self.samples[tiles] - start,
            self.layers[tiles],
            self.sources[tiles],
            self.sizes_wh[tiles],
            self.warp.at(tiles),
        )


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
