"""Which images make which batch, in training and in validation.

In training a pure function of (seed, epoch), so that a run can go on at any batch; in validation images of like aspect
together, so that little padding is computed on.

Legend: B images, H, W height and width of the network input in pixels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from anchorite.boxes import LabelCoverage, Targets
from anchorite.choices import CompileName
from anchorite.data.dataset import Record
from anchorite.data.images import LetterboxTransform, draw_letterboxed, letterbox_transform, rectangular_size
from anchorite.data.prefetch import prefetch
from anchorite.data.random_numbers import rng_of
from anchorite.data.samples import LabelParts, SampleConfig, SampleKey, SampleLabels, TrainSamples
from anchorite.data.store import ImageStore
from anchorite.errors import InputError

StorageName = Literal["auto", "device", "ram", "disk", "none"]
_MIN_CAPACITY = 64
_ORDER, _SIZES = 1, 2  # separate streams of random numbers under one seed


@dataclass(frozen=True)
class Batch:
    """Augmented images and their targets.

    images: (B, 3, H, W) uint8, RGB (divided by 255 on the device, by the step); targets: their boxes, image numbers
    0..B-1; indices: (B,) int64, the record each image (its first tile) came from; coverage: what its labels do not
    know, None where they know everything.
    """

    images: Tensor
    targets: Targets
    indices: Tensor
    coverage: LabelCoverage | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        images = self.images.to(device, non_blocking=non_blocking)
        targets = self.targets.to(device, non_blocking=non_blocking)
        coverage = None if self.coverage is None else self.coverage.to(device, non_blocking=non_blocking)
        return Batch(images, targets, self.indices, coverage)

    def with_fixed_capacity(self) -> Batch:
        """The batch with padded labels: of compact ones, targets and ignore regions each to the next power of two (64
        at least), so that few shapes occur in a run.
        """
        targets, coverage = self.targets, self.coverage
        if targets.is_padded:
            return self
        if coverage is not None and coverage.ignore_regions is not None:
            coverage = coverage.padded(_capacity(len(coverage.ignore_regions)))
        return replace(self, targets=targets.padded(_capacity(len(targets))), coverage=coverage)


def _capacity(count: int) -> int:
    return max(_MIN_CAPACITY, 1 << (count - 1).bit_length())


class Capacities(NamedTuple):
    """How many rows targets and ignore regions of a batch are padded to."""

    targets: int
    regions: int


def label_tensors(labels: SampleLabels, capacities: Capacities | None = None) -> tuple[Targets, LabelCoverage | None]:
    """The labels of a batch as the loss takes them, padded to `capacities`; no coverage where they know everything."""
    weights, sources, *unknown = (None if array is None else torch.from_numpy(array) for array in labels[1:])
    targets = Targets.from_rows(torch.from_numpy(labels.rows), weights, sources=sources)
    coverage = None if all(one is None for one in unknown) else LabelCoverage(*unknown)
    if capacities is None:
        return targets, coverage
    return targets.padded(capacities.targets), coverage and coverage.padded(capacities.regions)


def empty_batch(side: int, parts: LabelParts | None = None, capacities: Capacities | None = None) -> Batch:
    """The part of a rank for which there is no image.

    side: of the canvas in pixels; parts: of its labels, by default boxes alone.
    """
    images = torch.empty((0, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    targets, coverage = label_tensors((parts or LabelParts()).no_labels(side), capacities)
    return Batch(images, targets, torch.zeros(0, dtype=torch.int64), coverage)


class LoaderConfig(BaseModel):
    """How batches are made.

    batch_size: images of a batch, on all ranks together. workers: processes; 0 draws in a thread of this process, None
    leaves the choice to `open_loader`. drop_last: leave out an epoch's last, smaller batch. multi_scale m: each batch
    has a canvas side of its own, a multiple of `size_step` pixels within 1 - m to 1 + m of the usual one. prefetch:
    batches a worker prepares before they are needed. worker_timeout_s: how long a batch may take before its worker
    counts as hung. storage (where the images are kept), compile (the augmentation on the device) and skip_bad (leave
    out images that cannot be decoded) are read by `open_loader` alone.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    batch_size: Annotated[int, Field(ge=1)] = 16
    workers: Annotated[int, Field(ge=0)] | None = 0
    drop_last: bool = False
    multi_scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    size_step: Annotated[int, Field(ge=1)] = 32
    prefetch: Annotated[int, Field(ge=1)] = 2
    worker_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    pin_memory: bool = False
    start_method: Literal["fork", "spawn"] | None = None
    rank: Annotated[int, Field(ge=0)] = 0
    world_size: Annotated[int, Field(ge=1)] = 1
    storage: StorageName = "auto"
    compile: CompileName = "auto"
    skip_bad: bool = False

    def possible_sides(self, image_size: int) -> range:
        """The canvas sides, in pixels, that a batch may have; InputError when there is none."""
        if self.multi_scale == 0:
            return range(image_size, image_size + 1)
        step = self.size_step
        lowest = math.ceil(image_size * (1 - self.multi_scale) / step) * step
        sides = range(lowest, int(image_size * (1 + self.multi_scale) / step) * step + 1, step)
        if not sides:
            raise InputError(
                f"multi_scale {self.multi_scale} of {image_size} px holds no multiple of {step} px; enlarge it"
            )
        return sides

    def sides(self, num_batches: int, samples: SampleConfig, epoch: int) -> list[int]:
        """The canvas side of each batch of an epoch, in pixels."""
        possible = self.possible_sides(samples.image_size)
        choices = rng_of(samples.seed, epoch, stream=(_SIZES,)).integers(len(possible), size=num_batches)
        return [possible[choice] for choice in choices]


