"""What training reads its batches from, whatever the images lie in: files, memory, shards or the training device."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Protocol, Self

import torch

from anchorite.data.batches import Batch, LoaderConfig
from anchorite.data.dataset import LeftOut, Record
from anchorite.data.device import DeviceLoader, DeviceStore, choose_storage
from anchorite.data.host_loader import HostLoader, make_loader
from anchorite.data.samples import SampleConfig, TrainSamples
from anchorite.data.shards.split import ShardedSplit, readable
from anchorite.data.shards.stream import StreamBatches, StreamSamples
from anchorite.data.store import ImageStore, Progress
from anchorite.devices import choose_compile
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError


class Loader(Protocol):
    """The batches of an epoch, shuffled by (seed, epoch); close it, or use it as a context, to end its processes.

    left_out: images that are not trained on because they cannot be decoded. decisions: sentences on what was chosen.
    """

    @property
    def left_out(self) -> Sequence[LeftOut]: ...
    @property
    def decisions(self) -> Sequence[str]: ...

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch (from 0) to iterate next, and at which of its batches to begin."""
        ...

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        ...

    def num_in(self, batch: int) -> int:
        """Images of a batch of an epoch, on all ranks together."""
        ...

    def __iter__(self) -> Generator[Batch, None, None]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


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
    workers = config.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if device.type == "cpu" else min(8, max(1, cores // world.local_world_size - 1))
    facts = {"rank": world.rank, "world_size": world.world_size, "pin_memory": device.type == "cuda"}
    on_host = config.model_copy(update={**facts, "workers": workers})
    if isinstance(records, ShardedSplit):
        split, left_out = readable(records, progress) if config.skip_bad else (records, ())
        stream = StreamSamples(split, *samples)
        shards = f"images read from {len(split.shards)} shards as a stream"
        decisions = [f"{shards}; {workers} loader processes"]
        return HostLoader(stream, StreamBatches(stream, on_host), on_host, left_out, decisions)
    if storage == "device" or (storage == "auto" and device.type == "cuda"):
        on_device = DeviceStore(records, size, device, skip_bad=config.skip_bad)
        place, reason = choose_storage(on_device.num_bytes, device)
        if place is not None:
            on_device.storage = place
            on_device.build(progress)
            drawn = _samples_of(on_device.images, samples)
            # Batches of several sizes are a reason against compiling the step, which is large, not against this.
            compiled, _ = choose_compile(config.compile, device, one_size=True)
            return DeviceLoader(drawn, on_device, config.model_copy(update=facts), compiled=compiled, reason=reason)
        if storage == "device":
            raise InputError(f"store device: {reason}. Choose a smaller image_size, or store disk or none")
    store = ImageStore(records, size, "auto" if storage == "device" else storage, skip_bad=config.skip_bad)
    store.build(progress, world)
    decisions = [f"images in store: {store.mode}; {workers} loader processes"]
    return make_loader(_samples_of(store, samples), on_host, left_out=store.left_out, decisions=decisions)


def _samples_of(store: ImageStore, samples: SampleConfig) -> TrainSamples:
    """The samples of the images that a store holds; InputError when there are none."""
    if store.left_out and not len(store):
        first = store.left_out[0]
        raise InputError(
            f"none of the {len(store.left_out)} images to train on can be decoded: {first.record.path}: {first.reason}"
        )
    return TrainSamples(store, store.records, *samples)
