"""The index of a large dataset, kept from one opening to the next in a mapped file outside of the dataset.

A kept index is taken only while everything that it was read from is as it was (see `sources`), and only if every bit of
its file is. Legend: R records, N boxes, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import anchorite
from anchorite.data.cache_folder import private_cache_folder, private_cache_place
from anchorite.data.column_file import load_columns, save_columns
from anchorite.data.dataset import Adjustment, DatasetIndex
from anchorite.data.records import Columns, RecordTable, StringArray
from anchorite.data.sources import Evidence, Sources
from anchorite.errors import AnchoriteError

VARIABLE = "ANCHORITE_INDEX_CACHE"  # "off", or a folder of one's own
LEAST_IMAGES, LEAST_BOXES = 10_000, 100_000  # either: smaller datasets are read in a second or two
_MOST_WATCHED_IMAGES = 50_000
_MOST_FOLDERS, _DEPTH = 10_000, 4
_MOST_KEPT, _STRAY_S = 16, 86_400


class Reading(NamedTuple):
    """How a dataset is opened: all that an index depends on beside the files."""

    root: Path
    format: str | None
    skip_bad: bool
    allow_outside: bool


def kept_index(reading: Reading) -> DatasetIndex | None:
    """The index as kept, if there is one and nothing that it rests on has changed."""
    file = _file_of(reading)
    if file is None or not file.exists():
        return None
    index = _load(file, reading)
    if index is not None:
        with suppress(OSError):
            os.utime(file)  # the files used last are kept
    return index


def keep_index(reading: Reading, index: DatasetIndex, sources: Sources) -> DatasetIndex:
    """Keep the index of a large dataset; the same index, mapped from the file where that was possible.

    Nothing is raised: where the folder cannot be written to, or a file changed while it was read, nothing is kept.
    """
    tables = [table for table in index.splits.values() if isinstance(table, RecordTable)]
    num_boxes = sum(len(table.columns.class_ids) for table in tables)
    if len(tables) < len(index.splits) or (sum(map(len, tables)) < LEAST_IMAGES and num_boxes < LEAST_BOXES):
        return index
    file = _file_of(reading)
    if file is None or _is_inside(file.parent, index):
        return index
    _watch_images(tables, sources)
    if reading.root.is_dir() and not _watch_folders(reading.root, sources):
        return index
    evidence = sources.snapshot()
    if evidence is None:
        return index
    try:
        _prepare(file, index)
        _save(file, index, evidence)
    except (AnchoriteError, OSError):
        return index
    return _load(file, reading) or index


def _file_of(reading: Reading) -> Path | None:
    said = os.environ.get(VARIABLE)
    if said == "off" or not hasattr(os, "pread"):
        return None
    folder = Path(said) if said else private_cache_place()
    digest = hashlib.sha256(anchorite.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):  # another reader may read something else
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\0".encode())
    wanted = (os.getcwd(), str(reading.root), reading.format, reading.skip_bad, reading.allow_outside)  # noqa: PTH109
    digest.update(repr(wanted).encode("utf-8", "surrogatepass"))
    return folder / f"index-{digest.hexdigest()[:32]}.bin"


def _is_inside(folder: Path, index: DatasetIndex) -> bool:
    """Whether a cache folder lies in the dataset, which is never written to."""
    homes = {index.root if index.root.is_dir() else index.root.parent}
    for table in index.splits.values():
        assert isinstance(table, RecordTable)
        homes.update(map(Path, table.columns.folders))
    place = folder.resolve()
    return any(place.is_relative_to(home.resolve()) for home in homes)


def _watch_images(tables: list[RecordTable], sources: Sources) -> None:
    """Watch the images too, evenly chosen if they are many: a size that changed shows when an image is decoded."""
    step = -(-sum(map(len, tables)) // _MOST_WATCHED_IMAGES)
    for table in tables:
        for path in table[::step].paths():
            sources.read(path)


def _watch_folders(root: Path, sources: Sources) -> bool:
    """Watch the folders in which the formats are looked for, and the files there by which they are told apart."""
    waiting, seen = [(root, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        sources.listed(folder)
        seen += 1
        if seen > _MOST_FOLDERS:
            return False
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if depth < _DEPTH and entry.is_dir():
                    waiting.append((folder / entry.name, depth + 1))
                elif depth <= 1 and entry.name.lower().endswith((".yaml", ".yml", ".json")):
                    sources.read(folder / entry.name)
    return True


def _prepare(file: Path, index: DatasetIndex) -> None:
    """Make the folder and room in it; OSError when it has not enough."""
    folder = file.parent
    if os.environ.get(VARIABLE):
        folder.mkdir(parents=True, exist_ok=True)
    else:
        private_cache_folder()
    num_bytes = sum(array.nbytes for _, array in _arrays_of(index))
    if shutil.disk_usage(folder).free < 2 * num_bytes:
        raise OSError("too little space")
    for stray in folder.glob(".index-*.tmp"):
        if time.time() - stray.stat().st_mtime > _STRAY_S:
            stray.unlink(missing_ok=True)
    kept = sorted(folder.glob("index-*.bin"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[_MOST_KEPT - 1 :]:
        old.unlink(missing_ok=True)


def _save(file: Path, index: DatasetIndex, evidence: Evidence) -> None:
    facts = {"format": index.format, "class_names": index.class_names, "splits": list(index.splits)}
    arrays = dict(_arrays_of(index))
    noted = json.dumps([_adjustment_facts(one) for one in index.adjustments]).encode()
    arrays["adjustments"] = np.frombuffer(noted, np.uint8)
    for one in fields(Evidence):
        arrays.update(_parts(f"evidence.{one.name}", getattr(evidence, one.name)))
    save_columns(file, facts, arrays)


def _arrays_of(index: DatasetIndex) -> Iterator[tuple[str, NDArray[Any]]]:
    for number, table in enumerate(index.splits.values()):
        assert isinstance(table, RecordTable)
        for one in fields(Columns):
            yield from _parts(f"{number}.{one.name}", getattr(table.columns, one.name))


def _parts(name: str, value: StringArray | NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, StringArray):
        yield f"{name}.data", value.data
        yield f"{name}.starts", value.starts
    else:
        yield name, value


def _load(file: Path, reading: Reading) -> DatasetIndex | None:
    found = load_columns(file)
    if found is None:
        return None
    facts, arrays = found
    try:
        evidence = Evidence(**{one.name: _value(arrays, f"evidence.{one.name}") for one in fields(Evidence)})
        if not evidence.still_holds():
            return None
        columns = [
            Columns(**{one.name: _value(arrays, f"{number}.{one.name}") for one in fields(Columns)})
            for number in range(len(facts["splits"]))
        ]
        if not all(_is_sound(one, len(facts["class_names"])) for one in columns):
            return None
        adjustments = tuple(map(_adjustment, json.loads(arrays["adjustments"].tobytes())))
    except (KeyError, TypeError, ValueError, IndexError):  # written by this program, but not by this version of it
        return None
    return DatasetIndex(
        reading.root,
        facts["format"],
        tuple(facts["class_names"]),
        {split: RecordTable(one, file=file) for split, one in zip(facts["splits"], columns, strict=True)},
        adjustments,
        reading.allow_outside,
        reading.skip_bad,
    )


def _value(arrays: Mapping[str, NDArray[Any]], name: str) -> Any:
    return arrays[name] if name in arrays else StringArray(arrays[f"{name}.data"], arrays[f"{name}.starts"])


def _is_sound(columns: Columns, num_classes: int) -> bool:
    """Whether every number in the columns that points somewhere points to something that is there."""
    num_records, num_boxes = len(columns.names), len(columns.class_ids)
    of_records = (columns.folder_ids, columns.widths, columns.heights)
    of_boxes = (columns.boxes_xyxy, columns.ignored, columns.areas, columns.head_ids, columns.numbers)
    return (
        all(len(array) == num_records for array in of_records)
        and all(len(array) == num_boxes for array in of_boxes)
        and columns.boxes_xyxy.shape[1:] == (4,)
        and len(columns.box_starts) == num_records + 1
        and all(_is_cut(texts.starts, len(texts.data)) for texts in (columns.folders, columns.names, columns.heads))
        and _is_cut(columns.box_starts, num_boxes)
        and _are_below(columns.folder_ids, len(columns.folders))
        and _are_below(columns.head_ids, len(columns.heads))
        and _are_below(columns.class_ids, num_classes)
    )


def _is_cut(starts: NDArray[np.int64], length: int) -> bool:
    return len(starts) > 0 and starts[0] == 0 and starts[-1] == length and bool((np.diff(starts) >= 0).all())


def _are_below(numbers: NDArray[Any], limit: int) -> bool:
    return not len(numbers) or bool(numbers.min() >= 0 and numbers.max() < limit)


def _adjustment_facts(one: Adjustment) -> list[Any]:
    image = None if one.image is None else str(one.image)
    files = [str(file) for file in one.files]
    return [one.kind, one.origin, one.detail, one.split, image, one.class_name, one.box_xyxy, files]


def _adjustment(facts: list[Any]) -> Adjustment:
    kind, origin, detail, split, image, class_name, box_xyxy, files = facts
    box = None if box_xyxy is None else tuple(box_xyxy)
    return Adjustment(
        kind, origin, detail, split, None if image is None else Path(image), class_name, box, tuple(map(Path, files))
    )
