"""A small dataset in shards for the tests: images of different sizes and kinds, background, ignored boxes; and the same
with everything that labels may not know.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from anchorite.data import DatasetIndex, Record, ShardedSplit, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import NO_CLASS, LabelSource

NAMES = ("cat", "dog", "a: \u00fc")


def make_index(folder: Path, num_train: int = 23, num_val: int = 3) -> DatasetIndex:
    """Noise images of 20 to 60 px as PNG and JPEG, with 0 to 4 boxes at awkward places."""
    rng = np.random.default_rng(3)
    splits = {
        split: tuple(_record(folder / split, number, rng) for number in range(count))
        for split, count in (("train", num_train), ("val", num_val), ("test", 0))
    }
    return DatasetIndex(folder, "coco", NAMES, splits)


def _record(folder: Path, number: int, rng: np.random.Generator) -> Record:
    height, width = rng.integers(20, 61, 2).tolist()
    path = folder / f"image {number}.{'png' if number % 3 else 'jpg'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    assert cv2.imwrite(str(path), image)
    corners = np.sort(rng.uniform(0, 1, (number % 5, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(-1, 4)
    return Record(
        path=path,
        width=width,
        height=height,
        boxes_xyxy=boxes,
        class_ids=rng.integers(0, len(NAMES), len(boxes)),
        ignored=rng.random(len(boxes)) < 0.3,
        areas=rng.uniform(1, 100, len(boxes)),
        origins=tuple(f"{folder}/labels \udcff.json:{row}" for row in range(len(boxes))),
    )


SOURCES = LabelSource("all of it"), LabelSource("b", (True, False, True), 0.25), LabelSource("c", (True, True, True))


def with_unknown(index: DatasetIndex) -> DatasetIndex:
    """The same images, the labels of the first split with weights, regions without a class, and three sources."""
    records = []
    for number, record in enumerate(index.splits["train"]):
        ids = np.where(record.ignored, [NO_CLASS, 1][number % 2], record.class_ids // 2 * 2).astype(np.int64)
        weights = np.linspace(0.1, 1, len(ids), dtype=np.float32)
        records.append(replace(record, class_ids=ids, weights=weights, source=SOURCES[number % 3]))
    return replace(index, splits={**index.splits, "train": records})


def write_cases(
    folder: Path, shard_bytes: int = 20_000, num_train: int = 23, unknown: bool = False
) -> tuple[DatasetIndex, DatasetIndex]:
    """The index, and the same as shards of about a handful of images each; unknown: see `with_unknown`."""
    index = make_index(folder / "data", num_train)
    index = with_unknown(index) if unknown else index
    write_dataset(index, folder / "shards", "shards", shard_bytes=shard_bytes)
    return index, open_dataset(folder / "shards")


def train_split(dataset: DatasetIndex) -> ShardedSplit:
    split = dataset.splits["train"]
    assert isinstance(split, ShardedSplit)
    return split
