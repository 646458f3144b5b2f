"""A split in shards: a sequence of records that are read when they are asked for, and what is known without reading.

The label of a sample is a `Record` as JSON, whose numbers read back as the very same. It is checked like the labels of
every other format, but nothing is corrected: what does not fit was not written by this package, or is damaged.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from pathlib import Path
from typing import Annotated, Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from anchorite.data.dataset import (
    NO_CLASS,
    ONE_SOURCE,
    LabelSource,
    LeftOut,
    Record,
    RecordTable,
    Split,
    as_split,
)
from anchorite.data.formats.common import SPLITS, ClassesAndSplits, Fence, ReadingLog, is_class_name
from anchorite.data.headers import MAX_PIXELS
from anchorite.data.images import decode_resized
from anchorite.data.shards.format import (
    IMAGE,
    LABEL,
    MANIFEST,
    REMEDY,
    SUFFIX,
    ShardFacts,
    ShardTable,
    SplitFacts,
    cached_table,
    open_shard,
    position_of,
    read_manifest,
    read_member,
    read_table,
    sample_path,
)
from anchorite.data.store import Progress
from anchorite.errors import InputError, StorageError
from anchorite.reading import shorten, validation_faults

LOOKED_FOR = "shards: shards.json, as anchorite convert --to shards writes it"
SUFFIXES = (MANIFEST,)
_LONGEST_ORIGIN = 5000  # a path has up to 4096 letters


class _Label(BaseModel, strict=True, allow_inf_nan=False):
    """The JSON of a label, but for the name of its image. origins: strings that pydantic need not be able to encode.

    weights: None where all are 1; source: the number of one that shards.json lists for the split.
    """

    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)]]
    classes: list[int]
    ignored: list[bool]
    areas: list[Annotated[float, Field(ge=0)]]
    origins: list[Any]
    weights: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    source: Annotated[int, Field(ge=0)] = 0


def label_bytes(record: Record, name: str, source: int = 0) -> bytes:
    """The JSON of a record, plain ASCII. name: what its image was called; source: the number of the record's."""
    arrays = {"boxes": record.boxes_xyxy, "classes": record.class_ids, "ignored": record.ignored, "areas": record.areas}
    lists = {key: array.tolist() for key, array in arrays.items()}
    content = {"name": name, "width": record.width, "height": record.height, **lists, "origins": list(record.origins)}
    content |= {"weights": record.weights.tolist()} if (record.weights != 1).any() else {}
    content |= {"source": source} if source else {}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_label(data: bytes, path: Path, num_classes: int, sources: Sequence[LabelSource] = (ONE_SOURCE,)) -> Record:
    """The record of an image at `path` from the JSON beside it; InputError naming the path.

    sources: which its number chooses of.
    """
    try:
        label = _Label.model_validate(json.loads(data))
    except ValidationError as error:
        raise InputError(f"{path}: its label: {validation_faults(error, 1)}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(f"{path}: its label is not readable as JSON: {shorten(str(error))}") from error
    width, height, num_boxes = label.width, label.height, len(label.classes)
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path}: its label says {width}x{height} pixels, more than the limit of {MAX_PIXELS // 1_000_000} million"
        )
    weights = [1.0] * num_boxes if label.weights is None else label.weights
    if not all(len(one) == num_boxes for one in (label.boxes, label.ignored, label.areas, label.origins, weights)):
        raise InputError(
            f"{path}: its label has {num_boxes} classes, but not as many boxes, ignored, areas, origins or weights"
        )
    if label.source >= len(sources):
        raise InputError(f"{path}: its label: source: {label.source} is not one of the {len(sources)} of {MANIFEST}")
    classes = zip(label.classes, label.ignored, strict=True)
    known = [(one, ignored) for one, ignored in classes if not (ignored and one == NO_CLASS)]
    wrong = next((one for one, _ in known if not 0 <= one < num_classes), None)
    if wrong is not None:
        raise InputError(f"{path}: its label: classes: {shorten(wrong)} is not one of 0 to {num_classes - 1}")
    covered = sources[label.source].covered
    if covered is not None and not all(ignored or covered[one] for one, ignored in known):
        raise InputError(f"{path}: its label has an object of a class that its source {label.source} does not cover")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_ORIGIN for text in label.origins):
        raise InputError(f"{path}: its label: origins: must say where each box came from, as texts")
    boxes_xyxy = np.array(label.boxes, np.float64).reshape(-1, 4)
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    bad = np.flatnonzero(((low < 0) | (high <= low) | (high > [width, height])).any(axis=1))
    if len(bad):
        box = label.boxes[bad[0]]
        raise InputError(f"{path}: its label has a box without area or outside of {width}x{height}: {shorten(box)}")
    columns = np.array(label.classes, np.int64), np.array(label.ignored, np.bool_), np.array(label.areas, np.float64)
    counts, source = np.array(weights, np.float32), sources[label.source]
    return Record(path, width, height, boxes_xyxy, *columns, tuple(label.origins), counts, source)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a split. left_out: positions of the samples that are passed over because they cannot be read."""

    path: Path
    num_samples: int
    sha256: str
    left_out: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.num_samples - len(self.left_out)

    def positions(self) -> NDArray[np.int64]:
        """Where the samples that are read stand in the file."""
        positions = np.arange(self.num_samples)
        return np.delete(positions, sorted(self.left_out)) if self.left_out else positions

    def table(self, cached: bool = False) -> ShardTable:
        """Where each sample lies; InputError naming shard and byte where one that is to be read does not.

        cached: remember it, for reading at random.
        """
        table = cached_table(self.path) if cached and self.path.is_file() else read_table(self.path, self.num_samples)
        num_whole = len(table.rows)
        if not self.left_out.issuperset(range(num_whole, self.num_samples)):
            damage = table.damage or "the shard is shorter than listed"
            raise InputError(f"{self.path}: {damage} ({num_whole} of {self.num_samples} samples are whole); {REMEDY}")
        return table


def read_part(file: BinaryIO, path: Path, span: Sequence[int]) -> bytes:
    """A file of a sample; InputError and StorageError naming `path`, that of its image. span: as of `read_member`."""
    try:
        return read_member(file, span)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_record(file: BinaryIO, path: Path, row: Sequence[int], split: ShardedSplit) -> Record:
    """The record of a sample of a split by its row of the table; raises as `read_part` and `parse_label`."""
    return parse_label(read_part(file, path, row[LABEL]), path, split.num_classes, split.sources())


class ShardedSplit(Split):
    """The records of a split in shards: none is in memory, each is read when it is asked for.

    Going through all of them reads labels alone, shard by shard. facts: counts made when the shards were written; what
    was left out later is still counted there.
    """

    is_shuffled = True

    def __init__(self, shards: Sequence[Shard], num_classes: int, facts: SplitFacts) -> None:
        self.shards, self.num_classes, self.facts = tuple(shards), num_classes, facts
        self.starts = list(accumulate(map(len, self.shards), initial=0))
        sources = [
            LabelSource(one.name, None if one.covered is None else tuple(one.covered), one.background_weight)
            for one in facts.sources
        ]
        self._sources = tuple(sources) or (ONE_SOURCE,)

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        shard, position = self.locate(range(len(self))[index])
        row = shard.table(cached=True).rows[position].tolist()
        with open_shard(shard.path) as file:
            return read_record(file, sample_path(shard.path, position, row[SUFFIX]), row, self)

    def __iter__(self) -> Iterator[Record]:
        return (read_record(file, path, row, self) for file, path, row in self._located())

    def samples(self) -> Iterator[tuple[Record, bytes]]:
        """Each record with its image's file, in order; InputError and StorageError naming one that is damaged."""
        for file, path, row in self._located():
            yield read_record(file, path, row, self), read_part(file, path, row[IMAGE])

    def _located(self) -> Iterator[tuple[BinaryIO, Path, list[int]]]:
        """Each sample's open shard, its image's path, and its row of the table, in order."""
        for shard in filter(len, self.shards):
            positions = shard.positions()
            rows = shard.table().rows[positions]
            with open_shard(shard.path) as file:
                for position, row in zip(positions.tolist(), rows, strict=True):
                    yield file, sample_path(shard.path, position, row[SUFFIX]), row.tolist()

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard of record `index`, and its position there; no file is touched."""
        number = bisect_right(self.starts, index) - 1
        shard, nth = self.shards[number], index - self.starts[number]
        return shard, int(shard.positions()[nth]) if shard.left_out else nth

    def num_boxes(self) -> int:
        """Boxes of the split, crowds and difficult ones too."""
        return sum(self.facts.class_counts) + self.num_ignored()

    def num_ignored(self) -> int:
        """Ignored boxes of the split, of a class or none."""
        return sum(self.facts.ignored_counts) + self.facts.ignored_without_class

    def num_weighted(self) -> int:
        """Boxes that are trained on and count less than 1."""
        return self.facts.weighted

    def mean_weight(self) -> float:
        """The mean weight of the boxes that `num_weighted` counts; 1 where there is none."""
        return self.facts.mean_weight

    def sources(self) -> tuple[LabelSource, ...]:
        """The sources of the labels; each record has one of these."""
        return self._sources

    def images_by_source(self) -> NDArray[np.int64]:
        """(S,) number of images that have their labels from each of `sources`."""
        return np.array([one.images for one in self.facts.sources] or [len(self)], np.int64)

    def num_background(self) -> int:
        """Images without a box."""
        return self.facts.background

    def class_counts(self, num_classes: int, with_ignored: bool = False) -> NDArray[np.int64]:
        """(K,) number of boxes of each class that are trained on, or of all that have a class."""
        assert num_classes == self.num_classes
        counts = np.array(self.facts.class_counts, np.int64)
        return counts + self.facts.ignored_counts if with_ignored else counts

    def box_sides(self, image_size: int) -> NDArray[np.float64]:
        """Widths and heights of boxes, (up to 20 000, 2), where their image's longer side has `image_size` pixels."""
        return np.array(self.facts.sides, np.float64).reshape(-1, 2) * image_size

    def table(self) -> RecordTable:
        """The same records in memory, which reads every label."""
        return as_split(iter(self)).table()

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order; no label is read."""
        return (path for _, path, _ in self._located())

    def paths_at(self, indices: Iterable[int]) -> list[Path]:
        """The paths of some images; no label is read."""
        paths = []
        for index in indices:
            shard, position = self.locate(index)
            paths.append(sample_path(shard.path, position, int(shard.table(cached=True).rows[position, SUFFIX])))
        return paths

    def folders_of_images(self) -> list[Path]:
        """None: the images are no files of their own."""
        return []

    def path_keys(self) -> Iterator[bytes]:
        """None: the images are no files of their own."""
        return iter(())

    def fingerprint(self) -> str:
        """SHA-256 over those of the shards and what is left out of them, in order, and what sources do not know."""
        digest = hashlib.sha256(str(self.num_classes).encode())
        for shard in self.shards:
            digest.update(f"\n{shard.path.name} {shard.sha256} {sorted(shard.left_out)}".encode())
        if self._sources != (ONE_SOURCE,):
            digest.update(repr([(one.covered, one.background_weight) for one in self._sources]).encode())
        return digest.hexdigest()

    def renumbered(self, class_ids: Sequence[int]) -> ShardedSplit:
        """Refused: labels are read one by one while training goes on, and their counts are those of all classes."""
        raise InputError(
            f"{self.shards[0].path.parent}: the classes of shards are fixed; ignore some where they are made: "
            "anchorite convert DATA NEW_FOLDER --to shards --ignore-class NAME"
        )

    def without(self, paths: Collection[Path]) -> ShardedSplit:
        """The split without some records, named by their paths."""
        gone: dict[Path, set[int]] = {}
        for path in paths:
            gone.setdefault(path.parent, set()).add(position_of(path))
        shards = [replace(shard, left_out=shard.left_out.union(gone.get(shard.path, ()))) for shard in self.shards]
        return ShardedSplit(shards, self.num_classes, self.facts)


def find(root: Path, log: ReadingLog, fence: Fence) -> Path | None:
    """The list of a dataset in shards in a folder, or None; the file itself where that is named."""
    path = root if root.is_file() else root / MANIFEST
    return fence.check(path) if path.is_file() else None


def read(manifest_path: Path, _: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names and splits of a dataset in shards.

    A shard that is missing or has another length than listed is bad: an error, or with skip_bad left out as far as it
    cannot be read.
    """
    manifest = read_manifest(manifest_path)
    names, folder = manifest.class_names, manifest_path.parent
    bad = next((name for name in names if not is_class_name(name) or names.count(name) > 1), None)
    if bad is not None:
        raise InputError(f"{manifest_path}: class_names: {shorten(bad)} is no class name, or stands there twice")
    fence = Fence([folder], allow_outside)
    splits: dict[str, ShardedSplit] = {}
    for split in (name for name in SPLITS if name in manifest.splits):
        log.split = split
        facts = manifest.splits[split]
        shards = [_listed_shard(folder / shard.name, shard, fence, log) for shard in facts.shards]
        splits[split] = ShardedSplit(shards, len(names), facts)
    return tuple(names), splits


