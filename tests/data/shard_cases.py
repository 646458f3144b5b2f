"""A small dataset in shards for the tests: images of different sizes and kinds, background, ignored boxes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from anchorite.data import DatasetIndex, Record, ShardedSplit, open_dataset
from anchorite.data.convert import write_dataset

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


def write_cases(folder: Path, shard_bytes: int = 20_000, num_train: int = 23) -> tuple[DatasetIndex, DatasetIndex]:
    """The index, and the same as shards of about a handful of images each."""
    index = make_index(folder / "data", num_train)
    write_dataset(index, folder / "shards", "shards", shard_bytes=shard_bytes)
    return index, open_dataset(folder / "shards")


def train_split(dataset: DatasetIndex) -> ShardedSplit:
    split = dataset.splits["train"]
    assert isinstance(split, ShardedSplit)
    return split
