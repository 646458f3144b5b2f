"""The index of a large dataset, cached from one opening to the next in a mapped safetensors file outside the dataset.

A cached index is used only while every file and folder that it was read from is unchanged, and only if every bit of its
own file is. A file counts as unchanged while its inode, size and times are. Of these the time of status change (ctime)
is set by the system at every write and cannot be set back, so an edit that keeps the size and restores the time of
modification is detected. A folder's times change with the names in it.

Legend: R records, N boxes, K classes, M paths.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import anchorite
from anchorite.data.dataset import Adjustment, DatasetIndex
from anchorite.data.records import Columns, RecordTable, Split, StringArray, StringArrayBuilder
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import write_atomically

VARIABLE = "ANCHORITE_INDEX_CACHE"  # "off", or a folder of one's own
LEAST_IMAGES, LEAST_BOXES = 10_000, 100_000  # either: smaller datasets are read in a second or two
_MOST_WATCHED_IMAGES = 50_000
_MOST_FOLDERS, _DEPTH = 10_000, 4
_MOST_FILES, _STRAY_S = 16, 86_400
_SETTLED_NS = 2_000_000_000  # how long a file must have been unchanged: clocks of file systems tick that rarely
_MAX_THREADS = 16
_CHUNK = 4096
_63_BITS = (1 << 63) - 1
_DTYPES = {"F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}

Arrays = dict[str, NDArray[Any]]


class Dependencies:
    """The paths that a reading depends on. Add each before reading it.

    The state of files and folders is taken by `snapshot`, that of candidates when they are added.
    """

    def __init__(self) -> None:
        self._started_ns = time.time_ns()
        self._files, self._folders = StringArrayBuilder(), dict[str, None]()
        self._candidates: dict[str, tuple[int, ...]] = {}

    def add_file(self, path: Path) -> None:
        """A file whose content matters; it need not exist."""
        self._files.append(str(path))

    def add_folder(self, path: Path) -> None:
        """A folder, there or not, in which it matters what names there are."""
        self._folders[str(path)] = None

    def add_candidate(self, path: Path) -> None:
        """A path of which only matters whether it exists, and where it leads."""
        self._candidates.setdefault(str(path), _candidate_state(str(path)))

    def snapshot(self) -> Snapshot | None:
        """The state of all paths; None when one changed so lately that a change since would not show in its times."""
        files, folders = self._files.strings(), StringArray.of(self._folders)
        snapshot = Snapshot(
            files=files,
            folders=folders,
            candidates=StringArray.of(self._candidates),
            realpaths=StringArray.of(map(os.path.realpath, (*self._folders, *self._candidates))),
            file_states=_states(files, _file_state),
            folder_states=_states(folders, _folder_state),
            candidate_states=np.array(list(self._candidates.values()), np.int64).reshape(-1, 5),
        )
        times = np.concatenate([states[:, 2:4].ravel() for states in (snapshot.file_states, snapshot.folder_states)])
        return snapshot if times.max(initial=0) < self._started_ns - _SETTLED_NS else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of paths: states (M, 5) int64 of the M files, of the folders and of the candidates, which are inode,
    size, time of modification, time of status change and device.

    realpaths: where each folder and candidate really lies, for links on the way to it.
    """

    files: StringArray
    folders: StringArray
    candidates: StringArray
    realpaths: StringArray
    file_states: NDArray[np.int64]
    folder_states: NDArray[np.int64]
    candidate_states: NDArray[np.int64]

    def still_holds(self) -> bool:
        """Whether all paths are in the same state: folders first, for they are few."""
        for paths, before, state in (
            (self.folders, self.folder_states, _folder_state),
            (self.candidates, self.candidate_states, _candidate_state),
            (self.files, self.file_states, _file_state),
        ):
            if not np.array_equal(_states(paths, state), before):
                return False
        every = (*self.folders, *self.candidates)
        return all(os.path.realpath(path) == before for path, before in zip(every, self.realpaths, strict=True))


def _file_state(path: str, is_candidate: bool = False) -> tuple[int, ...]:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each label file would double the time
    except (OSError, ValueError):
        return (0, -1, 0, 0, 0)
    if is_candidate:
        return status.st_ino & _63_BITS, stat.S_IFMT(status.st_mode), 0, 0, status.st_dev
    return status.st_ino & _63_BITS, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev


def _folder_state(path: str) -> tuple[int, ...]:
    inode, _, *others = _file_state(path)
    return inode, 0, *others


def _candidate_state(path: str) -> tuple[int, ...]:
    return _file_state(path, is_candidate=True)


