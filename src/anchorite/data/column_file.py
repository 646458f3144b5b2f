"""A file of named arrays that is mapped, not read; proven by SHA-256 before a number of it is believed.

16 bytes of magic, the length of the header (8 bytes, little-endian) and its SHA-256; the header, in JSON; and the
arrays, each from a multiple of 64 bytes on. Nothing in it is code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.files import write_atomically

_MAGIC = b"anchorite-index\n"
_MAX_HEADER_BYTES = 16_000_000
_ALIGNMENT = 64
_BLOCK = 1 << 20
_KINDS = ("<f8", "<i8", "<i4", "|u1", "|b1")
_THREADS = 4


class ColumnFile(NamedTuple):
    """What a file holds: facts, as JSON has them, and arrays, which are read-only views of the mapped file."""

    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class _Unfit(Exception):
    """The file is not one that `save_columns` wrote, or no longer."""


def save_columns(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a file of columns in place of any that is there, or raise StorageError and leave that."""
    flat = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    listed = {}
    for name, array in flat.items():
        digest = hashlib.sha256(_bytes_of(array)).hexdigest()
        listed[name] = {"kind": array.dtype.str, "shape": list(array.shape), "sha256": digest}
    header = json.dumps({"facts": dict(facts), "arrays": listed}).encode()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(_MAGIC + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest() + header)
            for array in flat.values():
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                file.write(_bytes_of(array))

    write_atomically(path, write, sum(array.nbytes for array in flat.values()))


def load_columns(path: Path) -> ColumnFile | None:
    """The columns of a file; None when there is none, when it is somebody else's, or differs by a bit from what was
    written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        return _load(descriptor)
    except (_Unfit, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        os.close(descriptor)  # the mapping has its own


def _load(descriptor: int) -> ColumnFile:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        raise _Unfit
    header, place = _read_header(descriptor)
    whole = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    arrays: dict[str, NDArray[Any]] = {}
    checks: list[tuple[int, int, str]] = []
    for name, listed in header["arrays"].items():
        if listed["kind"] not in _KINDS or not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in listed["shape"]):
            raise _Unfit
        kind, shape = np.dtype(listed["kind"]), tuple(listed["shape"])
        place += -place % _ALIGNMENT
        count = int(np.prod(shape, dtype=object))
        checks.append((place, count * kind.itemsize, listed["sha256"]))
        place += count * kind.itemsize
        if place > status.st_size:
            raise _Unfit
        arrays[name] = np.frombuffer(whole, kind, count, checks[-1][0]).reshape(shape)
    if place != status.st_size:
        raise _Unfit
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing lets go of the interpreter lock
        digests = list(pool.map(lambda check: _digest(descriptor, check[0], check[1]), checks))
    if digests != [check[2] for check in checks]:
        raise _Unfit
    return ColumnFile(header["facts"], arrays)


def _read_header(descriptor: int) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    start = os.read(descriptor, 56)
    length = int.from_bytes(start[16:24], "little")
    if start[:16] != _MAGIC or length > _MAX_HEADER_BYTES:
        raise _Unfit
    text = b"".join(_blocks(descriptor, 56, length))
    if hashlib.sha256(text).digest() != start[24:56]:
        raise _Unfit
    return json.loads(text), 56 + length


def _digest(descriptor: int, start: int, length: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(descriptor, start, length):
        digest.update(block)
    return digest.hexdigest()


def _blocks(descriptor: int, start: int, length: int) -> Iterator[bytes]:
    """Part of a file, read rather than mapped: mapped pages would count as memory of this process."""
    while length > 0:
        block = os.pread(descriptor, min(_BLOCK, length), start)
        if not block:
            raise _Unfit
        yield block
        start, length = start + len(block), length - len(block)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
