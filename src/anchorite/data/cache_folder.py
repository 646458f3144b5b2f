"""Where what can be computed again is kept: a folder of this user alone, never one of a dataset's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from anchorite.data.records import Record
from anchorite.errors import InputError, StorageError


def private_cache_place() -> Path:
    """Where `private_cache_folder` is, whether it was made yet or not."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"anchorite-cache-{user}"


def private_cache_folder() -> Path:
    """A folder for caches in the system's temporary one; refused when somebody else made it."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = private_cache_place()
    make_cache_folder(folder, mode=0o700)
    if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != user):
        raise StorageError(f"{folder}: belongs to somebody else. Name a cache folder of your own")
    return folder


def refuse_dataset_folder(folder: Path, records: Sequence[Record]) -> None:
    """Raise InputError when a cache folder is or lies in a folder that holds images of the dataset."""
    place = folder.resolve()
    for parent in {record.path.resolve().parent for record in records}:
        if place.is_relative_to(parent):
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