def _states(paths: StringArray, state: Callable[[str], tuple[int, ...]]) -> NDArray[np.int64]:
    """(M, 5) states of all paths, asked for by several threads: a remote disk answers many at a time."""

    def some(start: int) -> NDArray[np.int64]:
        return np.array([state(paths[n]) for n in range(start, min(start + _CHUNK, len(paths)))], np.int64)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return np.concatenate([np.zeros((0, 5), np.int64), *pool.map(some, range(0, len(paths), _CHUNK))])


class Reading(NamedTuple):
    """How a dataset is opened: all that an index depends on beside the files."""

    root: Path
    format: str | None
    skip_bad: bool
    allow_outside: bool


def load_index(reading: Reading) -> DatasetIndex | None:
    """The cached index, if there is one and nothing that it depends on has changed."""
    file = _file_of(reading)
    arrays = None if file is None else load_arrays(file)
    if file is None or arrays is None:
        return None
    try:
        snapshot = Snapshot(**{one.name: _value(arrays, f"snapshot.{one.name}") for one in fields(Snapshot)})
        if not snapshot.still_holds():
            return None
        facts = json.loads(arrays["facts"].tobytes())
        splits = {}
        for number, split in enumerate(facts["splits"]):
            columns = Columns(**{one.name: _value(arrays, f"{number}.{one.name}") for one in fields(Columns)})
            if not _is_sound(columns, len(facts["class_names"])):
                return None
            splits[split] = RecordTable(columns, file=file)
        adjustments = tuple(map(_adjustment, facts["adjustments"]))
    except (KeyError, TypeError, ValueError, IndexError):  # written by this program, but not by this version of it
        return None
    with suppress(OSError):
        os.utime(file)  # the least recently used are removed first
    names = tuple(facts["class_names"])
    root, _, skip_bad, allow_outside = reading
    return DatasetIndex(root, facts["format"], names, splits, adjustments, allow_outside, skip_bad)


