"""Writing files so that a crash at any moment leaves either the old content or the new, never half of one."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anchorite.errors import StorageError

StrPath = str | os.PathLike[str]
"""A path as users give it; public functions take it and turn it into a `Path` at once."""

# struct flock of 64-bit systems: its layout, and where l_type is in it.
_FLOCK_LAYOUTS = {"linux": ("hhqqi", 0), "darwin": ("qqihh", 3)}


def write_atomically(path: Path, write: Callable[[Path], object], num_bytes: int | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place, durable on return.

    num_bytes: approximate size of the file, for the message. Raises StorageError naming the path, the bytes needed and
    the free space when the disk or a permission refuses; whatever stood at `path` before is then untouched and the
    temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush_to_disk(temporary)
        temporary.replace(path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise cannot_write(path, error, num_bytes) from error
    finally:
        with suppress(OSError):  # a folder that has become read-only; the error above says so
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, num_bytes: int | None = None) -> StorageError:
    """The error of a file that the disk or a permission refuses, with the bytes needed, where known, and those free."""
    space = "" if num_bytes is None else f"{num_bytes / 1e6:.1f} MB needed, "
    try:
        space += f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free there"
    except OSError:
        space += "the folder cannot be read"
    return StorageError(
        f"{path}: cannot be written: {error.strerror or error}; {space}. "
        "Free some space or choose another folder with --out"
    )


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """`write_atomically` for a content in memory."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content), len(content))


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for a UTF-8 text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder where it is not there yet; StorageError when it cannot be made."""
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}; name another folder") from error


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file; only asked, never taken, so that nothing that starts is refused.

    Not for the process that may hold it itself: closing any handle on such a file gives up the locks of the process.
    """
    try:
        import fcntl

        layout, position = _FLOCK_LAYOUTS[sys.platform]
        fields = [0] * len(layout)
        fields[position] = fcntl.F_WRLCK
        with path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *fields))
        return bool(struct.unpack(layout, answer)[position] != fcntl.F_UNLCK)
    except (ImportError, KeyError, OSError):  # no POSIX system, none whose layout is known, no file or no such locks
        return False


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
