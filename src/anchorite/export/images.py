"""The images that an export is compared, calibrated and measured on.

Legend: B images, H, W of the network input in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from anchorite.data import Record, letterbox, letterboxed_batches
from anchorite.data.scenes import draw_scene
from anchorite.export.exported import filled
from anchorite.export.metadata import ExportInfo

Item = TypeVar("Item")

_SEED = 11
_NUM_DRAWN = 6
_BATCH = 4


def batches_of(records: Sequence[Record], info: ExportInfo) -> Iterator[Tensor]:
    """uint8 images (B, 3, H, W) of labelled records, as the export takes them: of their own shape, or of the fixed one.

    Raises InputError naming an image that cannot be decoded.
    """
    if not records:
        return
    side, stride = info.weights.image_size, info.weights.anchors.strides[-1]
    if info.fixed_shape is None:
        yield from (batch.images for batch in letterboxed_batches(records, side, _BATCH, stride))
        return
    batch_size = info.fixed_shape[0]
    for batch in letterboxed_batches(records, side, batch_size, stride, rectangular=False):
        yield filled(batch.images, batch_size)


def drawn_batches(info: ExportInfo) -> list[Tensor]:
    """uint8 images (B, 3, H, W) of synthetic scenes: of several B, H and W where these are free."""
    side, stride = info.weights.image_size, info.weights.anchors.strides[-1]
    scenes = [draw_scene(_SEED, "val", index, min(side, 640)).image for index in range(_NUM_DRAWN)]
    if info.fixed_shape is not None:
        return [_stacked(scenes, (side, side))]
    part = max(stride, side * 5 // 8 // stride * stride)
    shapes = [(side, side), (part, side), (side, part)]
    return [_stacked(scenes[:count], size_hw) for count, size_hw in enumerate(shapes, start=1)]


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly spaced."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _stacked(scenes: Sequence[np.ndarray], size_hw: tuple[int, int]) -> Tensor:
    images = np.stack([letterbox(scene, size_hw)[0] for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2)
