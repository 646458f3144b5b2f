"""What the copied images are called: their own names wherever every format can hold them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anchorite.data.records import Record

# Folders that mean something to a reader, or that readers pass over.
_SPECIAL_FOLDERS = frozenset({"images", "labels", "annotations", "..", "__MACOSX"})
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class PlacedRecord:
    """A record and where its image goes: `place` counts from the split's image folder, as in "sub/a.jpg"."""

    record: Record
    place: PurePosixPath

    @property
    def stem_path(self) -> PurePosixPath:
        """`place` without the suffix, and without mistaking a dot in the name for one."""
        return self.place.parent / self.place.stem


def place_records(splits: Mapping[str, Sequence[Record]]) -> dict[str, tuple[PlacedRecord, ...]]:
    """Where each image goes. No two images of a dataset share folder and stem, for one label file serves one image.

    An image keeps its name, and its folder below the one that all images of the split share, unless a reader could
    not find it there again: then the folder is left out, characters are replaced by "_", or a number is put behind.
    """
    taken: set[str] = set()
    return {split: tuple(_place(records, taken)) for split, records in splits.items()}


def _place(records: Sequence[Record], taken: set[str]) -> Iterable[PlacedRecord]:
    folders = {record.path.parent: os.path.abspath(record.path.parent) for record in records}  # noqa: PTH100 - links
    shared = os.path.commonpath(folders.values()) if folders else ""
    kept = {folder: _safe_folder(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
    for record in records:
        folder = kept[record.path.parent]
        name = _safe_name(record.path.name)
        place, number = folder / name, 2
        while _key(place) in taken:
            place, number = folder / _numbered(name, number), number + 1
        taken.add(_key(place))
        yield PlacedRecord(record, place)


def _key(place: PurePosixPath) -> str:
    return str(place.parent / place.stem).casefold()  # file systems may not tell A from a


def _safe_folder(relative: str) -> PurePosixPath:
    parts = PurePosixPath(Path(relative).as_posix()).parts
    plain = all(
        part.lower() not in _SPECIAL_FOLDERS and part == _safe_name(part) and not part.startswith(".") for part in parts
    )
    return PurePosixPath(*parts) if plain else PurePosixPath()


def _safe_name(name: str) -> str:
    """A name without outer spaces, line separators, control characters or bytes that are no text."""
    spelled = "".join(char if char.isprintable() and char not in '\\"' else "_" for char in name)
    stem, dot, suffix = spelled.rpartition(".")
    stem = re.sub(r"^\s+|\s+$", lambda spaces: "_" * len(spaces[0]), stem)
    return f"{stem}{dot}{suffix.strip()}" if stem else spelled.strip()


def _numbered(name: str, number: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    ending = f"_{number}{dot}{suffix}"
    room = _MAX_NAME_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending
