"""What a reading of a dataset rests on: the files it read and the folders it looked into, and whether they are as then.

A file counts as unchanged while its inode, size and times are. Of these the time of status change (ctime) is set by the
system at every write and cannot be set back, so that an edit is noticed that keeps the size and restores the time of
modification. A folder's times change with the names in it. Legend: M places.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anchorite.data.records import StringArray, StringArrayBuilder

_SETTLED_NS = 2_000_000_000  # how long a file must have rested: clocks of file systems tick as seldom as that
_MAX_THREADS = 16
_CHUNK = 4096
_63_BITS = (1 << 63) - 1
Facts = Callable[[str], tuple[int, ...]]


class Sources:
    """Gathers the places that a reading rests on. Of files and folders nothing is asked until `taken_down`.

    Note each place before looking at it.
    """

    def __init__(self) -> None:
        self._started_ns = time.time_ns()
        self._files, self._folders = StringArrayBuilder(), dict[str, None]()
        self._candidates: dict[str, tuple[int, ...]] = {}

    def read(self, path: Path) -> None:
        """A file whose content matters; it need not exist."""
        self._files.append(str(path))

    def listed(self, folder: Path) -> None:
        """A folder, there or not, in which it matters what names there are."""
        self._folders[str(folder)] = None

    def asked_for(self, path: Path) -> None:
        """A place of which only matters whether it is there, and where it leads."""
        self._candidates.setdefault(str(path), _of_candidate(str(path)))

    def snapshot(self) -> Evidence | None:
        """The state of all places; None when one changed so lately that a change since would not show in its times."""
        files, folders = self._files.strings(), StringArray.of(self._folders)
        evidence = Evidence(
            files=files,
            folders=folders,
            candidates=StringArray.of(self._candidates),
            realpaths=StringArray.of(map(os.path.realpath, (*self._folders, *self._candidates))),
            file_facts=_all(files, _of_file),
            folder_facts=_all(folders, _of_folder),
            candidate_facts=np.array(list(self._candidates.values()), np.int64).reshape(-1, 5),
        )
        times = np.concatenate([facts[:, 2:4].ravel() for facts in (evidence.file_facts, evidence.folder_facts)])
        return evidence if times.max(initial=0) < self._started_ns - _SETTLED_NS else None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The state of places: facts (M, 5) int64 of the M files, of the folders and of the candidates, which are inode,
    size, time of modification, time of status change and device.

    roads: where each folder and candidate really lies, for links on the way to it.
    """

    files: StringArray
    folders: StringArray
    candidates: StringArray
    realpaths: StringArray
    file_facts: NDArray[np.int64]
    folder_facts: NDArray[np.int64]
    candidate_facts: NDArray[np.int64]

    def still_holds(self) -> bool:
        """Whether all places are as they were: folders first, for they are few."""
        for places, then, facts in (
            (self.folders, self.folder_facts, _of_folder),
            (self.candidates, self.candidate_facts, _of_candidate),
            (self.files, self.file_facts, _of_file),
        ):
            if not np.array_equal(_all(places, facts), then):
                return False
        every = (*self.folders, *self.candidates)
        return all(os.path.realpath(place) == road for place, road in zip(every, self.realpaths, strict=True))


_ABSENT = (0, -1, 0, 0, 0)


def _of_file(place: str) -> tuple[int, ...]:
    try:
        status = os.stat(place)  # noqa: PTH116 - a Path a label file would double the time
    except (OSError, ValueError):
        return _ABSENT
    return status.st_ino & _63_BITS, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev


def _of_folder(place: str) -> tuple[int, ...]:
    ino, _, *rest = _of_file(place)
    return ino, 0, *rest


def _of_candidate(place: str) -> tuple[int, ...]:
    try:
        status = os.stat(place)  # noqa: PTH116
    except (OSError, ValueError):
        return _ABSENT
    return status.st_ino & _63_BITS, stat.S_IFMT(status.st_mode), 0, 0, status.st_dev


def _all(places: StringArray, facts: Facts) -> NDArray[np.int64]:
    """(M, 5) facts of all places, asked for by several threads: a disk far away answers many at a time."""

    def some(start: int) -> NDArray[np.int64]:
        found = [facts(places[index]) for index in range(start, min(start + _CHUNK, len(places)))]
        return np.array(found, np.int64)

    starts = range(0, len(places), _CHUNK)
    if len(starts) < 2:
        return np.concatenate([np.zeros((0, 5), np.int64), *map(some, starts)])
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(some, starts)))
