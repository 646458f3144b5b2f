"""What training reads its batches from, whatever the images lie in: files, memory, shards or the training device."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Self

import torch

from anchorite.data.batches import Batch, EpochBatches, LoaderConfig
from anchorite.data.dataset import LeftOut, Record
from anchorite.data.device import DevicePainter, DeviceStore, choose_storage
from anchorite.data.host_loader import HostPainter
from anchorite.data.samples import SampleConfig, TrainSamples
from anchorite.data.shards.split import ShardedSplit, readable
from anchorite.data.shards.stream import StreamBatches, StreamSamples
from anchorite.data.store import ImageStore, Progress
from anchorite.devices import choose_compile
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError
from anchorite.interrupts import HeldInterrupts


class Loader:
    """The batches of an epoch, shuffled by (seed, epoch); close it, or use it as a context, to end its processes.

    left_out: images that are not trained on because they cannot be decoded. decisions: sentences on what was chosen.
    One pass at a time: a new one ends the one before it, which raises InputError when it is asked for more. While
    iterating, raises WorkerError when a sample cannot be made or a worker dies or hangs, naming the sample.
    """

    def __init__(
        self, painter: HostPainter | DevicePainter, left_out: Sequence[LeftOut] = (), decisions: Sequence[str] = ()
    ) -> None:
        self.painter, self.batches = painter, painter.batches
        self.left_out, self.decisions = left_out, decisions
        self._epoch = self._start_batch = 0
        self._under_way: Generator[Batch, None, None] | None = None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch (from 0) to iterate next, and at which of its batches to begin."""
        self._epoch, self._start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.batches.sizes.num_batches

    def num_in(self, batch: int) -> int:
        """Images of a batch of an epoch, on all ranks together."""
        return self.batches.sizes.num_in(batch)

    def __iter__(self) -> Generator[Batch, None, None]:
        keys = filter(None, self.batches.of_epoch(self._epoch, self._start_batch))
        with HeldInterrupts():  # all workers are there or none
            mine = self.painter.paint(keys)
        has_last = self.batches.sizes.part(len(self) - 1, self.batches.config.rank) > 0
        return self._one_pass(mine, not has_last and self._start_batch < len(self))

    def _one_pass(self, mine: Generator[Batch, None, None], ends_empty: bool) -> Generator[Batch, None, None]:
        """A pass that has the workers, whose slots hold the batches of one alone, to itself."""
        before = self._under_way
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
            if ends_empty:
                yield self.painter.empty
        finally:
            mine.close()
            if self._under_way is mine:
                self._under_way = None

    def close(self) -> None:
        """End the worker processes."""
        with HeldInterrupts():
            self.painter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_loader(
    records: Sequence[Record],
    samples: SampleConfig,
    config: LoaderConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    world: World = SINGLE_PROCESS,
) -> Loader:
    """Decode the images of a split and keep them where they are read fastest; the loader of their training batches.

    config.storage: "device" keeps them on the training device, or beside it in pinned memory, and augments there;
    "ram", "disk" and "none" as `ImageStore`; "auto" is "device" with a CUDA device where they fit, else the first of
    "ram" and "none" that does. A split in shards is read as a stream in any case. world: the ranks that share each
    batch, the cores of a machine and the work of decoding. The config's rank, world_size and pin_memory follow world
    and device; workers of None are none beside a CPU's convolutions, and up to 8 beside a GPU.

    Raises InputError when no image is left or the images fit nowhere although "device" was asked for, and what
    `ImageStore.build` raises.
    """
    device, storage, size = torch.device(device), config.storage, samples.image_size
    if (workers := config.workers) is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if device.type == "cpu" else min(8, max(1, cores // world.local_world_size - 1))
    facts = {"rank": world.rank, "world_size": world.world_size, "pin_memory": device.type == "cuda"}
    chosen = config.model_copy(update={**facts, "workers": workers})
    if isinstance(records, ShardedSplit):
        split, left_out = readable(records, progress) if config.skip_bad else (records, ())
        stream = StreamBatches(StreamSamples(split, samples), chosen)
        shards = f"images read from {len(split.shards)} shards as a stream"
        return Loader(HostPainter(stream), left_out, [f"{shards}; {workers} loader processes"])
    if storage == "device" or (storage == "auto" and device.type == "cuda"):
        on_device = DeviceStore(records, size, device, skip_bad=config.skip_bad)
        place, reason = choose_storage(on_device.num_bytes, device)
        if place is not None:
            on_device.storage = place
            on_device.build(progress)
            batches = EpochBatches(_samples_of(on_device.images, samples), chosen)
            # Batches of several sizes are a reason against compiling the step, which is large, not against this.
            compiled, _ = choose_compile(config.compile, device, one_size=True)
            painter = DevicePainter(batches, on_device, compiled)
            unused = f"; workers {config.workers} not needed" if config.workers else ""
            painted = f"images in store: device; {reason}; batches painted there, {painter.painting}{unused}"
            return Loader(painter, on_device.images.left_out, [painted, painter.capacity_reason])
        if storage == "device":
            raise InputError(f"store device: {reason}. Choose a smaller image_size, or store disk or none")
    store = ImageStore(records, size, "auto" if storage == "device" else storage, skip_bad=config.skip_bad)
    store.build(progress, world)
    host_painter = HostPainter(EpochBatches(_samples_of(store, samples), chosen))
    return Loader(host_painter, store.left_out, [f"images in store: {store.mode}; {workers} loader processes"])


def _samples_of(store: ImageStore, samples: SampleConfig) -> TrainSamples:
    """The samples of the images that a store holds; InputError when there are none."""
    if store.left_out and not len(store):
        path, reason = store.left_out[0]
        raise InputError(f"none of the {len(store.left_out)} images to train on can be decoded: {path}: {reason}")
    return TrainSamples(store, samples)
