"""Training batches of a split in shards, read as a stream: a pure function of (seed, epoch, rank, number of ranks).

An epoch lays the shards in an order of its own, end to end, and gives each rank a stretch of the samples: as many as
its parts of all batches are, so that every rank takes part in every batch and every sample is seen once, whatever the
shards hold. Only where two stretches meet do two ranks read the same file. A rank goes through its stretch window by
window: some whole shards, their samples shuffled together. The order needs the shards' lengths alone, so a run goes on
at any batch without reading what went before; a shard's headers are read when its window opens, and the system is asked
to read the next window's files meanwhile.

Each batch is drawn from a pool of images that is read for it alone: the tiles of its mosaics come from its own images
and as many others of the same window, each decoded once. So nothing stays in memory from batch to batch, and a batch is
the same whichever process draws it.

Legend: N samples of a window, B of a batch, S side of the canvas in pixels.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from anchorite.data.batches import BatchSizes, LoaderConfig
from anchorite.data.images import decode_resized, fitted_size
from anchorite.data.random_numbers import rng_of
from anchorite.data.samples import (
    LabelParts,
    PoolMember,
    SampleConfig,
    SampleKey,
    SampleLabels,
    TrainSamples,
)
from anchorite.data.shards.format import IMAGE, SUFFIX, open_shard, sample_path
from anchorite.data.shards.split import ShardedSplit, read_part, read_record

WINDOW = 2048  # samples, at least, that are shuffled together
FEWEST_PARTNERS = 15  # from which a mosaic takes its other tiles, beside the samples of its batch
_SHARDS, _WITHIN, _PARTNERS = 11, 12, 13  # separate streams of random numbers under one seed


Piece = tuple[int, int, int]  # of the shard of this number the samples that are not left out, from start up to stop


def cut_windows(lengths: Sequence[int], order: Sequence[int], first: int, count: int, least: int) -> list[list[Piece]]:
    """`count` samples from `first` on, of shards of some lengths laid end to end in an order, cut into windows.

    A window is some pieces in a row that hold at least `least` samples together; the last one may hold fewer.
    """
    found: list[list[Piece]] = []
    begin = room = 0
    for shard in order:
        start, stop = max(first - begin, 0), min(first + count - begin, lengths[shard])
        begin += lengths[shard]
        if start < stop:
            if room <= 0:
                found.append([])
                room = least
            found[-1].append((shard, start, stop))
            room -= stop - start
    return found


class StreamBatches:
    """The keys of each batch of an epoch, as `EpochBatches` has them, in the order of (samples.seed, epoch, rank).

    Every record once an epoch, on all ranks together. window: the fewest samples that are shuffled together. Raises
    InputError when there would be no batch at all and, while iterating, naming a shard that is damaged or missing, and
    the byte.
    """

    def __init__(self, samples: StreamSamples, config: LoaderConfig, window: int = WINDOW) -> None:
        self.sizes = BatchSizes(len(samples.split), config)
        self.samples, self.split, self.seed = samples, samples.split, samples.config.seed
        self.config, self.window = config, window

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[list[SampleKey]]:
        """The keys of this rank's part of each batch, from one batch of the epoch on."""
        sizes, rank = self.sizes, self.config.rank
        sides = self.config.sides(sizes.num_batches, self.samples.config, epoch)
        plan = self.windows_of(epoch)
        ends = list(accumulate(sum(stop - start for _, start, stop in window) for window in plan))
        augment = self.samples.config.augment
        is_mixed = self.samples.config.has_mosaic(epoch) and (augment.mosaic > 0 or augment.mixup > 0)
        opened, members = -1, np.zeros((0, 10), np.int64)  # the window that is open
        for batch in range(start_batch, sizes.num_batches):
            own: list[PoolMember] = []
            for place in range(sizes.before(batch, rank), sizes.before(batch + 1, rank)):
                if opened != (number := bisect_right(ends, place)):
                    opened, members = number, self._open(plan, number, epoch)
                own.append(tuple(members[place - ends[number]].tolist()))  # counted from the end of the window
            pool = (*own, *(self._partners(members, own, epoch, batch) if is_mixed and own else ()))
            yield [SampleKey(epoch, member[0], sides[batch], pool) for member in own]

    def windows_of(self, epoch: int) -> list[list[Piece]]:
        """The windows of this rank in an epoch, each some pieces of shards."""
        lengths = [len(shard) for shard in self.split.shards]
        order = rng_of(self.seed, epoch, stream=(_SHARDS,)).permutation(len(lengths)).tolist()
        totals = [self.sizes.before(self.sizes.num_batches, rank) for rank in range(self.config.rank + 1)]
        return cut_windows(lengths, order, sum(totals[:-1]), totals[-1], self.window)

    def _open(self, plan: Sequence[Sequence[Piece]], number: int, epoch: int) -> NDArray[np.int64]:
        """The samples (N, 10) of a window in their order, each a `PoolMember`; the system prefetches the next one."""
        for number_of_shard, start, stop in plan[number + 1] if number + 1 < len(plan) else ():
            shard = self.split.shards[number_of_shard]
            with suppress(OSError, ValueError, AttributeError), open_shard(shard.path) as file:
                share = os.fstat(file.fileno()).st_size / max(1, len(shard))
                where = int(share * start), int(share * (stop - start))
                os.posix_fadvise(file.fileno(), *where, os.POSIX_FADV_WILLNEED)
        parts = []
        for number_of_shard, start, stop in plan[number]:
            shard = self.split.shards[number_of_shard]
            positions = shard.positions()[start:stop]
            indices = np.arange(start, stop) + self.split.starts[number_of_shard]
            columns = indices, np.full_like(indices, number_of_shard), positions, shard.table().rows[positions]
            parts.append(np.column_stack(columns))
        order = rng_of(self.seed, epoch, stream=(_WITHIN, self.config.rank, number)).permutation(sum(map(len, parts)))
        return np.concatenate(parts)[order]

    def _partners(
        self, members: NDArray[np.int64], own: Sequence[PoolMember], epoch: int, batch: int
    ) -> list[PoolMember]:
        """Other samples of the window, as many as a batch has here and at least `FEWEST_PARTNERS` where there are."""
        wanted = max(self.sizes.largest_part, FEWEST_PARTNERS)
        rng = rng_of(self.seed, epoch, stream=(_PARTNERS, self.config.rank, batch))
        drawn = members[rng.choice(len(members), min(len(members), wanted + len(own)), replace=False)]
        others = drawn[~np.isin(drawn[:, 0], [member[0] for member in own])]
        return list(map(tuple, others[:wanted].tolist()))


