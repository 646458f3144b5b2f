"""Which samples make which batch: a pure function of (seed, epoch), so that a run can go on at any batch.

Legend: B images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anchorite.data.samples import SampleKey
from anchorite.errors import InputError

_ORDER, _SIZES = 1, 2  # separate streams of random numbers under one seed


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (num_samples,) in which an epoch visits the records."""
    return _rng(seed, epoch, _ORDER).permutation(num_samples)


def batch_sides(num_batches: int, image_size: int, multi_scale: float, step: int, seed: int, epoch: int) -> list[int]:
    """The canvas side of each batch of an epoch, in pixels: `image_size`, or with multi_scale any of `side_steps`."""
    if multi_scale == 0:
        return [image_size] * num_batches
    lowest, highest = side_steps(image_size, multi_scale, step)
    return (_rng(seed, epoch, _SIZES).integers(lowest, highest + 1, num_batches) * step).tolist()


def side_steps(image_size: int, multi_scale: float, step: int) -> tuple[int, int]:
    """The smallest and largest number of steps that lie within 1 - m to 1 + m of a side; InputError when none does."""
    lowest, highest = math.ceil(image_size * (1 - multi_scale) / step), int(image_size * (1 + multi_scale) / step)
    if lowest > highest:
        raise InputError(f"multi_scale {multi_scale} of {image_size} px holds no multiple of {step} px; enlarge it")
    return max(1, lowest), highest


def largest_side(image_size: int, multi_scale: float, step: int) -> int:
    """The largest canvas side that any batch can have."""
    return image_size if multi_scale == 0 else side_steps(image_size, multi_scale, step)[1] * step


def _rng(seed: int, epoch: int, stream: int) -> np.random.Generator:
    # The last number keeps these streams apart from a sample's, whose keys end in an index.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch), spawn_key=(stream,))))


class EpochBatches:
    """Iterates over the sample keys of each batch of the epoch that `set_epoch` names.

    Every record once an epoch, in an order of its own; the last batch is smaller unless `drop_last`. With several
    ranks, rank = (number, count), each takes a part of every batch, those of all ranks together being the batch of a
    single process. Parts differ by one sample at most; of a last batch smaller than the ranks are many, some get none.
    """

    def __init__(
        self,
        num_samples: int,
        image_size: int,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        multi_scale: tuple[float, int] = (0.0, 32),
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_samples, self.image_size, self.batch_size, self.seed = num_samples, image_size, batch_size, seed
        self.drop_last, self.multi_scale, self.rank = drop_last, multi_scale, rank
        self.epoch = self.start_batch = 0
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        if len(self) == 0:
            raise InputError(
                f"{num_samples} images give no batch of {batch_size}"
                + (": lower the batch size or keep the last batch" if num_samples else "; the split is empty")
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch (from 0) to yield next, and at which of its batches to begin."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on all ranks."""
        return self.num_samples // self.batch_size if self.drop_last else -(-self.num_samples // self.batch_size)

    def num_in(self, batch: int) -> int:
        """Samples of a batch of an epoch, on all ranks together."""
        return min(self.batch_size, self.num_samples - batch * self.batch_size)

    @property
    def most(self) -> int:
        """The most samples that a batch has on this rank."""
        return -(-self.batch_size // self.rank[1])

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.of_epoch(self.epoch, self.start_batch)  # bound now: a later set_epoch leaves this pass alone

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[list[SampleKey]]:
        """The sample keys of an epoch's batches from one of them on, whatever `set_epoch` said."""
        order = epoch_order(self.num_samples, self.seed, epoch)
        sides = batch_sides(len(self), self.image_size, *self.multi_scale, self.seed, epoch)
        for batch in range(start_batch, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(epoch, index, sides[batch]) for index in part_of_rank(chosen, *self.rank).tolist()]


def part_of_rank(chosen: NDArray[np.int64], number: int, count: int) -> NDArray[np.int64]:
    """The samples of a batch that one of `count` ranks takes, in their order: as equal parts as there can be."""
    return np.array_split(chosen, count)[number]
