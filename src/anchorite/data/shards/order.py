"""Which samples of a split in shards make which batch: a pure function of (seed, epoch, rank, number of ranks).

An epoch lays the shards in an order of its own, end to end, and gives each rank a stretch of the samples: as many as
its parts of all batches are, so that every rank takes part in every batch and every sample is seen once, whatever the
shards hold. Only where two stretches meet do two ranks read the same file. A rank goes through its stretch window by
window: some whole shards, their samples shuffled together. The order needs the shards' lengths alone, so a run goes on
at any batch without reading what went before; a shard's headers are read when its window opens, and the next window's
files are asked of the disk meanwhile.

Who draws a batch does not matter: an order for it says where its samples lie.

Legend: N samples of a window, B of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data.batches import BatchSizes, LoaderConfig, epoch_rng
from anchorite.data.shards.split import ShardedSplit
from anchorite.data.shards.tar import open_shard

WINDOW = 2048  # samples, at least, that are shuffled together
FEWEST_PARTNERS = 15  # from which a mosaic takes its other tiles, beside the samples of its batch
_SHARDS, _WITHIN, _PARTNERS = 11, 12, 13  # separate streams of random numbers under one seed


class PoolMember(NamedTuple):
    """A sample that a batch is made with: its record, and where that lies. row: as in `ShardTable.rows`."""

    record_index: int
    shard: int
    position: int
    row: tuple[int, ...]


class StreamKey(NamedTuple):
    """What names a sample of a stream: as `SampleKey`, and the pool that its tiles come from.

    The pool is that of the whole batch: first the batch's own samples in their order, then others of the window.
    """

    epoch: int
    record_index: int
    size: int
    pool: tuple[PoolMember, ...]


class Piece(NamedTuple):
    """A stretch of a shard: its kept samples from `start` up to `stop`."""

    shard: int
    start: int
    stop: int


def stretch(lengths: Sequence[int], order: Sequence[int], first: int, count: int) -> list[Piece]:
    """`count` samples from `first` on, of shards of some lengths laid end to end in an order."""
    pieces: list[Piece] = []
    begin = 0
    for shard in order:
        start, stop = max(first - begin, 0), min(first + count - begin, lengths[shard])
        if start < stop:
            pieces.append(Piece(shard, start, stop))
        begin += lengths[shard]
    return pieces


def windows(pieces: Sequence[Piece], least: int) -> list[list[Piece]]:
    """Consecutive pieces together until they hold at least `least` samples; the last window may hold fewer."""
    found: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if room <= 0:
            found.append([])
            room = least
        found[-1].append(piece)
        room -= piece.stop - piece.start
    return found


class _Window(NamedTuple):
    """An open window in the order of its samples: record indices, shards, positions (N,) and rows (N, 7)."""

    indices: NDArray[np.int64]
    shards: NDArray[np.int64]
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]

    def member(self, number: int) -> PoolMember:
        row = tuple(self.rows[number].tolist())
        return PoolMember(int(self.indices[number]), int(self.shards[number]), int(self.positions[number]), row)


class StreamBatches:
    """The keys of each batch of an epoch, as `EpochBatches` has them.

    Every record once an epoch, on all ranks together. num_mixed_epochs: the epochs, from 0, whose samples may be made
    of several images; None for all. While iterating, raises InputError naming a shard that is damaged or missing, and
    the byte.
    """

    def __init__(
        self,
        split: ShardedSplit,
        image_size: int,
        seed: int,
        config: LoaderConfig,
        *,
        num_mixed_epochs: int | None = None,
        window: int = WINDOW,
    ) -> None:
        self.sizes = BatchSizes.of(len(split), config)
        self.split, self.image_size, self.seed, self.config = split, image_size, seed, config
        self.num_mixed_epochs, self.window = num_mixed_epochs, window

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[list[StreamKey]]:
        """The keys of this rank's part of each batch, from one batch of the epoch on."""
        sizes, rank = self.sizes, self.config.rank
        sides = self.config.sides(sizes.num_batches, self.image_size, self.seed, epoch)
        plan = self.windows_of(epoch)
        is_mixed = self.num_mixed_epochs is None or epoch < self.num_mixed_epochs
        number, begin = -1, 0  # of the window that is open, and where its samples begin in the rank's stretch
        end, opened = 0, None
        for batch in range(start_batch, sizes.num_batches):
            own: list[PoolMember] = []
            for place in range(sizes.before(batch, rank), sizes.before(batch + 1, rank)):
                while place >= end:
                    number, begin, opened = number + 1, end, None
                    end += sum(piece.stop - piece.start for piece in plan[number])
                if opened is None:
                    opened = self._open(plan, number, epoch)
                own.append(opened.member(place - begin))
            pool = (*own, *self._partners(opened, own, epoch, batch)) if is_mixed and opened else tuple(own)
            yield [StreamKey(epoch, member.record_index, sides[batch], pool) for member in own]

    def windows_of(self, epoch: int) -> list[list[Piece]]:
        """The windows of this rank in an epoch, each some pieces of shards."""
        lengths = [len(shard) for shard in self.split.shards]
        order = epoch_rng(self.seed, epoch, _SHARDS).permutation(len(lengths)).tolist()
        totals = [self.sizes.before(self.sizes.num_batches, rank) for rank in range(self.config.rank + 1)]
        return windows(stretch(lengths, order, sum(totals[:-1]), totals[-1]), self.window)

    def _open(self, plan: Sequence[Sequence[Piece]], number: int, epoch: int) -> _Window:
        """Find the samples of a window, in their order; the files of the next one are asked of the disk."""
        for piece in plan[number + 1] if number + 1 < len(plan) else ():
            _ask_for(self.split, piece)
        parts = []
        for piece in plan[number]:
            shard = self.split.shards[piece.shard]
            positions = shard.positions()[piece.start : piece.stop]
            indices = np.arange(piece.start, piece.stop) + self.split.starts[piece.shard]
            parts.append((indices, np.full(len(indices), piece.shard), positions, shard.table().rows[positions]))
        columns = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        order = epoch_rng(self.seed, epoch, _WITHIN, self.config.rank, number).permutation(len(columns[0]))
        return _Window(*(array[order] for array in columns))

    def _partners(self, opened: _Window, own: Sequence[PoolMember], epoch: int, batch: int) -> list[PoolMember]:
        """Other samples of the window, as many as a batch has here and at least `FEWEST_PARTNERS` where there are."""
        wanted = max(self.sizes.largest_part, FEWEST_PARTNERS)
        taken = {member.record_index for member in own}
        rng = epoch_rng(self.seed, epoch, _PARTNERS, self.config.rank, batch)
        drawn = rng.choice(len(opened.indices), min(len(opened.indices), wanted + len(own)), replace=False)
        others = [int(place) for place in drawn if int(opened.indices[place]) not in taken]
        return [opened.member(place) for place in others[:wanted]]


def _ask_for(split: ShardedSplit, piece: Piece) -> None:
    """Have the system read a stretch of a shard ahead of its use, where it can; errors are the reader's to meet."""
    if not hasattr(os, "posix_fadvise"):
        return
    shard = split.shards[piece.shard]
    try:
        with open_shard(shard.path) as file:
            num_bytes, length = os.fstat(file.fileno()).st_size, max(1, len(shard))
            start, stop = num_bytes * piece.start // length, num_bytes * piece.stop // length
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)
    except (OSError, ValueError):
        return
