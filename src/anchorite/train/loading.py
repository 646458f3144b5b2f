"""Which loader a run trains with: images on the training device where they fit, else drawn by the processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from anchorite.data import (
    DeviceLoader,
    DeviceStore,
    ImageStore,
    Loader,
    LoaderConfig,
    Record,
    ShardedSplit,
    StreamedImages,
    StreamSamples,
    TrainSamples,
    choose_storage,
    make_loader,
    make_stream_loader,
    readable,
)
from anchorite.data.store import Progress
from anchorite.devices import choose_compile
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError
from anchorite.train.recipe import Recipe


class KeptImages(NamedTuple):
    """The decoded images that a run trains on, and why they are kept where they are (empty: by default)."""

    store: ImageStore | DeviceStore | StreamedImages
    reason: str

    @property
    def images(self) -> ImageStore | StreamedImages:
        """The records that remain, and those that were left out."""
        return self.store.images if isinstance(self.store, DeviceStore) else self.store


def keep_images(
    recipe: Recipe,
    records: Sequence[Record],
    device: torch.device,
    progress: Progress,
    skip_bad: bool = False,
    world: World = SINGLE_PROCESS,
) -> KeptImages:
    """The training images, decoded. skip_bad: without those that cannot be. Images in shards stay there.

    On the device when the recipe's store says "device", or "auto" with a CUDA device and they fit there or in memory.
    Raises InputError when they fit nowhere and "device" was asked for, or an image cannot be decoded.
    """
    if isinstance(records, ShardedSplit):
        return KeptImages(readable(records, progress) if skip_bad else StreamedImages(records), "")
    if recipe.store == "device" or (recipe.store == "auto" and device.type == "cuda"):
        on_device = DeviceStore(records, recipe.image_size, device, skip_bad=skip_bad)
        place, reason = choose_storage(on_device.num_bytes, device)
        if place is not None:
            on_device.place = place
            on_device.build(progress)
            return KeptImages(on_device, reason)
        if recipe.store == "device":
            raise InputError(f"store device: {reason}. Choose a smaller image_size, or store disk or none")
    store = ImageStore(records, recipe.image_size, mode=recipe.image_store, skip_bad=skip_bad)
    store.build(progress, world)
    return KeptImages(store, "")


def build_loader(
    recipe: Recipe, kept: KeptImages, device: torch.device, size_step: int, world: World = SINGLE_PROCESS
) -> tuple[Loader | DeviceLoader, list[str]]:
    """The training loader, and what was decided. size_step: of the sides of multi-scale batches."""
    images = kept.images
    if isinstance(kept.store, DeviceStore):
        assert isinstance(images, ImageStore)
        samples = TrainSamples(images, images.records, recipe.augment, recipe.image_size, recipe.seed, recipe.epochs)
        return _on_device(recipe, samples, kept, size_step, world)
    workers = default_workers(device, world) if recipe.workers is None else recipe.workers
    config = LoaderConfig(
        batch_size=recipe.batch,
        workers=workers,
        multi_scale=recipe.multi_scale,
        size_step=size_step,
        worker_timeout_s=recipe.worker_timeout_s,
        pin_memory=device.type == "cuda",
        rank=world.rank,
        num_ranks=world.world_size,
    )
    if isinstance(images, StreamedImages):
        stream = StreamSamples(images.records, recipe.augment, recipe.image_size, recipe.seed, recipe.epochs)
        sentence = f"images read from {len(images.records.shards)} shards as a stream; {workers} loader processes"
        return make_stream_loader(stream, config), [sentence]
    samples = TrainSamples(images, images.records, recipe.augment, recipe.image_size, recipe.seed, recipe.epochs)
    return make_loader(samples, config), [f"images in store: {images.mode}; {workers} loader processes"]


def _on_device(
    recipe: Recipe, samples: TrainSamples, kept: KeptImages, size_step: int, world: World
) -> tuple[DeviceLoader, list[str]]:
    store, reason = kept
    assert isinstance(store, DeviceStore)
    config = LoaderConfig(
        batch_size=recipe.batch,
        multi_scale=recipe.multi_scale,
        size_step=size_step,
        rank=world.rank,
        num_ranks=world.world_size,
    )
    # Multi-scale is a reason against compiling the step, which is large, not against compiling the little here.
    compiled, _ = choose_compile(recipe.compile, store.device, one_size=True)
    loader = DeviceLoader(samples, store, config, compiled=compiled)
    unused = "" if recipe.workers in (None, 0) else f"; workers {recipe.workers} not needed"
    sentence = f"images in store: device; {reason}; batches painted there, {loader.painting}{unused}"
    return loader, [sentence, loader.capacity.reason]


def default_workers(device: torch.device, world: World = SINGLE_PROCESS) -> int:
    """Loader processes when the recipe names none: none beside a CPU's convolutions, up to 8 beside a GPU.

    World of one machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if device.type == "cpu" else min(8, max(1, cores // world.local_world_size - 1))
