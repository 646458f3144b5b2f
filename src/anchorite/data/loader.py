"""Batches for training: drawn by a thread of this process or by worker processes, bit for bit the same.

Legend: B images, S side of the canvas in pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field

from anchorite.boxes import Targets
from anchorite.data.batches import Batch, empty_batch
from anchorite.data.drawing import Drawn, Failure, Key, Samples, draw_batch
from anchorite.data.prefetch import prefetch
from anchorite.data.sampler import EpochBatches, largest_side
from anchorite.data.samples import TrainSamples
from anchorite.data.workers import WorkerPool
from anchorite.errors import InputError
from anchorite.interrupts import HeldInterrupts


class LoaderConfig(BaseModel):
    """How batches are made.

    workers: processes; 0 draws in a thread of this process. drop_last: leave out an epoch's last, smaller batch.
    multi_scale m: each batch has a canvas side of its own, a multiple of `size_step` pixels within 1 - m to 1 + m of
    the usual one. prefetch: batches drawn ahead, a worker. worker_timeout_s: how long a batch may take before its
    worker counts as hung. rank, num_ranks: this process and how many share each batch; batch_size is that of all.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    batch_size: Annotated[int, Field(ge=1)] = 16
    workers: Annotated[int, Field(ge=0)] = 0
    drop_last: bool = False
    multi_scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    size_step: Annotated[int, Field(ge=1)] = 32
    prefetch: Annotated[int, Field(ge=1)] = 2
    worker_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    pin_memory: bool = False
    start_method: Literal["fork", "spawn"] | None = None
    rank: Annotated[int, Field(ge=0)] = 0
    num_ranks: Annotated[int, Field(ge=1)] = 1


class Batches(Protocol):
    """Which samples make which batch of an epoch, as `EpochBatches` has it."""

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch (from 0) to iterate next, and at which of its batches to begin."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence[Key]]: ...

    def num_in(self, batch: int) -> int:
        """Samples of a batch of an epoch, on all ranks together."""
        ...

    @property
    def most(self) -> int:
        """The most samples that a batch has on this rank."""
        ...


def epoch_batches(samples: TrainSamples, config: LoaderConfig) -> EpochBatches:
    """Which samples make which batch; InputError when there would be none."""
    return EpochBatches(
        len(samples),
        samples.image_size,
        config.batch_size,
        samples.seed,
        drop_last=config.drop_last,
        multi_scale=(config.multi_scale, config.size_step),
        rank=(config.rank, config.num_ranks),
    )


def make_loader(samples: TrainSamples, config: LoaderConfig, capacity: int | None = None) -> Loader:
    """The batches of `samples`, shuffled by (samples.seed, epoch).

    capacity: rows to pad the targets of each batch to (see Targets); None leaves them compact. Raises InputError when
    there would be no batch at all.
    """
    return Loader(samples, epoch_batches(samples, config), config, capacity)


class Loader:
    """Iterate it for the batches of an epoch; `set_epoch` first, for another order than the last. Close it at the end.

    One pass at a time: a new one ends the one before it, which raises InputError when it is asked for more. While
    iterating, raises WorkerError when a sample cannot be made or a worker dies or hangs, naming the sample, and
    InputError when a batch has more targets than the capacity.
    """

    def __init__(self, samples: Samples, batches: Batches, config: LoaderConfig, capacity: int | None = None) -> None:
        self.samples, self.batches, self.config, self.capacity = samples, batches, config, capacity
        self._pool: WorkerPool | None = None
        self._under_way: Generator[Batch, None, None] | None = None
        if config.workers:
            side = largest_side(samples.image_size, config.multi_scale, config.size_step)
            self._pool = WorkerPool(
                samples,
                config.workers,
                batches.most,
                side,
                config.prefetch,
                config.worker_timeout_s,
                config.start_method,
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch (from 0) to iterate next, and at which of its batches to begin."""
        self.batches.set_epoch(epoch, start_batch)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.batches)

    def num_in(self, batch: int) -> int:
        """Images of a batch of an epoch, on all ranks together."""
        return self.batches.num_in(batch)

    def __iter__(self) -> Generator[Batch, None, None]:
        if self._pool is not None:
            with HeldInterrupts():  # a pool is whole or not there
                self._pool.start()  # from this thread: forking is safest where the fewest threads run
        return self._one_pass(iter(self.batches))

    def _one_pass(self, batches: Iterator[Sequence[Key]]) -> Generator[Batch, None, None]:
        """A pass that has the workers, whose slots hold the batches of one alone, to itself."""
        before, mine = self._under_way, prefetch(lambda stop: self._drawn(batches, stop), self.config.prefetch)
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
        finally:
            mine.close()
            if self._under_way is mine:
                self._under_way = None

    def _drawn(self, batches: Iterator[Sequence[Key]], stop: threading.Event) -> Generator[Batch, None, None]:
        num_empty = 0

        def filled() -> Iterator[Sequence[Key]]:
            nonlocal num_empty
            for keys in batches:
                num_empty += not keys
                if keys:
                    yield keys

        yield from self._drawn_samples(filled(), stop)
        for _ in range(num_empty):  # an epoch's last batch may be smaller than the ranks are many
            yield empty_batch(self.samples.image_size, self.capacity)

    def _drawn_samples(self, batches: Iterator[Sequence[Key]], stop: threading.Event) -> Generator[Batch, None, None]:
        if self._pool is None:
            for keys in batches:
                side = self.samples.side(keys[0])
                images = self._blank(len(keys), side)
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

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