def _listed_shard(path: Path, facts: ShardFacts, fence: Fence, log: ReadingLog) -> Shard:
    """A shard as shards.json lists it, without the samples that are missing at its end."""
    shard, num_whole, wrong = Shard(path, facts.samples, facts.sha256), 0, fence.refusal(path)
    if wrong is None:
        try:
            if (num_bytes := path.stat().st_size) == facts.bytes:
                return shard
            table = read_table(path, facts.samples)
            num_whole, wrong = len(table.rows), f"{num_bytes} bytes instead of {facts.bytes}"
            wrong += table.damage and f"; {table.damage}"
        except FileNotFoundError:
            wrong = "missing"
        except InputError as error:
            wrong = str(error).removeprefix(f"{path}: ")
        wrong += f": {facts.samples - num_whole} of its {facts.samples} images cannot be read; {REMEDY}"
    log.bad(str(path), wrong)
    return replace(shard, left_out=frozenset(range(num_whole, facts.samples)))


def readable(split: ShardedSplit, progress: Progress | None = None) -> tuple[ShardedSplit, tuple[LeftOut, ...]]:
    """The split without the samples that cannot be read and decoded, and these with the reason.

    progress is called with (images done, images in all). Raises InputError when none can be, StorageError when the
    disk fails: that is no fault of an image.
    """
    left_out: list[LeftOut] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV releases the interpreter lock while it decodes
        for shard, done in zip(split.shards, split.starts, strict=False):
            if len(shard):
                table = read_table(shard.path, shard.num_samples)
                positions = shard.positions().tolist()
                tried = pool.map(_try_decoding, repeat(shard), repeat(table), positions, repeat(split))
                for number, found in enumerate(tried, done + 1):
                    left_out += [] if found is None else [found]
                    if progress is not None:
                        progress(number, len(split))
    if len(left_out) == len(split):
        raise InputError(f"none of the {len(split)} images can be read: {left_out[0].path}: {left_out[0].reason}")
    return split.without([one.path for one in left_out]), tuple(left_out)


def _try_decoding(shard: Shard, table: ShardTable, position: int, split: ShardedSplit) -> LeftOut | None:
    """Why a sample cannot be read and decoded, if so."""
    row = table.rows[position].tolist() if position < len(table.rows) else None
    path = sample_path(shard.path, position, row[SUFFIX] if row else 0)
    try:
        if row is None:
            raise InputError(table.damage)
        with open_shard(shard.path) as file:
            record = read_record(file, path, row, split)
            data = read_part(file, path, row[IMAGE])
        decode_resized(record, (record.height, record.width), data)
    except InputError as error:
        return LeftOut(path, str(error).removeprefix(f"{path}: "))
    return None
