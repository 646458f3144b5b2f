"""Which loader a run trains with: images on the training device where they fit, else drawn by the processor."""

from __future__ import annotations

import os

import torch

from anchorite.data import (
    DeviceLoader,
    DeviceStore,
    ImageStore,
    Loader,
    LoaderConfig,
    Record,
    TrainSamples,
    choose_place,
    make_loader,
)
from anchorite.data.store import Progress
from anchorite.devices import choose_compile
from anchorite.errors import InputError
from anchorite.train.recipe import Recipe


def build_loader(
    recipe: Recipe, records: tuple[Record, ...], device: torch.device, size_step: int, progress: Progress
) -> tuple[Loader | DeviceLoader, list[str]]:
    """The training loader, its images decoded, and what was decided. size_step: of the sides of multi-scale batches.

    On the device when the recipe's store says "device", or "auto" with a CUDA device and they fit there or in memory.
    Raises InputError when they fit nowhere and "device" was asked for, or an image cannot be decoded.
    """
    if recipe.store == "device" or (recipe.store == "auto" and device.type == "cuda"):
        store = DeviceStore(records, recipe.image_size, device)
        place, reason = choose_place(store.num_bytes, device)
        if place is not None:
            store.place = place
            return _on_device(recipe, store, size_step, progress, reason)
        if recipe.store == "device":
            raise InputError(f"store device: {reason}. Choose a smaller image_size, or store disk or none")
    return _on_processor(recipe, records, device, size_step, progress)


def _on_device(
    recipe: Recipe, store: DeviceStore, size_step: int, progress: Progress, reason: str
) -> tuple[DeviceLoader, list[str]]:
    store.build(progress)
    samples = TrainSamples(
        store.images, store.images.records, recipe.augment, recipe.image_size, recipe.seed, recipe.epochs
    )
    config = LoaderConfig(batch_size=recipe.batch, multi_scale=recipe.multi_scale, size_step=size_step)
    # Multi-scale is a reason against compiling the step, which is large, not against compiling the little here.
    compiled, _ = choose_compile(recipe.compile, store.device, one_size=True)
    loader = DeviceLoader(samples, store, config, compiled=compiled)
    unused = "" if recipe.workers in (None, 0) else f"; workers {recipe.workers} not needed"
    sentence = f"images in store: device; {reason}; batches painted there, {loader.painting}{unused}"
    return loader, [sentence, loader.capacity.reason]


def _on_processor(
    recipe: Recipe, records: tuple[Record, ...], device: torch.device, size_step: int, progress: Progress
) -> tuple[Loader, list[str]]:
    workers = default_workers(device) if recipe.workers is None else recipe.workers
    store = ImageStore(records, recipe.image_size, mode=recipe.image_store)
    store.build(progress)
    samples = TrainSamples(store, records, recipe.augment, recipe.image_size, recipe.seed, recipe.epochs)
    config = LoaderConfig(
        batch_size=recipe.batch,
        workers=workers,
        multi_scale=recipe.multi_scale,
        size_step=size_step,
        pin_memory=device.type == "cuda",
    )
    return make_loader(samples, config), [f"images in store: {store.mode}; {workers} loader processes"]


def default_workers(device: torch.device) -> int:
    """Loader processes when the recipe names none: none beside a CPU's convolutions, up to 8 beside a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if device.type == "cpu" else min(8, max(1, cores - 1))
