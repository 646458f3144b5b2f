"""Writing shards: tar files of labels and byte copies of images, and the list of them.

A training split is shuffled first, so that each shard is a random part of it; other splits keep their order. The same
dataset gives the same bytes. See `anchorite.data.shards` for the format.

Legend: R records of a split, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.common import ReadingLog
from anchorite.data.headers import image_bytes, open_regular
from anchorite.data.records import Record, Split
from anchorite.data.shards.format import (
    BLOCK,
    MANIFEST,
    MAX_IMAGE_BYTES,
    MAX_LABEL_BYTES,
    MAX_SAMPLES,
    MAX_SIDES,
    Manifest,
    ShardFacts,
    SplitFacts,
    member_header,
    padding,
    shard_name,
)
from anchorite.data.shards.split import ShardedSplit, label_bytes, read_shards
from anchorite.data.store import Progress
from anchorite.errors import InputError, StorageError

SHARD_BYTES = 128_000_000
_SEED = 0
_KINDS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"), (b"", "tif"))


class _ShardWriter:
    """The shards of a split being written; each is durable before the next begins."""

    def __init__(self, folder: Path, split: str, most_bytes: int) -> None:
        self._folder, self._split, self._most_bytes = folder, split, most_bytes
        self._num_bytes = self._num_samples = 0
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.facts: list[ShardFacts] = []

    def add(self, label: bytes, image: bytes) -> None:
        """Append a sample, to a new shard where the last one is full."""
        blocks = sum(BLOCK + len(content) + len(padding(len(content))) for content in (label, image))
        is_full = self._num_bytes + blocks + 2 * BLOCK > self._most_bytes or self._num_samples == MAX_SAMPLES
        if self._num_samples and is_full:
            self.close()
        if self._file is None:
            self._file = (self._folder / shard_name(self._split, len(self.facts))).open("xb")
        name = shard_name(self._split, len(self.facts)).removesuffix(".tar")
        key = f"{name}-{self._num_samples:06d}"
        suffix = next(suffix for start, suffix in _KINDS if image.startswith(start))
        for member, content in ((f"{key}.json", label), (f"{key}.{suffix}", image)):
            self._write(member_header(member, content), content, padding(len(content)))
        self._num_samples += 1

    def close(self) -> None:
        """Finish the shard that is open, if there is one."""
        if self._file is None:
            return
        self._write(bytes(2 * BLOCK))
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self.facts.append(
            ShardFacts(
                name=shard_name(self._split, len(self.facts)),
                samples=self._num_samples,
                bytes=self._num_bytes,
                sha256=self._digest.hexdigest(),
            )
        )
        self._file, self._digest, self._num_bytes, self._num_samples = None, hashlib.sha256(), 0, 0

    def abandon(self) -> None:
        """Close the file that is open, whatever it holds."""
        if self._file is not None:
            self._file.close()

    def _write(self, *parts: bytes) -> None:
        assert self._file is not None
        for part in parts:
            self._file.write(part)
            self._digest.update(part)
            self._num_bytes += len(part)


class _Summary:
    """Counts of a split, and an even sample of its boxes' sides (Vitter's algorithm R)."""

    def __init__(self, num_classes: int) -> None:
        self.background, self._num_trained = 0, 0
        self.class_counts, self.ignored_counts = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        self.sides: list[list[float]] = []
        self._random = random.Random(_SEED)

    def add(self, record: Record) -> None:
        self.background += not len(record.class_ids)
        boxes_xyxy = record.boxes_xyxy[~record.ignored]
        self.class_counts += np.bincount(record.class_ids[~record.ignored], minlength=len(self.class_counts))
        self.ignored_counts += np.bincount(record.class_ids[record.ignored], minlength=len(self.class_counts))
        for side in ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / max(record.width, record.height)).tolist():
            self._num_trained += 1
            if len(self.sides) < MAX_SIDES:
                self.sides.append(side)
            elif (place := self._random.randrange(self._num_trained)) < MAX_SIDES:
                self.sides[place] = side

    def facts(self, shards: list[ShardFacts]) -> SplitFacts:
        """What stands in the list of shards."""
        return SplitFacts(
            background=self.background,
            class_counts=self.class_counts.tolist(),
            ignored_counts=self.ignored_counts.tolist(),
            sides=self.sides,
            shards=shards,
        )


def write_shards(
    dataset: DatasetIndex, folder: Path, most_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> None:
    """Write a dataset into `folder` as shards of up to `most_bytes`, and read it back.

    A shard holds a sample at least, however large. progress is called with (images done, images in all). Raises
    InputError naming an image that cannot be copied, StorageError when the disk is too full or what is read back
    differs; OSError as writing does.
    """
    _check_space(dataset, folder)
    orders = {split: _order(split, records) for split, records in dataset.splits.items()}
    total, done, splits = sum(map(len, orders.values())), 0, {}
    for split, records in dataset.splits.items():
        writer, summary = _ShardWriter(folder, split, most_bytes), _Summary(len(dataset.class_names))
        try:
            for record in _in_order(records, orders[split]):
                writer.add(*_contents(record, dataset.root))
                summary.add(record)
                done += 1
                if progress is not None:
                    progress(done, total)
            writer.close()
        finally:
            writer.abandon()
        splits[split] = summary.facts(writer.facts)
    manifest = Manifest.model_validate({"class_names": list(dataset.class_names), "splits": splits})
    (folder / MANIFEST).write_text(_manifest_text(manifest), encoding="ascii")
    _compare(dataset, orders, folder)


def _order(split: str, records: Split) -> Sequence[int]:
    """The order in which a split is written. What comes from shards is shuffled already, and slow to read at random."""
    if split != "train" or records.is_shuffled:
        return range(len(records))
    order: Sequence[int] = np.random.default_rng(_SEED).permutation(len(records)).tolist()
    return order


def _in_order(records: Sequence[Record], order: Sequence[int]) -> Iterator[Record]:
    return iter(records) if isinstance(order, range) else (records[index] for index in order)


def _contents(record: Record, root: Path) -> tuple[bytes, bytes]:
    """The two files of a sample."""
    try:
        with open_regular(record.path) as file:
            image = file.read()
    except InputError as error:
        raise InputError(f"{record.path}: {error}") from error
    home = root if root.is_dir() else root.parent
    label = label_bytes(record, os.path.relpath(record.path, home))
    if len(label) > MAX_LABEL_BYTES or len(image) > MAX_IMAGE_BYTES:
        raise InputError(
            f"{record.path}: {len(record.class_ids)} boxes and {len(image) / 1e6:.0f} MB are more than a shard takes; "
            "leave the image out"
        )
    return label, image


def _check_space(dataset: DatasetIndex, folder: Path) -> None:
    wanted = sum(image_bytes(record.path) for records in dataset.splits.values() for record in records)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise StorageError(
            f"{folder.parent}: the images take {wanted / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there; "
            "nothing was written. Free some space or name another folder"
        )


def _manifest_text(manifest: Manifest) -> str:
    """The list as JSON, a line for each shard."""
    splits = []
    for split, facts in manifest.splits.items():
        head = json.dumps(facts.model_dump(exclude={"shards"}))
        shards = ",\n".join(json.dumps(shard.model_dump()) for shard in facts.shards)
        splits.append(f'"{split}": {head[:-1]}, "shards": [\n{shards}\n]}}')
    head = json.dumps(manifest.model_dump(exclude={"splits"}))
    return f'{head[:-1]},\n"splits": {{\n' + ",\n".join(splits) + "\n}}\n"


def _compare(dataset: DatasetIndex, orders: dict[str, Sequence[int]], folder: Path) -> None:
    """Raise StorageError where the shards, read as a user would, differ from what was to be written."""
    copy = read_shards(folder / MANIFEST, folder, ReadingLog(skip_bad=False), allow_outside=False)
    for split, records in dataset.splits.items():
        written = copy.splits[split]
        assert isinstance(written, ShardedSplit)
        samples = zip(_in_order(records, orders[split]), written.samples(), strict=True)
        for record, (found, _) in samples:  # whose image has the CRC-32 of the one that was read
            if record != replace(found, path=record.path):
                raise StorageError(
                    f"{folder.parent}: the copy reads back otherwise than it was written ({found.path}); it was removed"
                )
