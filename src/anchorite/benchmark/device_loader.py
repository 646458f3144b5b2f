"""Images a second of batches painted on the training device: delivered, and of the planning that precedes it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from anchorite.benchmark.results import Figure
from anchorite.benchmark.timing import Sample, interleaved, synchronise
from anchorite.data import AugmentConfig, DeviceLoader, DeviceStore, LoaderConfig, Record, TrainSamples
from anchorite.data.device_store import Storage

_PLACES: tuple[Storage, ...] = ("device", "host")


def device_loader_figures(
    records: Sequence[Record],
    config: AugmentConfig,
    size: int,
    batch: int,
    device: torch.device,
    epochs: int,
    compiled: tuple[bool, ...] = (False, True),
) -> list[Figure]:
    """What a `DeviceLoader` delivers on the clock with nobody training beside it, for images in each place.

    size: of images and canvases in pixels; compiled: the ways of painting to measure. Each epoch is timed, one before
    them is not; the device has finished when the clock is read. The last figure is of one thread that plans alone.
    """
    figures: list[Figure] = []
    for place in _PLACES:
        store = DeviceStore(records, size, device, place)
        store.build()
        samples = TrainSamples(store.images, records, config, size, seed=0)
        for is_compiled in compiled:
            loader = DeviceLoader(samples, store, LoaderConfig(batch_size=batch), compiled=is_compiled)
            name = f"{size} px, images on the {place}, painted {loader.painting}"
            figures.append(Figure.per_second(name, _epochs(loader, epochs), len(records), f"{device}, on the clock"))
    taken = interleaved({"planning": lambda: _plan_all(loader)}, epochs, clock=time.thread_time)["planning"]
    return [*figures, Figure.per_second(f"{size} px, planning", taken, len(records), "one core")]


def _epochs(loader: DeviceLoader, epochs: int) -> Sample:
    seconds = []
    for epoch in range(epochs + 1):
        loader.set_epoch(epoch)
        synchronise(loader.store.device)
        start = time.perf_counter()
        for _ in loader:
            pass
        synchronise(loader.store.device)
        seconds.append(time.perf_counter() - start)
    return Sample(tuple(seconds[1:]))


def _plan_all(loader: DeviceLoader) -> None:
    for keys in loader.batches.of_epoch(0):
        loader.planned(keys)
