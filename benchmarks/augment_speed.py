"""Single-pass mosaic against the two-stage kind (paste four tiles on a double canvas, then warp), in one run.

python benchmarks/augment_speed.py DATASET [IMAGE_SIZE]

Both take decoded images from memory, use one thread and end in a batch of 16; the figures are images per second of
processor time, best of several rounds, so that other programs disturb them little.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from anchorite.data import AugmentConfig, ImageStore, LoaderConfig, SampleKey, TrainSamples, open_dataset
from anchorite.data.loader import make_loader
from anchorite.data.workers import draw_batch

BATCH = 16


def two_stage(store: ImageStore, index: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """The usual way, boxes of the sample included: canvas of 2S, one warp, look-up tables in HSV."""
    canvas = np.full((2 * size, 2 * size, 3), 114, np.uint8)
    centre_x, centre_y = (int(rng.uniform(0.5, 1.5) * size) for _ in range(2))
    boxes = []
    for place, tile in enumerate([index, *rng.integers(0, len(store), 3)]):
        image = store.image(int(tile))
        height, width = image.shape[:2]
        left = centre_x if place % 2 else centre_x - width
        top = centre_y if place >= 2 else centre_y - height
        x0, y0, x1, y1 = max(0, left), max(0, top), min(2 * size, left + width), min(2 * size, top + height)
        canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
        record = store.records[int(tile)]
        boxes.append(record.boxes_xyxy * (store.scale(int(tile)) * 2) + [left, top, left, top])
    zoom = rng.uniform(0.5, 1.5)
    shift = rng.uniform(0.4, 0.6, 2) * size - zoom * size
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    image = cv2.warpAffine(canvas, matrix, (size, size), borderValue=(114, 114, 114))
    moved = (np.concatenate(boxes).reshape(-1, 2) * zoom + shift).reshape(-1, 4)
    cut = moved.clip(0, size)
    area = (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    kept = cut[(cut[:, 2:] - cut[:, :2]).prod(axis=1) > 0.1 * area + 4]
    gains = rng.uniform(-1, 1, 3) * [0.015, 0.7, 0.4] + 1
    levels = np.arange(256)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    tables = [(levels * gains[0]) % 180, (levels * gains[1]).clip(0, 255), (levels * gains[2]).clip(0, 255)]
    planes = [cv2.LUT(p, t.astype(np.uint8)) for p, t in zip((hue, saturation, value), tables, strict=True)]
    image = cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        image, kept = np.fliplr(image), size - kept[:, [2, 1, 0, 3]]
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def per_second(make_batch: Callable[[int], object], rounds: int = 40) -> float:
    """Images per second of this thread's processor time, of the best round."""
    best = math.inf
    for number in range(rounds):
        start = time.thread_time()
        make_batch(number)
        best = min(best, time.thread_time() - start)
    return BATCH / best


def main() -> None:
    cv2.setNumThreads(0)
    records = open_dataset(Path(sys.argv[1])).splits["train"]
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 320
    store = ImageStore(records, size, "ram")
    store.build()
    rng = np.random.default_rng(0)

    def classic(number: int) -> np.ndarray:
        indices = [(number * BATCH + place) % len(records) for place in range(BATCH)]
        return np.stack([two_stage(store, index, rng, size) for index in indices])

    samples = TrainSamples(store, records, AugmentConfig(), size, seed=0)
    pixels = np.empty((BATCH, size, size, 3), np.uint8)

    def single(number: int) -> object:
        keys = [SampleKey(0, (number * BATCH + place) % len(records)) for place in range(BATCH)]
        return draw_batch(samples, keys, pixels)

    before, after = per_second(classic), per_second(single)
    print(
        f"{size} px, one core: two stages {before:.0f} img/s, single pass {after:.0f} img/s, {after / before:.2f} times"
    )
    for workers in (0, 1, 2):
        with make_loader(samples, LoaderConfig(batch_size=BATCH, workers=workers)) as loader:
            list(loader)
            start = time.perf_counter()
            num_images = sum(len(batch.indices) for _ in range(3) for batch in loader)
            print(f"  loader, {workers} workers: {num_images / (time.perf_counter() - start):.0f} img/s on the clock")


if __name__ == "__main__":
    main()
