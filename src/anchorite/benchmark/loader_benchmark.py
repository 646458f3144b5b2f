"""Training samples with mosaic against the two-stage kind, per core, and what the loader delivers on the clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np

from anchorite.benchmark.datasets import dataset_for, described, split_of
from anchorite.benchmark.device_loader import device_loader_figures
from anchorite.benchmark.results import Comparison, Figure, Floor, Outcome, faster
from anchorite.benchmark.settings import Settings
from anchorite.benchmark.timing import Sample, interleaved
from anchorite.benchmark.two_stage import Tile, decoded_tile, stored_tile, two_stage_batch
from anchorite.data import AugmentConfig, ImageStore, LoaderConfig, SampleKey, TrainSamples, make_loader
from anchorite.data.drawing import draw_batch
from anchorite.train import load_recipe

FASTER_THAN_DECODING, FASTER_THAN_STORED = 4.0, 1.7
_ROUNDS, _EPOCHS = 40, 3
_BATCH, _QUICK_BATCH = 16, 2
_WORKERS = (0, 1, 2)


def benchmark_loader(settings: Settings) -> Outcome:
    """Images a second of one core, at 320 and 640 px, and of the loader with 0, 1 and 2 processes."""
    comparisons: list[Comparison] = []
    figures: list[Figure] = []
    config = load_recipe("small-data").augment.model_copy(update={"mosaic": 1.0})
    with dataset_for(settings) as dataset, _one_opencv_thread():
        records = split_of(dataset, "train")
        for size in (32, 64) if settings.quick else (320, 640):
            store = ImageStore(records, size, "ram")
            store.build()
            samples = TrainSamples(store, records, config, size, seed=0)
            more, speeds = _per_core(settings, store, samples, config, size)
            comparisons += more
            figures += speeds
            figures += [_delivered(settings, samples, workers) for workers in _WORKERS]
            if settings.device.type == "cuda":
                epochs = settings.rounds_or(_EPOCHS)
                figures += device_loader_figures(records, config, size, _batch(settings), settings.device, epochs)
        facts = {"data": described(dataset, settings), "batch": _batch(settings), "recipe": "small-data, mosaic 1.0"}
    return Outcome("loader", tuple(comparisons), tuple(figures), facts)


def _batch(settings: Settings) -> int:
    return _QUICK_BATCH if settings.quick else _BATCH


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """As in a loader's process: one thread, so that its time is that of one core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _per_core(
    settings: Settings, store: ImageStore, samples: TrainSamples, config: AugmentConfig, size: int
) -> tuple[list[Comparison], list[Figure]]:
    batch = _batch(settings)
    pixels = np.empty((batch, size, size, 3), np.uint8)
    numbers = itertools.count()

    def ours() -> object:
        first = next(numbers) * batch
        return draw_batch(samples, [SampleKey(0, (first + place) % len(store)) for place in range(batch)], pixels)

    def from_files(index: int) -> Tile:
        return decoded_tile(store.records[index], size)

    def from_memory(index: int) -> Tile:
        return stored_tile(store, index)

    works: dict[str, Callable[[], object]] = {
        "single pass": ours,
        "two stages, decoding": _two_stages(from_files, store, config, size, batch),
        "two stages, from memory": _two_stages(from_memory, store, config, size, batch),
    }
    taken = interleaved(works, settings.rounds_or(_ROUNDS), clock=time.thread_time)
    floor = _floor(batch, size, settings.rounds_or(_ROUNDS))
    compared = [
        faster("single pass", "two stages, decoding", taken, f"{size} px, against decoding", FASTER_THAN_DECODING),
        faster("single pass", "two stages, from memory", taken, f"{size} px, against memory", FASTER_THAN_STORED),
    ]
    speeds = [Figure.per_second(f"{size} px, one core, {name}", sample, batch) for name, sample in taken.items()]
    return [replace(one, floor=floor) for one in compared], speeds


def _two_stages(
    tile: Callable[[int], Tile], store: ImageStore, config: AugmentConfig, size: int, batch: int
) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    numbers = itertools.count()

    def make() -> object:
        first = next(numbers) * batch
        indices = [(first + place) % len(store) for place in range(batch)]
        return two_stage_batch(tile, len(store), indices, rng, config, size)

    return make


def _floor(batch: int, size: int, rounds: int) -> Floor:
    """Seconds to move a batch's pixels once on one core: read from the store, written to the canvas."""
    source, target = (np.ones((batch, size, size, 3), np.uint8) for _ in range(2))
    copied = interleaved({"copy": lambda: np.copyto(target, source)}, rounds, clock=time.perf_counter)["copy"]
    seconds = min(copied.seconds)
    rate = 2 * source.nbytes / seconds
    what = f"{source.nbytes / 1e6:.1f} MB of pixels of a batch copied once at {rate / 1e9:.1f} GB/s on one core"
    return Floor(seconds, what)


def _delivered(settings: Settings, samples: TrainSamples, workers: int) -> Figure:
    """Images a second on the clock, epoch by epoch, with nobody training beside it."""
    epochs = settings.rounds_or(_EPOCHS)
    seconds = []
    with make_loader(samples, LoaderConfig(batch_size=_batch(settings), workers=workers)) as loader:
        for epoch in range(epochs + 1):
            loader.set_epoch(epoch)
            start = time.perf_counter()
            num_images = sum(len(batch.indices) for batch in loader)
            seconds.append(time.perf_counter() - start)
    name = f"{samples.image_size} px, loader with {workers} processes, on the clock"
    return Figure.per_second(name, Sample(tuple(seconds[1:])), num_images, "a thread draws" if workers == 0 else "")