class BatchPool:
    """The images of a batch's pool, resized as those of an `ImageStore`, each decoded when first asked for.

    Each shard is opened once; `files` closes them. report: called with the index of each record before work on it
    begins. InputError and StorageError name the sample.
    """

    def __init__(
        self, samples: StreamSamples, pool: Sequence[PoolMember], report: Callable[[int], object], files: ExitStack
    ) -> None:
        self._pool, self._report = pool, report
        self._files: dict[int, BinaryIO] = {}
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        self.records = []
        for index, number, position, *row in pool:
            report(index)
            path = samples.split.shards[number].path
            if number not in self._files:
                self._files[number] = files.enter_context(open_shard(path))
            name = sample_path(path, position, row[SUFFIX])
            self.records.append(read_record(self._files[number], name, row, samples.split))
        self.sizes_hw = [
            fitted_size((record.height, record.width), samples.config.image_size) for record in self.records
        ]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` of the pool: (h, w, 3) uint8 RGB."""
        if index not in self._decoded:
            record, (record_index, number, _, *row) = self.records[index], self._pool[index]
            self._report(record_index)
            data = read_part(self._files[number], record.path, row[IMAGE])
            self._decoded[index] = decode_resized(record, self.sizes_hw[index], data)
        return self._decoded[index]


class StreamSamples:
    """Augmented training samples by `SampleKey`, each of the images of its batch's pool; else as `TrainSamples`."""

    def __init__(self, split: ShardedSplit, config: SampleConfig) -> None:
        self.split, self.config, self.parts = split, config, LabelParts.of(split)

    def image_path(self, index: int) -> Path:
        """The image of a record, for messages; its suffix is not known without reading."""
        shard, position = self.split.locate(index)
        return sample_path(shard.path, position, 0).with_suffix("")

    def draw_batch(
        self, keys: Sequence[SampleKey], pixels: NDArray[np.uint8], report: Callable[[int], object]
    ) -> SampleLabels:
        """Draw a whole batch into `pixels` (B, S, S, 3); its labels, as `TrainSamples.labels`."""
        with ExitStack() as files:
            images = BatchPool(self, keys[0].pool, report, files)
            return TrainSamples(images, self.config, self.parts).draw_batch(keys, pixels, report, range(len(keys)))
