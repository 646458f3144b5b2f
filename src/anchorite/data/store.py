"""Decoded images, resized once and kept: in shared memory, in a memory-mapped file, or not at all.

Pixels are kept in one flat uint8 array with an offset an image, computed from the records' sizes, so that worker
processes share it without copies. Nothing is ever written into a dataset folder, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anchorite.data.cache_folder import check_space, make_cache_folder, private_cache_folder, refuse_dataset_folder
from anchorite.data.dataset import LeftOut
from anchorite.data.decode_resized import ChangedImageError, decode_resized
from anchorite.data.letterbox import fitted_size
from anchorite.data.memory import SharedBytes, shared_by_ranks, spendable_memory
from anchorite.data.records import Record, as_split
from anchorite.data.shards.tar import leads_into_shard
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import write_atomically

StoreMode = Literal["auto", "ram", "disk", "none"]
Progress = Callable[[int, int], None]
_LAYOUT_VERSION = 2
_MAX_NAMED = 10  # unreadable images named in one message


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

    def scale(self, index: int) -> tuple[float, float]:
        """Stored pixels an original pixel of image `index`, along x and y."""
        (height, width), (image_height, image_width) = self.sizes_hw[index], self._image_sizes_hw[index]
        return width / image_width, height / image_height

    def build(self, progress: Progress | None = None, world: World = SINGLE_PROCESS) -> None:
        """Decode everything now, on all cores; `progress` is called with (images done, images in all).

        world: those that keep the same images, and all build: of one machine they share the work, and the memory.
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
            self._open_file(progress)  # ranks of one machine that have the same work write one file, whichever is last
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
        def keep(index: int, image: NDArray[np.uint8]) -> None:
            self._view(pixels, index)[:] = image

        return self.decode_all(keep, progress, world)

    def decode_all(
        self,
        keep: Callable[[int, NDArray[np.uint8]], None],
        progress: Progress | None = None,
        world: World = SINGLE_PROCESS,
    ) -> list[int]:
        """Decode and resize every image, on all cores; `keep` gets each one's index and pixels, from several threads.

        world: those that do the same: of one machine each takes a part, and all learn what could not be decoded.
        Returns the indices of the images that remain, counted as before: all, unless some were left out by skip_bad.
        Raises InputError naming the images that cannot be decoded, once all others are done.
        """

        def fill_one(index: int) -> AnchoriteError | None:
            try:
                keep(index, self._decode(index))
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
        """Go on without the images that cannot be decoded; raise where that is not wanted, or the disk is to blame."""
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
    """What any rank could not decode, the same on all."""
    if not world.is_distributed:
        return failures
    told = [(index, isinstance(one, InputError), str(one)) for index, one in failures.items()]
    merged = {index: (is_input, text) for part in world.all_gather(told) for index, is_input, text in part}
    return {index: (InputError if merged[index][0] else StorageError)(merged[index][1]) for index in sorted(merged)}


def _read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    view = array[:]
    view.flags.writeable = False
    return view
