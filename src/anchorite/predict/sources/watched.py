"""Folders that images are being written to: each is handed out once, when it is complete."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from anchorite.data.images import decode_image
from anchorite.errors import AnchoriteError, StorageError
from anchorite.predict.sources.frames import Frame
from anchorite.predict.sources.paths import is_image_name

POLL_S = 0.2
_QUIET_S = 0.5  # a file is looked into when neither size nor time of change moved for so long
_PATIENCE_S = 10.0  # and told to be damaged when it stays unreadable for so long
_TEMPORARY = frozenset({".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download"})

_State = tuple[int, int, int]  # time of change in ns, bytes, inode


@dataclass
class _Waiting:
    """A file that is not handed out yet: how it looked last, since when, and why it could not be read then."""

    state: _State
    since: float
    tried: bool = False
    error: AnchoriteError | None = None


class Watch:
    """The images that are in folders and those that come, until `stop` is set or nothing has come for `idle_s` seconds.

    Memory grows with the names that are in the folders now, not with what has gone through them.
    """

    def __init__(self, folders: list[Path], recursive: bool, idle_s: float | None, stop: threading.Event) -> None:
        self._folders, self._recursive, self._idle_s, self._stop = folders, recursive, idle_s, stop
        self._done: dict[str, _State] = {}
        self._waiting: dict[str, _Waiting] = {}

    def items(self) -> Generator[Frame | AnchoriteError, None, None]:
        """A frame for each image that is complete, an error for each that stays unreadable.

        A file that is written anew is a new image. Raises StorageError when a folder cannot be listed any more.
        """
        moved_at = time.monotonic()
        while not self._stop.is_set():
            if self._look():
                moved_at = time.monotonic()
            for item in self._complete():
                yield item
                moved_at = time.monotonic()
                if self._stop.is_set():
                    return
            if self._idle_s is not None and time.monotonic() - moved_at >= self._idle_s:
                break
            self._stop.wait(POLL_S)
        for waiting in self._waiting.values():
            if waiting.error is not None:
                yield waiting.error

    def _look(self) -> bool:
        """Compare the folders with what is known of them; whether anything came or changed."""
        now, there, moved = time.monotonic(), set(), False
        for name, state in self._listed():
            there.add(name)
            known = self._waiting.get(name)
            if known is None and self._done.get(name) == state:
                continue
            if known is None or known.state != state:
                self._waiting[name] = _Waiting(state, now)
                moved = True
        for gone in (self._done.keys() | self._waiting.keys()) - there:
            self._done.pop(gone, None)
            self._waiting.pop(gone, None)
        return moved

    def _complete(self) -> Iterator[Frame | AnchoriteError]:
        """What can be handed out now, in the order of its names."""
        for name in sorted(self._waiting):
            waiting, now = self._waiting[name], time.monotonic()
            if now - waiting.since < _QUIET_S or (waiting.tried and now - waiting.since < _PATIENCE_S):
                continue
            if not waiting.tried:
                waiting.tried = True
                try:
                    image = decode_image(name)
                except AnchoriteError as error:
                    waiting.error = error  # still being written, perhaps
                    continue
                found: Frame | AnchoriteError = Frame(image, name)
            else:
                assert waiting.error is not None
                found = waiting.error
            self._done[name] = waiting.state
            del self._waiting[name]
            yield found

    def _listed(self) -> Iterator[tuple[str, _State]]:
        for folder in self._folders:
            try:
                yield from self._images_in(folder)
            except OSError as error:
                raise StorageError(f"{folder}: cannot be watched any more: {error.strerror or error}") from error

    def _images_in(self, folder: Path) -> Iterator[tuple[str, _State]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "~")):
                    continue
                try:
                    if self._recursive and entry.is_dir(follow_symlinks=False):
                        yield from self._images_in(Path(entry.path))
                    elif _is_finished_name(Path(entry.path)) and entry.is_file():
                        status = entry.stat()
                        yield entry.path, (status.st_mtime_ns, status.st_size, status.st_ino)
                except FileNotFoundError:
                    continue  # moved away since it was listed


def _is_finished_name(path: Path) -> bool:
    """Whether a file is called like an image, and not as programs call what they are still writing."""
    return is_image_name(path) and Path(path.stem).suffix.lower() not in _TEMPORARY
