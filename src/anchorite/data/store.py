"""Decoded images, resized once and stored: in shared memory, in a memory-mapped file, or not at all.

Pixels lie in one flat uint8 array with an offset an image, computed from the records' sizes, so that worker processes
share it without copies. Nothing is ever written into a dataset folder, and nothing is unpickled. Shared memory is an
anonymous file rather than one under /dev/shm, which containers often limit to 64 MB and whose overflow kills a process
without a message. At the end: how much memory may still be taken.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anchorite.data.dataset import LeftOut
from anchorite.data.images import ChangedImageError, decode_resized, fitted_size
from anchorite.data.index_cache import check_space, make_cache_folder, private_cache_folder, refuse_dataset_folder
from anchorite.data.records import Record, as_split
from anchorite.data.shards.format import leads_into_shard
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import write_atomically

StoreMode = Literal["auto", "ram", "disk", "none"]
Progress = Callable[[int, int], None]
_LAYOUT_VERSION = 2
_MAX_NAMED = 10  # unreadable images named in one message
MARGIN_FRACTION = 0.1
MARGIN_BYTES = 512 << 20
CGROUP_ROOT = Path("/sys/fs/cgroup")


class ImageStore:
    """The images of `records`, decoded and resized so that the longer side is `long_side` pixels.

    mode: "ram" keeps them in memory that workers share, "disk" in a file of `cache_dir` (by default a private folder
    of the system's temporary one), keyed by the images' paths, sizes and times, "none" decodes every time, and "auto"
    is "ram" where it fits and else "none". Call `build` once before use; `mode` then says what was chosen.
    skip_bad: leave out images that cannot be decoded, instead of raising: `build` then decodes every image once in mode
    "none" too, `records` afterwards holds those that remain, and `left_out` the others.
    """

    def __init__(
        self,
        records: Sequence[Record],
        long_side: int,
        mode: StoreMode = "auto",
        cache_dir: Path | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.records = as_split(records).table()
        self.left_out: tuple[LeftOut, ...] = ()
        self.long_side = long_side
        self.mode: StoreMode = mode
        self._image_sizes_hw = list(self.records.sizes_hw())
        self.sizes_hw = [fitted_size(image_hw, long_side) for image_hw in self._image_sizes_hw]
        ends = np.cumsum([0, *(height * width * 3 for height, width in self.sizes_hw)], dtype=np.int64)
        self._starts, self._num_bytes = ends[:-1], int(ends[-1])
        self._cache_dir, self._skip_bad = cache_dir, skip_bad
        self._shared: SharedBytes | None = None
        self._file: Path | None = None
        self._pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_bytes(self) -> int:
        """Bytes that all resized images take together, those left out later included."""
        return self._num_bytes

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored: (h, w, 3) uint8 RGB, read-only where it is a view of the store."""
        if self.mode == "none":
            return self._decode(index)
        assert self._pixels is not None, "build() the store before asking for images"
        return self._view(self._pixels, index)

    def build(self, progress: Progress | None = None, world: World = SINGLE_PROCESS) -> None:
        """Decode everything now, on all cores; `progress` is called with (images done, images in all).

        world: the ranks that build the same store: those of one machine share the work, and the memory.
        Raises InputError naming the images that cannot be decoded or changed their size since they were indexed, and,
        before anything is allocated, when mode "ram" needs more memory than there is; StorageError when the cache file
        of mode "disk" does not fit or cannot be written.
        """
        if self.mode in ("auto", "ram"):
            self._choose_memory(world)
        if self.mode == "ram":
            shared, by_all = shared_by_ranks(self.num_bytes, world)
            self._fill(shared.array, progress, world if by_all else SINGLE_PROCESS)
            self._shared, self._pixels = shared, _read_only(shared.array)
        elif self.mode == "disk":
            self._open_file(progress)  # the ranks of one machine write the same file; the last one stays
        elif self._skip_bad:
            self.decode_all(lambda *_: None, progress, world)

    def _choose_memory(self, world: World) -> None:
        spendable = spendable_memory()
        if not world.any(spendable is not None and self.num_bytes > spendable):
            self.mode = "ram"
        elif self.mode == "auto":
            self.mode = "none"
        else:
            raise InputError(
                f"{len(self)} images at {self.long_side} px take {self.num_bytes / 1e9:.1f} GB, but only "
                f"{(spendable or 0) / 1e9:.1f} GB of memory can be spared; nothing was allocated. Keep them on disk "
                '(mode "disk"), decode them every time ("none") or choose a smaller image size'
            )

    def _decode(self, index: int) -> NDArray[np.uint8]:
        try:
            return decode_resized(self.records[index], self.sizes_hw[index])
        except ChangedImageError:
            self.records.forget_cache()
            raise

    def _view(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        height, width = self.sizes_hw[index]
        return pixels[self._starts[index] :][: height * width * 3].reshape(height, width, 3)

    def _fill(self, pixels: NDArray[np.uint8], progress: Progress | None, world: World = SINGLE_PROCESS) -> list[int]:
        def save(index: int, image: NDArray[np.uint8]) -> None:
            self._view(pixels, index)[:] = image

        return self.decode_all(save, progress, world)

    def decode_all(
        self,
        save: Callable[[int, NDArray[np.uint8]], None],
        progress: Progress | None = None,
        world: World = SINGLE_PROCESS,
    ) -> list[int]:
        """Decode and resize every image, on all cores; `save` gets each one's index and pixels, from several threads.

        world: the ranks that do the same: those of one machine share the work, and all learn what could not be decoded.
        Returns the indices of the images that remain, all unless skip_bad left some out.
        Raises InputError naming the images that cannot be decoded, once all others are done.
        """

        def fill_one(index: int) -> AnchoriteError | None:
            try:
                save(index, self._decode(index))
            except AnchoriteError as error:
                return error
            return None

        failures: dict[int, AnchoriteError] = {}
        num_images = len(self)
        numbers = range(world.local_rank, num_images, world.local_world_size)
        threads = max(1, (os.cpu_count() or 1) // world.local_world_size)
        with ThreadPoolExecutor(threads) as pool:  # OpenCV releases the interpreter lock while it decodes
            for index, failure in zip(numbers, pool.map(fill_one, numbers), strict=True):
                if failure is not None:
                    failures[index] = failure
                if progress is not None:
                    progress(min(num_images, index + world.local_world_size), num_images)
        self._leave_out(_of_all_ranks(failures, world))
        return [index for index in range(num_images) if index not in failures]

    def _leave_out(self, failures: Mapping[int, AnchoriteError]) -> None:
        """Leave out the images that cannot be decoded; raise without skip_bad, or where the disk is to blame."""
        refused = [one for one in failures.values() if not (self._skip_bad and isinstance(one, InputError))]
        if refused:
            more = len(refused) - _MAX_NAMED
            lines = [str(failure) for failure in refused[:_MAX_NAMED]] + ([f"and {more} more"] if more > 0 else [])
            if isinstance(refused[0], InputError):
                lines.append("replace or remove them, or pass --skip-bad (skip_bad=True) to go on without them")
            raise type(refused[0])("\n".join(lines))
        kept = [index for index in range(len(self)) if index not in failures]
        self.left_out = tuple(
            LeftOut(self.records[index], str(failure).removeprefix(f"{self.records[index].path}: "))
            for index, failure in failures.items()
        )
        self.records = self.records.select(kept)
        self.sizes_hw = [self.sizes_hw[index] for index in kept]
        self._image_sizes_hw = [self._image_sizes_hw[index] for index in kept]
        self._starts = self._starts[kept]

    def _open_file(self, progress: Progress | None) -> None:
        folder = private_cache_folder() if self._cache_dir is None else self._cache_dir
        refuse_dataset_folder(folder, self.records)
        file = folder / f"images-{self.key()}.bin"
        failures = self._failures_of(file)
        if failures is None:
            make_cache_folder(folder)
            check_space(folder, self._file_bytes)
            write_atomically(file, lambda temporary: self._write_file(temporary, progress))
        else:
            self._leave_out(failures)
        self._file = file
        self._pixels = np.memmap(file, np.uint8, mode="r")

    @property
    def _file_bytes(self) -> int:
        """Length of a cache file: the pixels, and behind them a byte an image, 0 where it could not be decoded."""
        return max(1, self._num_bytes + len(self))

    def _failures_of(self, file: Path) -> dict[int, AnchoriteError] | None:
        """Why images are missing from a cache file; None when it is not there, or lacks one that can be decoded now."""
        if not (file.is_file() and file.stat().st_size == self._file_bytes):
            return None
        failures: dict[int, AnchoriteError] = {}
        for index in np.flatnonzero(np.memmap(file, np.uint8, mode="r")[self._num_bytes :] == 0).tolist():
            try:
                self._decode(index)
            except AnchoriteError as error:
                failures[index] = error
            else:
                return None
        return failures

    def _write_file(self, path: Path, progress: Progress | None) -> None:
        with path.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, but a fatal signal in a mapped page
                os.posix_fallocate(stream.fileno(), 0, self._file_bytes)
            else:
                stream.truncate(self._file_bytes)
        pixels = np.memmap(path, np.uint8, mode="r+")
        kept = self._fill(pixels, progress)
        pixels[self._num_bytes :][kept] = 1
        pixels.flush()

    def key(self) -> str:
        """What the stored pixels depend on, as hexadecimal digits: every image's path, size and times, and the side."""
        digest = hashlib.sha256(f"{_LAYOUT_VERSION} {self.long_side}".encode())
        for record in self.records:
            try:
                status = (record.path.parent if leads_into_shard(record.path) else record.path).stat()
            except OSError as error:
                raise InputError(f"{record.path}: the image cannot be read: {error.strerror or error}") from error
            facts = (record.width, record.height, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(os.fsencode(record.path.resolve()) + repr(facts).encode() + b"\0")
        return digest.hexdigest()[:32]

    def __getstate__(self) -> dict[str, object]:
        """Spawned workers map the same memory or file again instead of receiving the pixels."""
        return {**self.__dict__, "_pixels": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._shared is not None:
            self._pixels = _read_only(self._shared.array)
        elif self._file is not None:
            self._pixels = np.memmap(self._file, np.uint8, mode="r")


def _of_all_ranks(failures: Mapping[int, AnchoriteError], world: World) -> Mapping[int, AnchoriteError]:
    """The failures of all ranks together, the same on each."""
    if not world.is_distributed:
        return failures
    mine = [(index, isinstance(one, InputError), str(one)) for index, one in failures.items()]
    merged = {index: (is_input, text) for part in world.all_gather(mine) for index, is_input, text in part}
    return {index: (InputError if merged[index][0] else StorageError)(merged[index][1]) for index in sorted(merged)}


def _read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    view = array[:]
    view.flags.writeable = False
    return view


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


def spendable_memory() -> int | None:
    """Bytes that may be allocated with a margin left for the rest of the program; None where it cannot be known.

    The smaller of what the kernel calls available and what the control groups of this process still allow, less 512 MB
    or a tenth, the larger of the two.
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
