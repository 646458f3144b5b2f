"""How much memory may still be taken, and flat arrays that worker processes share.

Shared arrays live in an anonymous memory file rather than under /dev/shm, which containers often limit to 64 MB and
whose overflow kills a process without a message.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchorite.distributed import World

MARGIN_FRACTION = 0.1
MARGIN_BYTES = 512 << 20
CGROUP_ROOT = Path("/sys/fs/cgroup")


def spendable_memory() -> int | None:
    """Bytes that may be allocated with a margin left for the rest of the program; None where it cannot be known.

    The smaller of what the kernel calls available and what the control groups of this process still allow, less 512 MB
    or a tenth, whichever is more.
    """
    limits = [_meminfo_available(), *_cgroup_headrooms()]
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    return max(0, min(known) - max(MARGIN_BYTES, int(min(known) * MARGIN_FRACTION)))


def _meminfo_available() -> int | None:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_headrooms() -> list[int]:
    """What each memory control group around this process has left (version 2: this group and those above; or 1)."""
    folders = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        root = CGROUP_ROOT / "memory" if controllers == "memory" else CGROUP_ROOT
        if controllers in ("", "memory"):
            group = root / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
    headrooms = [cgroup_headroom(folder) for folder in dict.fromkeys(folders)]
    return [headroom for headroom in headrooms if headroom is not None]


def cgroup_headroom(folder: Path) -> int | None:
    """Bytes a memory control group may still take, its reclaimable file cache counted as free; None without a limit."""
    limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    if not limit.strip().isdigit() or not used.strip().isdigit():
        return None
    statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    reclaimable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return max(0, int(limit) - int(used) + reclaimable)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class SharedBytes:
    """A flat uint8 array that forked and spawned workers see without a copy; freed with its last user."""

    def __init__(self, num_bytes: int) -> None:
        self._open(_anonymous_file(), num_bytes)
        os.ftruncate(self._descriptor, max(1, num_bytes))
        self._map()

    @classmethod
    def at(cls, path: str, num_bytes: int) -> SharedBytes:
        """The memory that another process has shown as `path`; OSError where it cannot be reached."""
        shared = cls.__new__(cls)
        shared._open(os.open(path, os.O_RDWR), num_bytes)
        shared._map()
        return shared

    @property
    def path(self) -> str:
        """Where other processes of this user and machine find it, as long as this one has it open."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def _open(self, descriptor: int, num_bytes: int) -> None:
        self._descriptor, self._num_bytes = descriptor, num_bytes

    def _map(self) -> None:
        memory = mmap.mmap(self._descriptor, max(1, self._num_bytes))
        self.array: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)[: self._num_bytes]

    def __getstate__(self) -> tuple[int, Any]:
        """How a spawned process finds the same memory: through a duplicate of the file descriptor."""
        return self._num_bytes, reduction.DupFd(self._descriptor)

    def __setstate__(self, state: tuple[int, Any]) -> None:
        num_bytes, duplicate = state
        self._open(duplicate.detach(), num_bytes)
        self._map()

    def __del__(self) -> None:
        if (descriptor := getattr(self, "_descriptor", None)) is not None:
            os.close(descriptor)


def shared_by_ranks(num_bytes: int, world: World) -> tuple[SharedBytes, bool]:
    """A flat array that all ranks of a machine see, and whether they do; else each has one of its own."""
    if not world.is_distributed:
        return SharedBytes(num_bytes), False
    mine = SharedBytes(num_bytes) if world.local_rank == 0 else None
    of_machine = world.all_gather(None if mine is None else mine.path)[world.rank - world.local_rank]
    if mine is None:
        with suppress(OSError):
            mine = SharedBytes.at(of_machine, num_bytes)
    if world.any(mine is None):
        return SharedBytes(num_bytes), False
    assert mine is not None
    return mine, True


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("anchorite-images")
    with tempfile.TemporaryFile() as file:  # no memory files on this system: an unlinked one on disk
        return os.dup(file.fileno())
