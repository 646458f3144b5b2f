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
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anchorite.data.dataset import LeftOut, Record, as_split
from anchorite.data.images import ChangedImageError, decode_resized, fitted_size
from anchorite.data.index_cache import check_space, private_cache_folder, refuse_dataset_folder
from anchorite.data.shards.format import leads_into_shard
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import StrPath, make_folder, write_atomically

StoreMode = Literal["auto", "ram", "disk", "none"]
Progress = Callable[[int, int], None]  # called with (images done, images in all)
Save = Callable[[int, NDArray[np.uint8]], object]  # takes an image's index and pixels
Failure = tuple[int, bool, str]  # of decoding: the image's index, whether it is to blame (else the disk), the message
_LAYOUT_VERSION = 2
_MAX_NAMED = 10  # unreadable images named in one message
_MARGIN_FRACTION, _MARGIN_BYTES = 0.1, 512 << 20
_CGROUP_ROOT = Path("/sys/fs/cgroup")


class ImageStore:
    """The images of `records`, decoded and resized so that the longer side is `long_side` pixels.

    mode: "ram" keeps them in memory that workers share, "disk" in a file of `cache_dir` (by default a private folder
    of the system's temporary one), keyed by the images' paths, sizes and times, "none" decodes every time, and "auto"
    is "ram" where it fits and else "none". Call `build` once before use; `mode` then says what was chosen.
    skip_bad: leave out images that cannot be decoded, instead of raising: `build` then decodes every image once in mode
    "none" too, `records` afterwards holds those that remain, and `left_out` the others. num_bytes: what all resized
    images take together, those left out later included.
    """

    def __init__(
        self,
        records: Sequence[Record],
        long_side: int,
        mode: StoreMode = "auto",
        cache_dir: StrPath | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.records = as_split(records).table()
        self.left_out: tuple[LeftOut, ...] = ()
        self.long_side = long_side
        self.mode: StoreMode = mode
        sizes_hw = np.stack([self.records.images["height"], self.records.images["width"]], axis=1).tolist()
        self.sizes_hw = [fitted_size((height, width), long_side) for height, width in sizes_hw]
        ends = np.cumsum([0, *(height * width * 3 for height, width in self.sizes_hw)], dtype=np.int64)
        self._starts, self.num_bytes = ends[:-1], int(ends[-1])
        self._cache_dir, self._skip_bad = cache_dir, skip_bad
        self._shared: SharedBytes | None = None

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored: (h, w, 3) uint8 RGB, read-only where it is a view of the store."""
        if self.mode == "none":
            return self._decode(index)
        assert self._shared is not None, "build() the store before asking for images"
        image = self._view(self._shared.array, index)
        image.flags.writeable = False
        return image

    def build(self, progress: Progress | None = None, world: World = SINGLE_PROCESS) -> None:
        """Decode everything now, on all cores.

        world: the ranks that build the same store: those of one machine share the work, and the memory.
        Raises InputError naming the images that cannot be decoded or changed their size since they were indexed, and,
        before anything is allocated, when mode "ram" needs more memory than there is; StorageError when the cache file
        of mode "disk" does not fit or cannot be written.
        """
        if self.mode in ("auto", "ram"):
            spendable = spendable_memory()
            fits = not world.any(spendable is not None and self.num_bytes > spendable)
            if not fits and self.mode == "ram":
                raise InputError(
                    f"{len(self)} images at {self.long_side} px take {self.num_bytes / 1e9:.1f} GB, but only "
                    f"{(spendable or 0) / 1e9:.1f} GB of memory can be spared; nothing was allocated. Keep them on "
                    'disk (mode "disk"), decode them every time ("none") or choose a smaller image size'
                )
            self.mode = "ram" if fits else "none"
        if self.mode == "ram":
            # One array that all ranks of a machine see; where they cannot, one for each process.
            shared = SharedBytes(self.num_bytes) if world.local_rank == 0 else None
            paths = world.all_gather(None if shared is None else shared.path)
            if shared is None:
                with suppress(OSError):
                    shared = SharedBytes(self.num_bytes, paths[world.rank - world.local_rank])
            if world.any(shared is None) or shared is None:
                shared, world = SharedBytes(self.num_bytes), SINGLE_PROCESS
            pixels = shared.array
            self.decode_all(lambda index, image: np.copyto(self._view(pixels, index), image), progress, world)
            self._shared = shared
        elif self.mode == "disk":
            self._shared = self._open_file(progress)  # the ranks of a machine write the same file; the last one stays
        elif self._skip_bad:
            self.decode_all(lambda *_: None, progress, world)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        try:
            return decode_resized(self.records[index], self.sizes_hw[index])
        except ChangedImageError:
            self.records.forget_cache()
            raise

    def _view(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        height, width = self.sizes_hw[index]
        return pixels[self._starts[index] :][: height * width * 3].reshape(height, width, 3)

    def decode_all(self, save: Save, progress: Progress | None = None, world: World = SINGLE_PROCESS) -> list[int]:
        """Decode and resize every image, on all cores; `save` gets each one, from several threads.

        world: the ranks that do the same: those of one machine share the work, and all learn what could not be decoded.
        Returns the indices of the images that remain, all unless skip_bad left some out.
        Raises InputError naming the images that cannot be decoded, once all others are done.
        """
        failures: list[Failure] = []
        num_images = len(self)
        indices = range(world.local_rank, num_images, world.local_world_size)
        num_threads = max(1, (os.cpu_count() or 1) // world.local_world_size)
        with ThreadPoolExecutor(num_threads) as pool:  # OpenCV releases the interpreter lock while it decodes
            tried = pool.map(lambda index: self._try_decoding(index, save), indices)
            for index, failure in zip(indices, tried, strict=True):
                failures += [] if failure is None else [failure]
                if progress is not None:
                    progress(min(num_images, index + world.local_world_size), num_images)
        merged = {one[0]: one for one in chain.from_iterable(world.all_gather(failures))}  # machines do the same images
        return self._leave_out([merged[index] for index in sorted(merged)])

    def _try_decoding(self, index: int, save: Save) -> Failure | None:
        try:
            save(index, self._decode(index))
        except AnchoriteError as error:
            return index, isinstance(error, InputError), str(error)
        return None

    def _leave_out(self, failures: Sequence[Failure]) -> list[int]:
        """Leave out the images that cannot be decoded; raise without skip_bad, or where the disk is to blame.

        Returns the indices of those that remain.
        """
        refused = [(is_input, text) for _, is_input, text in failures if not (self._skip_bad and is_input)]
        if refused:
            more, is_input = len(refused) - _MAX_NAMED, refused[0][0]
            lines = [text for _, text in refused[:_MAX_NAMED]] + ([f"and {more} more"] if more > 0 else [])
            if is_input:
                lines.append("replace or remove them, or pass --skip-bad (skip_bad=True) to go on without them")
            raise (InputError if is_input else StorageError)("\n".join(lines))
        if not failures:
            return list(range(len(self)))
        gone = {index for index, _, _ in failures}
        kept = [index for index in range(len(self)) if index not in gone]
        self.left_out = tuple(
            LeftOut(path := self.records[index].path, text.removeprefix(f"{path}: ")) for index, _, text in failures
        )
        self.records = self.records.select(kept)
        self.sizes_hw, self._starts = [self.sizes_hw[index] for index in kept], self._starts[kept]
        return kept

    def _open_file(self, progress: Progress | None) -> SharedBytes:
        """The cache file: the pixels, and behind them a byte an image, 0 where it could not be decoded."""
        folder = private_cache_folder() if self._cache_dir is None else Path(self._cache_dir)
        refuse_dataset_folder(folder, [self.records])
        file, num_bytes = folder / f"images-{self.key()}.bin", max(1, self.num_bytes + len(self))
        failures: list[Failure | None] = [None]  # why images are missing; None where one can be decoded now
        if file.is_file() and file.stat().st_size == num_bytes:
            missing = np.flatnonzero(np.memmap(file, np.uint8, mode="r")[self.num_bytes :][: len(self)] == 0)
            failures = [self._try_decoding(index, lambda *_: None) for index in missing.tolist()]

        def write(temporary: Path) -> None:
            with temporary.open("wb") as stream:
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, but a fatal signal in a mapped page
                    os.posix_fallocate(stream.fileno(), 0, num_bytes)
                else:
                    stream.truncate(num_bytes)
            pixels = np.memmap(temporary, np.uint8, mode="r+")
            kept = self.decode_all(lambda index, image: np.copyto(self._view(pixels, index), image), progress)
            pixels[self.num_bytes :][kept] = 1
            pixels.flush()

        if None in failures:
            make_folder(folder)
            check_space(folder, num_bytes, "the decoded images")
            write_atomically(file, write)
        else:
            self._leave_out([failure for failure in failures if failure is not None])
        return SharedBytes(num_bytes, file, is_writable=False)

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


class SharedBytes:
    """A flat uint8 array in a mapped file, which forked and spawned workers see without a copy.

    path: the file, or what another process has as `path`; without one, an anonymous file that is freed with its last
    user. OSError where it cannot be opened.
    """

    array: NDArray[np.uint8]

    def __init__(self, num_bytes: int, path: Path | str | None = None, is_writable: bool = True) -> None:
        if path is not None:
            descriptor = os.open(path, os.O_RDWR if is_writable else os.O_RDONLY)
        elif hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("anchorite-images")
        else:  # no memory files on this system: an unlinked one on disk
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        if path is None:
            os.ftruncate(descriptor, max(1, num_bytes))
        self._map(descriptor, num_bytes, is_writable)

    def _map(self, descriptor: int, num_bytes: int, is_writable: bool) -> None:
        self._descriptor, self._num_bytes, self._is_writable = descriptor, num_bytes, is_writable
        access = mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ
        self.array = np.frombuffer(mmap.mmap(descriptor, max(1, num_bytes), access=access), np.uint8)[:num_bytes]

    @property
    def path(self) -> str:
        """Where other processes of this user and machine find it, as long as this one has it open."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def __getstate__(self) -> tuple[Any, int, bool]:
        """How a spawned process finds the same memory: through a duplicate of the file descriptor."""
        return reduction.DupFd(self._descriptor), self._num_bytes, self._is_writable

    def __setstate__(self, state: tuple[Any, int, bool]) -> None:
        duplicate, num_bytes, is_writable = state
        self._map(duplicate.detach(), num_bytes, is_writable)

    def __del__(self) -> None:
        if (descriptor := getattr(self, "_descriptor", None)) is not None:
            os.close(descriptor)


def spendable_memory() -> int | None:
    """`available_memory` less 512 MB or a tenth of it, the larger of the two, for the rest of the program."""
    available = available_memory()
    if available is None:
        return None
    return max(0, available - max(_MARGIN_BYTES, int(available * _MARGIN_FRACTION)))


def available_memory() -> int | None:
    """Bytes that may still be allocated; None where it cannot be known.

    The smaller of what the kernel calls available and what the control groups of this process still allow (version 2:
    its own and those above; or version 1).
    """
    available = re.search(r"^MemAvailable: +([0-9]+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    limits = [int(available[1]) * 1024 if available else None]
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUP_ROOT / controllers
            group = root / path.lstrip("/")
            limits += [cgroup_headroom(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((limit for limit in limits if limit is not None), default=None)


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
