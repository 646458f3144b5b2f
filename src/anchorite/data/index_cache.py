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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import anchorite
from anchorite.data.dataset import (
    BOX_ROW,
    IMAGE_ROW,
    NO_CLASS,
    Adjustment,
    DatasetIndex,
    LabelSource,
    RecordTable,
    Split,
    StringArray,
)
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import make_folder, write_atomically

VARIABLE = "ANCHORITE_INDEX_CACHE"  # "off", or a folder of one's own
LEAST_IMAGES, LEAST_BOXES = 10_000, 100_000  # either: smaller datasets are read in a second or two
_MOST_WATCHED_IMAGES = 50_000
_MOST_FOLDERS, _DEPTH = 10_000, 4
_MOST_FILES, _STRAY_S = 16, 86_400
_SETTLED_NS = 2_000_000_000  # how long a file must have been unchanged: clocks of file systems tick that rarely
_MAX_THREADS = 16
_CHUNK = 4096
_63_BITS = (1 << 63) - 1
_DTYPES = {"I64": np.int64, "U8": np.uint8}
_TEXTS = "folders", "names", "heads"  # of a table

Arrays = dict[str, NDArray[Any]]


class Dependencies:
    """The paths that a reading depends on. Add each before reading it.

    watched: files and folders whose state matters; targets: of each path where it really leads, "" when it is missing.
    """

    def __init__(self) -> None:
        self.started_ns = time.time_ns()
        self.watched, self.targets = dict[str, None](), dict[str, str]()

    def add_file(self, path: Path) -> None:
        """A file whose content matters; it need not exist."""
        self.watched[str(path)] = None

    def add_folder(self, path: Path) -> None:
        """A folder, there or not, in which it matters what names there are."""
        self.add_file(path)
        self.add_candidate(path)

    def add_candidate(self, path: Path) -> None:
        """A path of which only matters whether it exists, and where it leads."""
        self.targets.setdefault(str(path), _target(str(path)))


def _target(path: str) -> str:
    return os.path.realpath(path) if os.path.exists(path) else ""  # noqa: PTH110 - a Path would double the time


def _states(paths: Sequence[str]) -> NDArray[np.int64]:
    """(M, 4) inode, size, times of modification and status change; by threads, as remote disks answer many at once."""

    def some(start: int) -> NDArray[np.int64]:
        states = np.full((min(_CHUNK, len(paths) - start), 4), -1)
        for number in range(len(states)):
            with suppress(OSError, ValueError):
                status = os.stat(paths[start + number])  # noqa: PTH116 - a Path would double the time
                times = status.st_mtime_ns, status.st_ctime_ns
                states[number] = status.st_ino & _63_BITS, status.st_size, *times
        return states

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return np.concatenate([np.zeros((0, 4), np.int64), *pool.map(some, range(0, len(paths), _CHUNK))])


def cache_file(root: Path, *asked: object) -> Path | None:
    """Where the index of a dataset that is opened in this way is cached; None where the user wants no cache.

    asked: all that the user said of how to read it.
    """
    folder = os.environ.get(VARIABLE)
    if folder == "off":
        return None
    digest = hashlib.sha256(anchorite.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):  # another reader may read something else
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\0".encode())
    how = os.getcwd(), str(root), *asked  # noqa: PTH109 - as text
    digest.update(repr(how).encode("utf-8", "surrogatepass"))
    return (Path(folder) if folder else _default_folder()) / f"index-{digest.hexdigest()[:32]}.safetensors"


def load_index(file: Path) -> DatasetIndex | None:
    """The cached index, if there is one and nothing that it depends on has changed."""
    arrays = load_arrays(file)
    if arrays is None:
        return None
    try:
        facts = json.loads(arrays["facts"].tobytes())
        watched, candidates, targets = (StringArray(arrays[name]) for name in ("watched", "candidates", "targets"))
        if list(map(_target, candidates)) != list(targets) or _digest(_states(watched)) != facts["states"]:
            return None
        splits = {}
        for number, split in enumerate(facts["splits"]):
            images, boxes = arrays[f"{number}.images"].view(IMAGE_ROW), arrays[f"{number}.boxes"].view(BOX_ROW)
            texts = {name: StringArray(arrays[f"{number}.{name}"]) for name in _TEXTS}
            sources = tuple(
                LabelSource(name, covered and tuple(covered), weight)
                for name, covered, weight in facts["label_sources"][number]
            )
            splits[split] = table = RecordTable(images, boxes, **texts, files=(file,), label_sources=sources)
            if not _is_sound(table, len(facts["class_names"])):
                return None
        adjustments = []
        for kind, origin, detail, split, image, name, box, files in facts["adjustments"]:
            known = image and Path(image), name, box and tuple(box), tuple(map(Path, files))
            adjustments.append(Adjustment(kind, origin, detail, split, *known))
        root, format, names = Path(facts["root"]), facts["format"], tuple(facts["class_names"])
        asked = facts["allow_outside"], facts["skip_bad"], tuple(facts["ignored_classes"]), facts["scores"]
        index = DatasetIndex(root, format, names, splits, tuple(adjustments), *asked)
    except (KeyError, TypeError, ValueError, IndexError):  # written by this program, but not by this version of it
        return None
    with suppress(OSError):
        os.utime(file)  # the least recently used are removed first
    return index


