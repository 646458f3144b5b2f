"""The plans of a batch as a few small arrays, to be sent to the device at once.

Coordinates here count pixel centres: canvas pixel X reads source pixel x of it, so that 0 is the middle of the first.

Legend: B images, L layers of an image (two with mixup), Q tiles of a layer, S side of the canvas in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.data.augment import SamplePlan, Tile, hue_steps

# Columns of a tile's numbers.
MAP = slice(0, 6)  # x of X, of Y and of 1; then y of X, Y, 1
SEEN = slice(6, 10)  # left, top, right, bottom: canvas pixels that the tile may cover
DRAWN = slice(10, 14)  # lowest x and y, and the bounds of x and y, that are drawn; of turned tiles
HELD = slice(14, 18)  # lowest x and y, highest x and y: coordinates are held in this range
REACH = slice(18, 20)  # half the width and height, in source pixels, of the area averaged; 0 to interpolate instead
NUM_COLUMNS = 20
MOSAIC_TILES = 4
_EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)
# OpenCV counts in 32nds of a pixel: nearest to 0 lies what is less than a 64th away.
_EDGE = 1 / 64


class BatchPlan(NamedTuple):
    """What is painted for a batch.

    sources: (B * L * Q) indices of records, in the order of `tiles`; -1 where there is no tile. tiles: (B, L, Q, 20)
    float32, see above. widths: (B, L, Q) int64, row lengths of the sources. colours: (B, 4) float32: share of the
    first layer, hue shift in half degrees, factors of saturation and value. size: S. taps: source pixels read along
    each axis for a canvas pixel, 2 unless areas are averaged. jitters: whether any colour changes.
    """

    sources: tuple[int, ...]
    tiles: Tensor
    widths: Tensor
    colours: Tensor
    size: int
    taps: int
    jitters: bool


def plan_batch(
    plans: Sequence[SamplePlan], sizes_hw: Sequence[tuple[int, int]], num_images: int | None = None
) -> BatchPlan:
    """The arrays of plans of one size, for sources of these (height, width).

    num_images: B, when it shall be more than there are plans: nothing is painted onto the others.
    """
    num_images = num_images or len(plans)
    num_layers = max(len(plan.layers) for plan in plans)
    # One or a mosaic's four, nothing between, so that few shapes occur and few kernels are compiled.
    num_tiles = MOSAIC_TILES if any(len(layer) > 1 for plan in plans for layer in plan.layers) else 1
    shape = (num_images, num_layers, num_tiles)
    sources, widths = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    numbers = np.zeros((*shape, NUM_COLUMNS))
    colours = np.tile(np.array([1.0, 0.0, 1.0, 1.0]), (num_images, 1))
    places = [
        (image, layer, place, tile)
        for image, plan in enumerate(plans)
        for layer, tiles in enumerate(plan.layers)
        for place, tile in enumerate(tiles)
    ]
    if places:
        where = tuple(np.array([place[:3] for place in places]).T)
        tiles = [place[3] for place in places]
        sources[where] = [tile.source for tile in tiles]
        widths[where] = [sizes_hw[tile.source][1] for tile in tiles]
        numbers[where] = _tile_numbers(tiles, sizes_hw)
    for image, plan in enumerate(plans):
        hue, saturation, value = plan.jitter
        colours[image] = plan.share, hue_steps(hue), saturation, value
    return BatchPlan(
        tuple(sources.flatten().tolist()),
        torch.from_numpy(numbers.astype(np.float32)),
        torch.from_numpy(widths),
        torch.from_numpy(colours.astype(np.float32)),
        plans[0].size,
        _taps(numbers[..., REACH]),
        any(plan.jitter != (0.0, 1.0, 1.0) for plan in plans),
    )


def _tile_numbers(tiles: Sequence[Tile], sizes_hw: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """The columns of tiles, (M, 20)."""
    numbers = np.zeros((len(tiles), NUM_COLUMNS))
    numbers[:, MAP] = _pixel_maps(np.stack([tile.warp.map for tile in tiles]))
    numbers[:, SEEN] = [tile.warp.seen for tile in tiles]
    for row, tile in zip(numbers, tiles, strict=True):
        height, width = sizes_hw[tile.source]
        if tile.warp.crop is None:
            row[DRAWN] = -_EDGE, -_EDGE, width - _EDGE, height - _EDGE
            row[HELD] = 0, 0, width - 1, height - 1
            continue
        row[DRAWN] = _EVERYWHERE
        x0, y0, x1, y1 = tile.warp.crop
        # An average may take in what lies within the crop, an interpolation what lies between its pixels' centres.
        reach_x, reach_y = (abs(row[MAP][0]) / 2, abs(row[MAP][4]) / 2) if tile.warp.averages else (0.5, 0.5)
        row[HELD] = x0 - 0.5 + reach_x, y0 - 0.5 + reach_y, x1 - 0.5 - reach_x, y1 - 0.5 - reach_y
        row[REACH] = (reach_x, reach_y) if tile.warp.averages else (0, 0)
    return numbers


def _pixel_maps(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """From maps of the source onto the canvas, (M, 3, 3), the six numbers (M, 6) that find a canvas pixel's source."""
    linear = np.linalg.inv(maps[:, :2, :2])
    shifts = np.matmul(linear, (0.5 - maps[:, :2, 2])[..., None]) - 0.5
    return np.concatenate([linear, shifts], axis=2).reshape(-1, 6)


def _taps(reach: NDArray[np.float64]) -> int:
    """Source pixels to read along an axis, in even numbers, so that few different ones occur."""
    if not reach.any():
        return 2
    return 2 * math.ceil((math.ceil(2 * reach.max()) + 1) / 2)