def save_index(reading: Reading, index: DatasetIndex, dependencies: Dependencies) -> DatasetIndex:
    """Cache the index of a large dataset; the same index, mapped from the file where that was possible.

    Nothing is raised: where the folder cannot be written to, or a file changed while it was read, nothing is cached.
    """
    tables = [split for split in index.splits.values() if isinstance(split, RecordTable)]
    is_small = sum(map(len, tables)) < LEAST_IMAGES and sum(table.num_boxes() for table in tables) < LEAST_BOXES
    file = _file_of(reading)
    if file is None or is_small or len(tables) < len(index.splits) or _is_inside(file.parent, index):
        return index
    # A size that changed shows when an image is decoded, so of many images an even choice is enough.
    step = -(-sum(map(len, tables)) // _MOST_WATCHED_IMAGES)
    for table in tables:
        for path in table[::step].paths():
            dependencies.add_file(path)
    if reading.root.is_dir() and not _add_folders(reading.root, dependencies):
        return index
    snapshot = dependencies.snapshot()
    if snapshot is None:
        return index
    adjustments = [list(astuple(one)) for one in index.adjustments]
    facts = {"format": index.format, "class_names": index.class_names, "splits": list(index.splits)}
    text = json.dumps({**facts, "adjustments": adjustments}, default=str)
    arrays: Arrays = {"facts": np.frombuffer(text.encode(), np.uint8)}
    arrays.update(_parts("snapshot", snapshot))
    for number, table in enumerate(tables):
        arrays.update(_parts(str(number), table.columns))
    try:
        _make_room(file.parent, sum(array.nbytes for array in arrays.values()))
        save_arrays(file, arrays)
    except (AnchoriteError, OSError):
        return index
    return load_index(reading) or index


def _file_of(reading: Reading) -> Path | None:
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    digest = hashlib.sha256(anchorite.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):  # another reader may read something else
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\0".encode())
    digest.update(repr((os.getcwd(), *map(str, reading))).encode("utf-8", "surrogatepass"))  # noqa: PTH109
    return (Path(named) if named else _default_folder()) / f"index-{digest.hexdigest()[:32]}.safetensors"


def _is_inside(folder: Path, index: DatasetIndex) -> bool:
    """Whether a cache folder lies in the dataset, which is never written to."""
    homes = {index.root if index.root.is_dir() else index.root.parent}
    for split in index.splits.values():
        homes.update(path.parent for path in split.paths())
    target = folder.resolve()
    return any(target.is_relative_to(home.resolve()) for home in homes)


def _add_folders(root: Path, dependencies: Dependencies) -> bool:
    """Add the folders in which the formats are looked for, and the files there by which they are told apart; False
    where they are too many.
    """
    waiting, seen = [(root, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        dependencies.add_folder(folder)
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
                    dependencies.add_file(folder / entry.name)
    return True


def _make_room(folder: Path, num_bytes: int) -> None:
    """Make the folder and room in it; OSError when it has not enough."""
    if os.environ.get(VARIABLE):
        folder.mkdir(parents=True, exist_ok=True)
    else:
        private_cache_folder()
    if shutil.disk_usage(folder).free < 2 * num_bytes:
        raise OSError("too little space")
    for stray in folder.glob(".index-*.tmp"):
        if time.time() - stray.stat().st_mtime > _STRAY_S:
            stray.unlink(missing_ok=True)
    files = sorted(folder.glob("index-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in files[_MOST_FILES - 1 :]:
        old.unlink(missing_ok=True)


def _parts(name: str, value: object) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays in a dataclass, named by its fields."""
    if isinstance(value, np.ndarray):
        yield name, value
    else:
        for one in fields(value):  # type: ignore[arg-type]
            yield from _parts(f"{name}.{one.name}", getattr(value, one.name))


def _value(arrays: Arrays, name: str) -> Any:
    return arrays[name] if name in arrays else StringArray(arrays[f"{name}.data"], arrays[f"{name}.starts"])


def _adjustment(values: Sequence[Any]) -> Adjustment:
    kind, origin, detail, split, image, class_name, box_xyxy, files = values
    box = None if box_xyxy is None else tuple(box_xyxy)
    path = None if image is None else Path(image)
    return Adjustment(kind, origin, detail, split, path, class_name, box, tuple(map(Path, files)))


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
        and all(_rise_to(len(texts.data), texts.starts) for texts in (columns.folders, columns.names, columns.heads))
        and _rise_to(num_boxes, columns.box_starts)
        and _are_below(len(columns.folders), columns.folder_ids)
        and _are_below(len(columns.heads), columns.head_ids)
        and _are_below(num_classes, columns.class_ids)
    )


def _rise_to(length: int, starts: NDArray[np.int64]) -> bool:
    return len(starts) > 0 and starts[0] == 0 and starts[-1] == length and bool((np.diff(starts) >= 0).all())


def _are_below(limit: int, numbers: NDArray[Any]) -> bool:
    return not len(numbers) or bool(numbers.min() >= 0 and numbers.max() < limit)


# The file: safetensors, with the SHA-256 of every array in its metadata.


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays in place of any file that is there, or raise StorageError and leave that."""
    digests = json.dumps({name: _digest(array) for name, array in arrays.items()})
    num_bytes = sum(array.nbytes for array in arrays.values())
    write_atomically(path, lambda temporary: save_file(dict(arrays), temporary, {"sha256": digests}), num_bytes)


def load_arrays(path: Path) -> Arrays | None:
    """The arrays of a file as read-only views of the mapped file, which safetensors itself would copy.

    None when there is no such file, when it is another user's, or differs by a bit from what was written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return None
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        begin = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:begin]) if begin <= len(mapped) else {}
        digests = json.loads(header.pop("__metadata__")["sha256"])
        arrays, end = {}, begin
        for name, entry in header.items():
            dtype, shape, (start, stop) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
            array = np.frombuffer(mapped, dtype, math.prod(shape), begin + start).reshape(shape)
            if array.nbytes != stop - start or _digest(array) != digests.pop(name):
                return None
            arrays[name], end = array, max(end, begin + stop)
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)  # the pages that were hashed count as memory of this process
        return arrays if end == len(mapped) and not digests else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    finally:
        os.close(descriptor)  # the mapping has its own


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


# Cache folders, of this index and of the image store.


def _default_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"anchorite-cache-{user}"


def private_cache_folder() -> Path:
    """A folder of this user alone in the system's temporary one; refused when another user made it."""
    folder = _default_folder()
    make_cache_folder(folder, mode=0o700)
    if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
        raise StorageError(f"{folder}: belongs to somebody else. Name a cache folder of your own")
    return folder


def refuse_dataset_folder(folder: Path, records: Split) -> None:
    """Raise InputError when a cache folder is or lies in a folder that holds images of the dataset."""
    target = folder.resolve()
    for parent in {parent.resolve() for parent in {path.parent for path in records.paths()}}:
        if target.is_relative_to(parent):
            raise InputError(
                f"{folder}: lies in the dataset ({parent}), which is never written to. Name another folder"
            )


def make_cache_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder where there is none; StorageError when that is refused."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}. Name another cache folder") from error


def check_space(folder: Path, num_bytes: int) -> None:
    """StorageError when so many bytes do not fit on a folder's disk."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise StorageError(
            f"{folder}: the decoded images take {num_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there; "
            "nothing was written. Free some space or name another cache folder"
        )
