"""Yardsticks (c) and (d): the usual mosaic in two stages, from files that are decoded each time, or from memory.

Four tiles are pasted on a canvas of twice the side; the canvas is warped as a whole to the final size; colours go
through three look-up tables in HSV. The random choices have the ranges of AugmentConfig, flips and box rules included.

Legend: N boxes, S side of the final image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data import AugmentConfig, ImageStore, Record

Image = NDArray[np.uint8]
Boxes = NDArray[np.float64]
Tile = tuple[Image, Boxes, NDArray[np.int64]]  # pixels at a long side of S, boxes_xyxy (N, 4) in them, classes (N,)

_FILL = 114


def paste_tiles(tiles: Sequence[Tile], centre_xy: tuple[int, int], size: int) -> tuple[Image, Boxes]:
    """The canvas (2S, 2S, 3) with four tiles around a point of it, and their boxes (N, 4) cut to what is seen."""
    canvas = np.full((2 * size, 2 * size, 3), _FILL, np.uint8)
    centre_x, centre_y = centre_xy
    boxes = []
    for place, (image, boxes_xyxy, _) in enumerate(tiles):  # upper left, upper right, lower left, lower right
        height, width = image.shape[:2]
        left = centre_x if place % 2 else centre_x - width
        top = centre_y if place >= 2 else centre_y - height
        x0, y0, x1, y1 = max(0, left), max(0, top), min(2 * size, left + width), min(2 * size, top + height)
        canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
        moved = boxes_xyxy + np.array([left, top, left, top])
        boxes.append(moved.clip([x0, y0, x0, y0], [x1, y1, x1, y1]))
    return canvas, np.concatenate(boxes)


def warp_canvas(
    canvas: Image, boxes_xyxy: Boxes, zoom: float, shift_px: NDArray[np.float64], size: int
) -> tuple[Image, Boxes]:
    """The final image (S, S, 3) and the boxes (N, 4) on it, uncut; a point goes to point * zoom + shift."""
    matrix = np.array([[zoom, 0.0, shift_px[0]], [0.0, zoom, shift_px[1]]])
    image = cv2.warpAffine(canvas, matrix, (size, size), borderValue=(_FILL, _FILL, _FILL))
    return np.asarray(image, np.uint8), boxes_xyxy * zoom + np.tile(shift_px, 2)


def jitter_by_tables(image: Image, gains: NDArray[np.float64]) -> Image:
    """Hue, saturation and value scaled by `gains` (3,), each through a look-up table."""
    levels = np.arange(256)
    tables = [(levels * gains[0]) % 180, (levels * gains[1]).clip(0, 255), (levels * gains[2]).clip(0, 255)]
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    planes = [cv2.LUT(plane, table.astype(np.uint8)) for plane, table in zip(planes, tables, strict=True)]
    return np.asarray(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB), np.uint8)


def two_stage_sample(
    tiles: Sequence[Tile], rng: np.random.Generator, config: AugmentConfig, size: int
) -> tuple[Image, NDArray[np.float32]]:
    """A training image (3, S, S) and its rows (N, 5): class, cx, cy, w, h in 0..1."""
    centre_x, centre_y = (int(number * size) for number in rng.uniform(0.5, 1.5, 2))
    canvas, boxes = paste_tiles(tiles, (centre_x, centre_y), size)
    zoom = float(rng.uniform(1 - config.scale, 1 + config.scale))
    shift_px = rng.uniform(0.5 - config.translation, 0.5 + config.translation, 2) * size - zoom * size
    image, boxes = warp_canvas(canvas, boxes, zoom, shift_px, size)
    class_ids = np.concatenate([classes for _, _, classes in tiles])
    cut = boxes.clip(0, size)
    before, after = boxes[:, 2:] - boxes[:, :2], cut[:, 2:] - cut[:, :2]
    kept = (after.min(axis=1) >= config.min_side_px) & (after.prod(axis=1) >= config.min_visible * before.prod(axis=1))
    cut, class_ids = cut[kept], class_ids[kept]
    image = jitter_by_tables(image, rng.uniform(-1, 1, 3) * [config.hue, config.saturation, config.value] + 1)
    if rng.random() < config.flip_horizontal:
        image, cut = np.fliplr(image), np.stack([size - cut[:, 2], cut[:, 1], size - cut[:, 0], cut[:, 3]], axis=1)
    centres, sides = (cut[:, :2] + cut[:, 2:]) / 2 / size, (cut[:, 2:] - cut[:, :2]) / size
    rows = np.column_stack([class_ids, centres, sides]).astype(np.float32)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), rows


def decoded_tile(record: Record, size: int) -> Tile:
    """A record's image from its file, scaled to a long side of `size`, with its boxes."""
    image = cv2.imread(str(record.path), cv2.IMREAD_COLOR_RGB)
    assert image is not None, record.path
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=method)
    ratio_xy = np.array([image.shape[1] / width, image.shape[0] / height])
    return np.asarray(image, np.uint8), record.boxes_xyxy * np.tile(ratio_xy, 2), record.class_ids


def stored_tile(store: ImageStore, index: int) -> Tile:
    """A record's image as a store in memory keeps it, with its boxes."""
    record = store.records[index]
    return store.image(index), record.boxes_xyxy * np.tile(store.scale(index), 2), record.class_ids


def two_stage_batch(
    tile: Callable[[int], Tile],
    num_records: int,
    indices: Sequence[int],
    rng: np.random.Generator,
    config: AugmentConfig,
    size: int,
) -> tuple[Image, NDArray[np.float32]]:
    """A batch (B, 3, S, S) of mosaics of each index and three random others, and rows (T, 6) with the image number."""
    images, rows = [], []
    for number, index in enumerate(indices):
        chosen = [index, *rng.integers(0, num_records, 3).tolist()]
        image, found = two_stage_sample([tile(one) for one in chosen], rng, config, size)
        images.append(image)
        rows.append(np.column_stack([np.full(len(found), number, np.float32), found]))
    return np.stack(images), np.concatenate(rows)
