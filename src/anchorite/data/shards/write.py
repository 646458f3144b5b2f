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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.common import ReadingLog
from anchorite.data.headers import open_regular
from anchorite.data.records import RecordTable
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
    member_bytes,
    shard_name,
)
from anchorite.data.shards.split import ShardedSplit, label_bytes, read_shards
from anchorite.errors import InputError

SHARD_BYTES = 128_000_000
_SEED = 0
_KINDS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"), (b"", "tif"))


def write_shards(dataset: DatasetIndex, folder: Path, most_bytes: int, copied: Callable[[], None]) -> str | None:
    """Write a dataset into `folder` as shards of up to `most_bytes`, and read it back: what differs, if anything does.

    A shard holds a sample at least, however large. copied: called after each image. Raises InputError naming an image
    that cannot be copied, OSError as writing does.
    """
    tables: dict[str, RecordTable] = {}
    for split, records in dataset.splits.items():
        tables[split] = records.table()
        if split == "train" and not records.is_shuffled:
            tables[split] = tables[split].select(np.random.default_rng(_SEED).permutation(len(records)))
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    splits = {
        split: _facts(
            table, len(dataset.class_names), _write_split(split, _samples(table, root, copied), folder, most_bytes)
        )
        for split, table in tables.items()
    }
    manifest = Manifest.model_validate({"class_names": list(dataset.class_names), "splits": splits})
    (folder / MANIFEST).write_text(_manifest_text(manifest), encoding="ascii")
    copy = read_shards(folder / MANIFEST, folder, ReadingLog(skip_bad=False), allow_outside=False)
    for split, table in tables.items():
        written = copy.splits[split]
        assert isinstance(written, ShardedSplit)
        for record, (found, _) in zip(table, written.samples(), strict=True):
            if record != replace(found, path=record.path):  # the image has the CRC-32 of the one that was read
                return str(found.path)
    return None


def _samples(table: RecordTable, root: Path, copied: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    """The two files of each sample: its label and its image."""
    for record in table:
        try:
            with open_regular(record.path) as file:
                image = file.read()
        except InputError as error:
            raise InputError(f"{record.path}: {error}") from error
        label = label_bytes(record, os.path.relpath(record.path, root))
        if len(label) > MAX_LABEL_BYTES or len(image) > MAX_IMAGE_BYTES:
            raise InputError(
                f"{record.path}: {len(record.class_ids)} boxes and {len(image) / 1e6:.0f} MB are more than a shard "
                "takes; leave the image out"
            )
        yield label, image
        copied()


def _write_split(split: str, samples: Iterator[tuple[bytes, bytes]], folder: Path, most_bytes: int) -> list[ShardFacts]:
    """Write the shards of a split; each is durable before the next begins."""
    shards: list[ShardFacts] = []
    sample = next(samples, None)
    while sample is not None:
        name, num_samples = shard_name(split, len(shards)), 0
        with (folder / name).open("x+b") as file:
            while sample is not None:
                label, image = sample
                key = f"{name.removesuffix('.tar')}-{num_samples:06d}"
                suffix = next(suffix for start, suffix in _KINDS if image.startswith(start))
                members = member_bytes(f"{key}.json", label) + member_bytes(f"{key}.{suffix}", image)
                is_full = file.tell() + len(members) + 2 * BLOCK > most_bytes or num_samples == MAX_SAMPLES
                if num_samples and is_full:
                    break
                file.write(members)
                num_samples, sample = num_samples + 1, next(samples, None)
            file.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            shards.append(ShardFacts(name=name, samples=num_samples, bytes=file.tell(), sha256=digest))
    return shards


def _facts(table: RecordTable, num_classes: int, shards: list[ShardFacts]) -> SplitFacts:
    """What the list says of a split: counts, and an even sample of its boxes' sides (Vitter's algorithm R)."""
    labels, rng = table.labels(), random.Random(_SEED)
    trained = ~labels.ignored
    longer = np.repeat(np.maximum(labels.widths, labels.heights), labels.counts)
    sides = ((labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]) / longer[:, None])[trained]
    chosen = sides[:MAX_SIDES].tolist()
    for number in range(MAX_SIDES, len(sides)):
        if (place := rng.randrange(number + 1)) < MAX_SIDES:
            chosen[place] = sides[number].tolist()
    class_counts, ignored_counts = (
        np.bincount(labels.class_ids[group], minlength=num_classes).tolist() for group in (trained, labels.ignored)
    )
    return SplitFacts(
        background=int((labels.counts == 0).sum()),
        class_counts=class_counts,
        ignored_counts=ignored_counts,
        sides=chosen,
        shards=shards,
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
