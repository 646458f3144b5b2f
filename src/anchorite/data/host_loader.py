"""The `Loader` that draws batches on the CPU: in a thread of this process or in worker processes, bit for bit the same.

Legend: B images, S side of the canvas in pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import torch

from anchorite.boxes import Targets
from anchorite.data.batches import Batch, BatchSizes, EpochBatches, LoaderConfig, empty_batch
from anchorite.data.dataset import LeftOut
from anchorite.data.prefetch import prefetch
from anchorite.data.samples import Samples, TrainSamples
from anchorite.data.workers import Drawn, Failure, Key, WorkerPool, draw_batch
from anchorite.errors import InputError
from anchorite.interrupts import HeldInterrupts


class Batches(Protocol):
    """Which samples make which batch of an epoch, as `EpochBatches` has it."""

    sizes: BatchSizes

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Sequence[Any]]:
        """The keys of this rank's part of each batch, from one batch of the epoch on."""
        ...


def make_loader(
    samples: TrainSamples,
    config: LoaderConfig,
    capacity: int | None = None,
    left_out: Sequence[LeftOut] = (),
    decisions: Sequence[str] = (),
) -> HostLoader:
    """The batches of `samples`, shuffled by (samples.seed, epoch); see `HostLoader`.

    Raises InputError when there would be no batch at all.
    """
    batches = EpochBatches(len(samples), samples.image_size, samples.seed, config)
    return HostLoader(samples, batches, config, capacity, left_out, decisions)


class HostLoader:
    """See `Loader`. capacity: rows to pad the targets of each batch to (see Targets); None leaves them compact.

    One pass at a time: a new one ends the one before it, which raises InputError when it is asked for more. While
    iterating, raises WorkerError when a sample cannot be made or a worker dies or hangs, naming the sample, and
    InputError when a batch has more targets than the capacity.
    """

    def __init__(
        self,
        samples: Samples,
        batches: Batches,
        config: LoaderConfig,
        capacity: int | None = None,
        left_out: Sequence[LeftOut] = (),
        decisions: Sequence[str] = (),
    ) -> None:
        self.samples, self.batches, self.config, self.capacity = samples, batches, config, capacity
        self.left_out, self.decisions = left_out, decisions
        self._epoch = self._start_batch = 0
        self._under_way: Generator[Batch, None, None] | None = None
        self._pool: WorkerPool | None = None
        assert config.workers is not None, "open_loader chooses the number of workers"
        if config.workers:
            self._pool = WorkerPool(
                samples,
                config.workers,
                batches.sizes.largest_part,
                config.largest_side(samples.image_size),
                config.prefetch,
                config.worker_timeout_s,
                config.start_method,
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self._epoch, self._start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches.sizes.num_batches

    def num_in(self, batch: int) -> int:
        return self.batches.sizes.num_in(batch)

    def __iter__(self) -> Generator[Batch, None, None]:
        if self._pool is not None:
            with HeldInterrupts():  # a pool is whole or not there
                self._pool.start()  # from this thread: forking is safest where the fewest threads run
        return self._one_pass(self._epoch, self._start_batch)  # bound now: a later set_epoch leaves this pass alone

    def _one_pass(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        """A pass that has the workers, whose slots hold the batches of one alone, to itself."""
        keys = filter(None, self.batches.of_epoch(epoch, start_batch))
        before, mine = self._under_way, prefetch(lambda stop: self._drawn(keys, stop), self.config.prefetch)
        if before is not None:
            try:
                before.close()
            except ValueError as error:  # it is being asked for a batch right now
                raise InputError("another thread is in a pass over this loader; give each thread its own") from error
        self._under_way = mine
        try:
            yield from mine
            if self._under_way is not mine:
                raise InputError("this pass ended when another over the same loader began; give each its own loader")
            if self.batches.sizes.ends_empty and start_batch < len(self):
                yield empty_batch(self.samples.image_size, self.capacity)
        finally:
            mine.close()
            if self._under_way is mine:
                self._under_way = None

    def _drawn(self, batches: Iterator[Sequence[Key]], stop: threading.Event) -> Generator[Batch, None, None]:
        if self._pool is None:
            for keys in batches:
                images = self._blank(len(keys), self.samples.side(keys[0]))
                rows = draw_batch(self.samples, keys, images.numpy())
                if isinstance(rows, Failure):
                    raise rows.error()
                yield self._batch(images, Drawn(images.numpy(), rows, keys))
            return
        for drawn in self._pool.run(batches, stop):
            images = self._blank(len(drawn.keys), drawn.pixels.shape[1])
            images.numpy()[:] = drawn.pixels  # out of the slot, which the worker will use again
            yield self._batch(images, drawn)

    def _blank(self, num_images: int, side: int) -> torch.Tensor:
        return torch.empty((num_images, side, side, 3), dtype=torch.uint8, pin_memory=self.config.pin_memory)

    def _batch(self, images: torch.Tensor, drawn: Drawn) -> Batch:
        """The batch, its images (B, 3, S, S) a view with channels last in memory, as convolutions want them."""
        targets = Targets.from_rows(torch.from_numpy(drawn.rows), self.capacity)
        indices = torch.tensor([key.record_index for key in drawn.keys])
        if self.config.pin_memory:
            targets = targets.pin_memory()
        return Batch(images.permute(0, 3, 1, 2), targets, indices)

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            with HeldInterrupts():
                self._pool.close()

    def __enter__(self) -> HostLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
