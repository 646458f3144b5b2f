"""Training samples with mosaic against the usual two stages, per core, and what the loaders deliver on the clock.

The yardstick pastes four tiles on a canvas of twice the side, warps the canvas as a whole to the final size and sends
the colours through three look-up tables in HSV; tiles come from files that are decoded each time, or from memory. The
random choices have the ranges of AugmentConfig, flips and box rules included.

Legend: N boxes, S side of the final image in pixels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.benchmark import Figure, Sample, interleaved, synchronise
from anchorite.data import (
    AugmentConfig,
    DevicePainter,
    DeviceStore,
    EpochBatches,
    HostPainter,
    ImageStore,
    Loader,
    LoaderConfig,
    Record,
    SampleConfig,
    SampleKey,
    TrainSamples,
)
from anchorite.data.device import Storage
from anchorite.train import load_recipe
from benchmarks.measure import Comparison, Floor, Outcome, Settings, dataset_for, described, faster, split_of

FASTER_THAN_DECODING, FASTER_THAN_STORED = 4.0, 1.7
_ROUNDS, _EPOCHS = 40, 3
_BATCH, _QUICK_BATCH = 16, 2
_PLANNED = (16, 64)
_WORKERS = (0, 1, 2)
_PLACES: tuple[Storage, ...] = ("device", "host")
Image = NDArray[np.uint8]
Boxes = NDArray[np.float64]
Tile = tuple[Image, Boxes, NDArray[np.int64]]  # pixels at a long side of S, boxes_xyxy (N, 4) in them, classes (N,)
_FILL = 114


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
            samples = TrainSamples(store, SampleConfig(config, size, 0))
            more, speeds = _per_core(settings, store, samples, config, size)
            comparisons += more
            figures += speeds
            figures += [_delivered(settings, samples, workers) for workers in _WORKERS]
            figures += planning_figures(records, config, size, settings.device, settings.rounds_or(_ROUNDS))
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
        keys = [SampleKey(0, (first + place) % len(store), size) for place in range(batch)]
        return samples.draw_batch(keys, pixels)

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
    options = LoaderConfig(batch_size=_batch(settings), workers=workers)
    with Loader(HostPainter(EpochBatches(samples, options))) as loader:
        for epoch in range(epochs + 1):
            loader.set_epoch(epoch)
            start = time.perf_counter()
            num_images = sum(len(batch.indices) for batch in loader)
            seconds.append(time.perf_counter() - start)
    name = f"{samples.config.image_size} px, loader with {workers} processes, on the clock"
    return Figure.per_second(name, Sample(tuple(seconds[1:])), num_images, "a thread draws" if workers == 0 else "")


def device_loader_figures(
    records: Sequence[Record],
    config: AugmentConfig,
    size: int,
    batch: int,
    device: torch.device,
    epochs: int,
    compiled: tuple[bool, ...] = (False, True),
) -> list[Figure]:
    """What a `DevicePainter` delivers on the clock with nobody training beside it, for images in each place.

    size: of images and canvases in pixels; compiled: the ways of painting to measure. Each epoch is timed, one before
    them is not; the device has finished when the clock is read.
    """
    figures: list[Figure] = []
    for place in _PLACES:
        store = DeviceStore(records, size, device, place)
        store.build()
        samples = TrainSamples(store.images, SampleConfig(config, size, 0))
        batches = EpochBatches(samples, LoaderConfig(batch_size=batch))
        for is_compiled in compiled:
            painter = DevicePainter(batches, store, is_compiled)
            name = f"{size} px, images on the {place}, painted {painter.painting}"
            figures.append(Figure.per_second(name, _epochs(painter, epochs), len(records), f"{device}, on the clock"))
    return figures


def planning_figures(
    records: Sequence[Record], config: AugmentConfig, size: int, device: torch.device, rounds: int
) -> list[Figure]:
    """Images a second that one thread plans for a `DevicePainter`, in batches of each size, with and without turns."""
    store = DeviceStore(records, size, device)
    works = {}
    for turns, augment in {"": config, ", turned": config.model_copy(update={"rotation": 10.0, "shear": 2.0})}.items():
        samples = TrainSamples(store.images, SampleConfig(augment, size, 0))
        for batch in _PLANNED:
            painter = DevicePainter(EpochBatches(samples, LoaderConfig(batch_size=batch)), store)
            name = f"{size} px, planning batches of {batch}{turns}"
            keys = [SampleKey(0, number % len(samples), size) for number in range(batch)]
            works[name] = partial(_plan_all, painter, [keys] * (_PLANNED[-1] // batch))
    taken = interleaved(works, rounds, clock=time.thread_time)
    return [Figure.per_second(name, sample, _PLANNED[-1], "one core") for name, sample in taken.items()]


def _epochs(painter: DevicePainter, epochs: int) -> Sample:
    seconds, loader = [], Loader(painter)
    for epoch in range(epochs + 1):
        loader.set_epoch(epoch)
        synchronise(painter.store.device)
        start = time.perf_counter()
        for _ in loader:
            pass
        synchronise(painter.store.device)
        seconds.append(time.perf_counter() - start)
    return Sample(tuple(seconds[1:]))


def _plan_all(painter: DevicePainter, batches: Sequence[Sequence[SampleKey]]) -> None:
    for _ in painter.plan(iter(batches)):
        pass


def paste_tiles(tiles: Sequence[Tile], centre_xy: tuple[int, int], size: int) -> tuple[Image, Boxes]:
    """The canvas (2S, 2S, 3) with four tiles around a point of it, and their boxes (N, 4) cut to what is seen."""
    canvas = np.full((2 * size, 2 * size, 3), _FILL, np.uint8)
    centre_x, centre_y = centre_xy
    boxes = []
    for place, (image, boxes_xyxy, _) in enumerate(tiles):  # upper left, upper right, lower left, lower right
        height, width = image.shape[:2]
        left = centre_x if place % 2 else centre_x - width
        top = centre_y if place >= 2 else centre_y - height
        x0, y0, x1, y1 = max(0, left), max(0, top), min(2 * size, left + width), min(2 * size, top + height)
        canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
        moved = boxes_xyxy + np.array([left, top, left, top])
        boxes.append(moved.clip([x0, y0, x0, y0], [x1, y1, x1, y1]))
    return canvas, np.concatenate(boxes)


def warp_canvas(
    canvas: Image, boxes_xyxy: Boxes, zoom: float, shift_px: NDArray[np.float64], size: int
) -> tuple[Image, Boxes]:
    """The final image (S, S, 3) and the boxes (N, 4) on it, uncut; a point goes to point * zoom + shift."""
    matrix = np.array([[zoom, 0.0, shift_px[0]], [0.0, zoom, shift_px[1]]])
    image = cv2.warpAffine(canvas, matrix, (size, size), borderValue=(_FILL, _FILL, _FILL))
    return np.asarray(image, np.uint8), boxes_xyxy * zoom + np.tile(shift_px, 2)


def jitter_by_tables(image: Image, gains: NDArray[np.float64]) -> Image:
    """Hue, saturation and value scaled by `gains` (3,), each through a look-up table."""
    levels = np.arange(256)
    tables = [(levels * gains[0]) % 180, (levels * gains[1]).clip(0, 255), (levels * gains[2]).clip(0, 255)]
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    planes = [cv2.LUT(plane, table.astype(np.uint8)) for plane, table in zip(planes, tables, strict=True)]
    return np.asarray(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB), np.uint8)


def two_stage_sample(
    tiles: Sequence[Tile], rng: np.random.Generator, config: AugmentConfig, size: int
) -> tuple[Image, NDArray[np.float32]]:
    """A training image (3, S, S) and its rows (N, 5): class, cx, cy, w, h in 0..1."""
    centre_x, centre_y = (int(number * size) for number in rng.uniform(0.5, 1.5, 2))
    canvas, boxes = paste_tiles(tiles, (centre_x, centre_y), size)
    zoom = float(rng.uniform(1 - config.scale, 1 + config.scale))
    shift_px = rng.uniform(0.5 - config.translation, 0.5 + config.translation, 2) * size - zoom * size
    image, boxes = warp_canvas(canvas, boxes, zoom, shift_px, size)
    class_ids = np.concatenate([classes for _, _, classes in tiles])
    cut = boxes.clip(0, size)
    before, after = boxes[:, 2:] - boxes[:, :2], cut[:, 2:] - cut[:, :2]
    kept = (after.min(axis=1) >= config.min_side_px) & (after.prod(axis=1) >= config.min_visible * before.prod(axis=1))
    cut, class_ids = cut[kept], class_ids[kept]
    image = jitter_by_tables(image, rng.uniform(-1, 1, 3) * [config.hue, config.saturation, config.value] + 1)
    if rng.random() < config.flip_horizontal:
        image, cut = np.fliplr(image), np.stack([size - cut[:, 2], cut[:, 1], size - cut[:, 0], cut[:, 3]], axis=1)
    centres, sides = (cut[:, :2] + cut[:, 2:]) / 2 / size, (cut[:, 2:] - cut[:, :2]) / size
    rows = np.column_stack([class_ids, centres, sides]).astype(np.float32)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), rows


def decoded_tile(record: Record, size: int) -> Tile:
    """A record's image from its file, scaled to a long side of `size`, with its boxes."""
    image = cv2.imread(str(record.path), cv2.IMREAD_COLOR_RGB)
    assert image is not None, record.path
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=method)
    ratio_xy = np.array([image.shape[1] / width, image.shape[0] / height])
    return np.asarray(image, np.uint8), record.boxes_xyxy * np.tile(ratio_xy, 2), record.class_ids


def stored_tile(store: ImageStore, index: int) -> Tile:
    """A record's image as a store in memory keeps it, with its boxes."""
    record, (height, width) = store.records[index], store.sizes_hw[index]
    scale_xy = (width / record.width, height / record.height)
    return store.image(index), record.boxes_xyxy * np.tile(scale_xy, 2), record.class_ids


def two_stage_batch(
    tile: Callable[[int], Tile],
    num_records: int,
    indices: Sequence[int],
    rng: np.random.Generator,
    config: AugmentConfig,
    size: int,
) -> tuple[Image, NDArray[np.float32]]:
    """A batch (B, 3, S, S) of mosaics of each index and three random others, and rows (T, 6) with the image number."""
    images, rows = [], []
    for number, index in enumerate(indices):
        chosen = [index, *rng.integers(0, num_records, 3).tolist()]
        image, found = two_stage_sample([tile(one) for one in chosen], rng, config, size)
        images.append(image)
        rows.append(np.column_stack([np.full(len(found), number, np.float32), found]))
    return np.stack(images), np.concatenate(rows)
