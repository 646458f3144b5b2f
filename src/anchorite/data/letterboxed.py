"""Letterboxed batches for validation: images of like aspect together, so that little padding is computed on.

Legend: B images, H, W height and width of a batch in pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchorite.data.letterbox import LetterboxTransform, draw_letterboxed, letterbox_transform, rectangular_size
from anchorite.data.prefetch import prefetch
from anchorite.data.records import Record
from anchorite.data.store import ImageStore
from anchorite.errors import InputError


class LetterboxedBatch(NamedTuple):
    """images: (B, 3, H, W) uint8 RGB, channels last in memory; transforms: from each record's pixels to them, and back;
    indices: (B,) int64, the records they show, for restoring the order.
    """

    images: Tensor
    transforms: tuple[LetterboxTransform, ...]
    indices: Tensor


class LetterboxedPlan(NamedTuple):
    """One batch before it is made: the records it shows and its (height, width) in pixels."""

    indices: tuple[int, ...]
    size_hw: tuple[int, int]


def plan_letterboxed(
    records: Sequence[Record], image_size: int, batch_size: int, stride: int = 32, rectangular: bool = True
) -> list[LetterboxedPlan]:
    """The batches of a pass over all records, each once.

    rectangular: each image in the smallest input that holds it, in multiples of `stride`, and a batch only of images
    with the same input, so that no result depends on the neighbours or the batch size; else all inputs are square.
    Raises InputError when `image_size` is no multiple of `stride`.
    """
    if image_size % stride:
        raise InputError(
            f"image size {image_size}: must be a multiple of the largest stride, {stride}; "
            f"take {-(-image_size // stride) * stride}"
        )
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, record in enumerate(records):
        image_hw = (record.height, record.width)
        size_hw = rectangular_size(image_hw, image_size, stride) if rectangular else (image_size, image_size)
        by_size.setdefault(size_hw, []).append(index)
    return [
        LetterboxedPlan(chosen, size_hw)
        for size_hw, indices in sorted(by_size.items())
        for chosen in _chunks(indices, batch_size)
    ]


def _chunks(order: list[int], length: int) -> list[tuple[int, ...]]:
    return [tuple(order[start : start + length]) for start in range(0, len(order), length)]


def letterboxed_batches(
    source: ImageStore | Sequence[Record], image_size: int, batch_size: int, stride: int = 32, rectangular: bool = True
) -> Iterator[LetterboxedBatch]:
    """All images of a store, or of records decoded on the way, as `plan_letterboxed` orders them, one batch ahead.

    A store at `image_size` needs no further resizing. Raises InputError naming an image that cannot be decoded.
    """
    store = source if isinstance(source, ImageStore) else ImageStore(source, image_size, "none")
    plans = plan_letterboxed(store.records, image_size, batch_size, stride, rectangular)

    def make(_stop: threading.Event) -> Generator[LetterboxedBatch, None, None]:
        for plan in plans:
            yield _make_batch(store, plan)

    return prefetch(make, depth=1)


def _make_batch(store: ImageStore, plan: LetterboxedPlan) -> LetterboxedBatch:
    pixels = torch.empty((len(plan.indices), *plan.size_hw, 3), dtype=torch.uint8)
    transforms = []
    for canvas, index in zip(pixels.numpy(), plan.indices, strict=True):
        record = store.records[index]
        transform = letterbox_transform((record.height, record.width), plan.size_hw)
        draw_letterboxed(store.image(index), transform, canvas)
        transforms.append(transform)
    return LetterboxedBatch(pixels.permute(0, 3, 1, 2), tuple(transforms), torch.tensor(plan.indices))
