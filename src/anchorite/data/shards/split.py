"""A split in shards: a sequence of records that are read when they are asked for, and what is known without reading.

Legend: N records, K classes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from anchorite.data.records import Record, RecordTable, Split, TableBuilder
from anchorite.data.shards.labels import parse_label
from anchorite.data.shards.manifest import SplitFacts
from anchorite.data.shards.tar import (
    REMEDY,
    Sample,
    ShardTable,
    kept_table,
    open_shard,
    position_of,
    read_member,
    read_table,
    sample_path,
)
from anchorite.errors import InputError, StorageError

Result = TypeVar("Result")


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

    def table(self) -> ShardTable:
        """Where each sample lies; InputError naming shard and byte where one that is to be read does not."""
        table = read_table(self.path, self.num_samples)
        return self._checked(table)

    def kept_table(self) -> ShardTable:
        """`table`, remembered for reading at random."""
        try:
            status = self.path.stat()
        except OSError:
            return self.table()  # which says what is wrong
        return self._checked(kept_table(self.path, status.st_size, status.st_mtime_ns))

    def _checked(self, table: ShardTable) -> ShardTable:
        num_whole = len(table.rows)
        if num_whole < self.num_samples and not self.left_out.issuperset(range(num_whole, self.num_samples)):
            damage = table.damage or "the shard is shorter than listed"
            raise InputError(f"{self.path}: {damage} ({num_whole} of {self.num_samples} samples are whole); {REMEDY}")
        return table


def read_record(file: BinaryIO, path: Path, sample: Sample, num_classes: int) -> Record:
    """The record of a sample whose image is called `path`; InputError and StorageError naming it."""
    return _named(path, lambda: parse_label(read_member(file, sample.label), path, num_classes))


def read_image(file: BinaryIO, path: Path, sample: Sample) -> bytes:
    """The image's file of a sample that is called `path`; InputError and StorageError naming it."""
    return _named(path, lambda: read_member(file, sample.image))


def _named(path: Path, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


class ShardedSplit(Split):
    """The records of a split in shards: none is held, each is read anew.

    Going through all of them reads labels alone, shard by shard. facts: counts made when the shards were written; what
    was left out later is still counted there.
    """

    is_shuffled = True

    def __init__(self, shards: Sequence[Shard], num_classes: int, facts: SplitFacts) -> None:
        self.shards, self.num_classes, self.facts = tuple(shards), num_classes, facts
        self.starts = list(accumulate(map(len, self.shards), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        number = range(len(self))[index]
        shard, position = self.place(number)
        sample = shard.kept_table().sample(position)
        with open_shard(shard.path) as file:
            return read_record(file, sample_path(shard.path, position, sample.suffix), sample, self.num_classes)

    def __iter__(self) -> Iterator[Record]:
        for file, path, sample in self._located():
            yield read_record(file, path, sample, self.num_classes)

    def samples(self) -> Iterator[tuple[Record, bytes]]:
        """Each record with its image's file, in order; InputError and StorageError naming one that is damaged."""
        for file, path, sample in self._located():
            yield read_record(file, path, sample, self.num_classes), read_image(file, path, sample)

    def _located(self) -> Iterator[tuple[BinaryIO, Path, Sample]]:
        """Each sample's open shard, its image's path, and where it lies, in order."""
        for shard in filter(len, self.shards):
            table = shard.table()
            with open_shard(shard.path) as file:
                for position in shard.positions().tolist():
                    sample = table.sample(position)
                    yield file, sample_path(shard.path, position, sample.suffix), sample

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of record `index`, and its position there; no file is touched."""
        number = bisect_right(self.starts, index) - 1
        shard = self.shards[number]
        nth = index - self.starts[number]
        return shard, int(shard.positions()[nth]) if shard.left_out else nth

    def num_boxes(self) -> int:
        """Boxes of the split, crowds and difficult ones too."""
        return sum(self.facts.class_counts) + sum(self.facts.ignored_counts)

    def num_background(self) -> int:
        """Images without a box."""
        return self.facts.background

    def class_counts(self, num_classes: int, with_ignored: bool = False) -> NDArray[np.int64]:
        """(K,) number of boxes of each class that are trained on, or of all."""
        assert num_classes == self.num_classes
        counts = np.array(self.facts.class_counts, np.int64)
        return counts + self.facts.ignored_counts if with_ignored else counts

    def box_sides(self, image_size: int) -> NDArray[np.float64]:
        """Widths and heights of boxes, (up to 20 000, 2), where their image's longer side has `image_size` pixels."""
        return np.array(self.facts.sides, np.float64).reshape(-1, 2) * image_size

    def table(self) -> RecordTable:
        """The same records in memory, which reads every label."""
        builder = TableBuilder()
        for record in self:
            builder.append(record)
        return builder.table()

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order; no label is read."""
        return (path for _, path, _ in self._located())

    def fingerprint(self) -> str:
        """SHA-256 over those of the shards and what is left out of them, in order."""
        digest = hashlib.sha256(str(self.num_classes).encode())
        for shard in self.shards:
            digest.update(f"\n{shard.path.name} {shard.sha256} {sorted(shard.left_out)}".encode())
        return digest.hexdigest()

    def without(self, paths: Collection[Path]) -> ShardedSplit:
        """The split without some records, named by their paths."""
        gone: dict[Path, set[int]] = {}
        for path in paths:
            gone.setdefault(path.parent, set()).add(position_of(path))
        shards = [replace(shard, left_out=shard.left_out.union(gone.get(shard.path, ()))) for shard in self.shards]
        return ShardedSplit(shards, self.num_classes, self.facts)