def save_index(file: Path, index: DatasetIndex, dependencies: Dependencies) -> DatasetIndex:
    """Cache the index of a large dataset; the same index, mapped from the file where that was possible.

    Nothing is raised: where the folder cannot be written to, or a file changed while it was read, nothing is cached.
    """
    tables = [split for split in index.splits.values() if isinstance(split, RecordTable)]
    num_images = sum(map(len, tables))
    is_small = num_images < LEAST_IMAGES and sum(table.num_boxes() for table in tables) < LEAST_BOXES
    if is_small or len(tables) < len(index.splits) or not _add_folders(index.root, dependencies):
        return index
    # A size that changed shows when an image is decoded, so of many images an even choice is enough.
    for table in tables:
        for path in table[:: -(-num_images // _MOST_WATCHED_IMAGES)].paths():
            dependencies.add_file(path)
    watched = list(dependencies.watched)
    states = _states(watched)
    if states[:, 2:].max(initial=0) >= dependencies.started_ns - _SETTLED_NS:
        return index  # a change since would not show in the times
    names = "root", "format", "class_names", "allow_outside", "skip_bad", "ignored_classes", "scores"
    facts = {name: getattr(index, name) for name in names}
    facts |= {
        "splits": list(index.splits),
        "label_sources": [[astuple(one) for one in table.label_sources] for table in tables],
        "adjustments": [astuple(one) for one in index.adjustments],
        "states": _digest(states),
    }
    arrays: Arrays = {"facts": np.frombuffer(json.dumps(facts, default=str).encode(), np.uint8)}
    texts = {"watched": watched, "candidates": dependencies.targets, "targets": dependencies.targets.values()}
    arrays |= {name: StringArray.of(some).data for name, some in texts.items()}
    for number, table in enumerate(tables):
        arrays |= {f"{number}.{name}": getattr(table, name).data for name in _TEXTS}
        # As whole numbers of 8 bytes, before which safetensors leaves no gap: so the mapped rows are aligned.
        arrays |= {f"{number}.images": table.images.view(np.int64), f"{number}.boxes": table.boxes.view(np.int64)}
    try:
        home = index.root if index.root.is_dir() else index.root.parent
        refuse_dataset_folder(file.parent, index.splits.values(), home)
        _make_room(file.parent, sum(array.nbytes for array in arrays.values()))
        save_arrays(file, arrays)
    except (AnchoriteError, OSError):
        return index
    return load_index(file) or index


def _add_folders(root: Path, dependencies: Dependencies) -> bool:
    """Add the folders where formats are looked for and the files that tell them apart; False for too many."""
    for number, (folder, names, files) in enumerate(os.walk(root, followlinks=True)):
        if number >= _MOST_FOLDERS:
            return False
        dependencies.add_folder(Path(folder))
        depth = len(Path(folder).parts) - len(root.parts)
        names[:] = [name for name in names if depth < _DEPTH and not name.startswith(".")]
        for name in files:
            if depth <= 1 and name.lower().endswith((".yaml", ".yml", ".json")):
                dependencies.add_file(Path(folder, name))
    return True


def _make_room(folder: Path, num_bytes: int) -> None:
    """Make the folder and room in it; StorageError or OSError when it has not enough."""
    if os.environ.get(VARIABLE):
        make_folder(folder)
    else:
        private_cache_folder()
    check_space(folder, 2 * num_bytes, "the labels")
    for stray in folder.glob(".index-*.tmp"):
        if time.time() - stray.stat().st_mtime > _STRAY_S:
            stray.unlink(missing_ok=True)
    files = sorted(folder.glob("index-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in files[_MOST_FILES - 1 :]:
        old.unlink(missing_ok=True)


def _is_sound(table: RecordTable, num_classes: int) -> bool:
    """Whether every number in the table that points somewhere points to something that is there."""
    images, boxes = table.images, table.boxes
    has_class = ~boxes["ignored"] | (boxes["class_id"] != NO_CLASS)
    limits = (
        (images["folder_id"], len(table.folders)),
        (images["source_id"], len(table.label_sources)),
        (images["num_boxes"], len(boxes) + 1),
        (boxes["class_id"][has_class], num_classes),
        (boxes["head_id"], len(table.heads)),
    )
    is_inside = all(ids.min(initial=0) >= 0 and ids.max(initial=-1) < limit for ids, limit in limits)
    return is_inside and len(images) == len(table.names) and images["num_boxes"].sum() == len(boxes)


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
    make_folder(folder, mode=0o700)
    if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
        raise StorageError(f"{folder}: belongs to somebody else. Name a cache folder of your own")
    return folder


def refuse_dataset_folder(folder: Path, splits: Iterable[Split], root: Path | None = None) -> None:
    """Raise InputError when a folder is or lies in the dataset's root or a folder that holds images of it."""
    target = folder.resolve()
    homes = {path.parent for split in splits for path in split.paths()}
    homes |= {root} if root is not None and root.is_dir() else set()
    for home in sorted({home.resolve() for home in homes}):
        if target.is_relative_to(home):
            raise InputError(
                f"{folder}: lies in the dataset ({home}), which is never written to; name a folder elsewhere"
            )


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """StorageError when so many bytes do not fit on a folder's disk."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise StorageError(
            f"{folder}: {what} take {num_bytes / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there; nothing was "
            "written. Free some space or name another folder"
        )