@dataclass(frozen=True)
class BatchSizes:
    """How many samples each batch of an epoch has; every rank takes part in every batch.

    Raises InputError when there would be no batch at all.
    """

    num_samples: int
    config: LoaderConfig

    def __post_init__(self) -> None:
        if self.num_batches == 0:
            remedy = "lower the batch size or keep the last batch" if self.num_samples else "the split is empty"
            raise InputError(f"{self.num_samples} images give no batch of {self.config.batch_size}: {remedy}")

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch, the same on all ranks."""
        size = self.config.batch_size
        return self.num_samples // size if self.config.drop_last else -(-self.num_samples // size)

    def num_in(self, batch: int) -> int:
        """Samples of a batch of an epoch, on all ranks together."""
        return min(self.config.batch_size, self.num_samples - batch * self.config.batch_size)

    @property
    def largest_part(self) -> int:
        """The most samples that a batch has on this rank."""
        return -(-self.config.batch_size // self.config.world_size)

    def part(self, batch: int, rank: int) -> int:
        """Samples of a batch of an epoch that a rank has; none where a last, smaller batch does not go round."""
        whole, rest = divmod(self.num_in(batch), self.config.world_size)
        return whole + (rank < rest)

    def before(self, batch: int, rank: int) -> int:
        """Samples that a rank takes before a batch of an epoch."""
        last = min(batch, self.num_batches - 1)  # the only one that can be smaller
        return last * self.part(0, rank) + (self.part(last, rank) if batch > last else 0)


class EpochBatches:
    """The sample keys of each batch of an epoch: every record once, shuffled by (seed, epoch).

    The parts of all ranks together are the batch of a single process. Raises InputError when there would be no batch.
    """

    def __init__(self, samples: TrainSamples, config: LoaderConfig) -> None:
        self.samples, self.config, self.sizes = samples, config, BatchSizes(len(samples), config)

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Sequence[SampleKey]]:
        """The keys of this rank's part of each batch, from one batch of the epoch on."""
        order = rng_of(self.samples.config.seed, epoch, stream=(_ORDER,)).permutation(self.sizes.num_samples)
        num_batches, batch_size = self.sizes.num_batches, self.config.batch_size
        sides = self.config.sides(num_batches, self.samples.config, epoch)
        for batch in range(start_batch, num_batches):
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            part = np.array_split(chosen, self.config.world_size)[self.config.rank]
            yield [SampleKey(epoch, index, sides[batch]) for index in part.tolist()]


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
        LetterboxedPlan(tuple(indices[start : start + batch_size]), size_hw)
        for size_hw, indices in sorted(by_size.items())
        for start in range(0, len(indices), batch_size)
    ]


def letterboxed_batches(
    source: ImageStore | Sequence[Record], image_size: int, batch_size: int, stride: int = 32, rectangular: bool = True
) -> Iterator[LetterboxedBatch]:
    """All images of a store, or of records decoded as they are needed, in the order of `plan_letterboxed`.

    One batch is prefetched. A store at `image_size` needs no further resizing. Raises InputError naming an image that
    cannot be decoded.
    """
    store = source if isinstance(source, ImageStore) else ImageStore(source, image_size, "none")
    plans = plan_letterboxed(store.records, image_size, batch_size, stride, rectangular)

    def make(_stop: threading.Event) -> Generator[LetterboxedBatch, None, None]:
        for indices, size_hw in plans:
            pixels = torch.empty((len(indices), *size_hw, 3), dtype=torch.uint8)
            transforms = []
            for canvas, index in zip(pixels.numpy(), indices, strict=True):
                record = store.records[index]
                transforms.append(letterbox_transform((record.height, record.width), size_hw))
                draw_letterboxed(store.image(index), transforms[-1], canvas)
            yield LetterboxedBatch(pixels.permute(0, 3, 1, 2), tuple(transforms), torch.tensor(indices))

    return prefetch(make, depth=1)
