"""Annotated frames written as videos.

Legend: H, W frame height and width in pixels.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.errors import InputError, StorageError
from anchorite.files import move_into_place
from anchorite.predict.output.names import Names, file_name
from anchorite.predict.sources import Frame, Video
from anchorite.predict.sources.captures import hush

# Codecs that OpenCV's own FFmpeg always has come first; H.264 depends on what a system adds.
_CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
_LEAST_FREE_BYTES = 16_000_000
_FRAMES_BETWEEN_LOOKS = 50  # at the space left on the disk: OpenCV does not tell of a full one
_LONGEST_LIVE_S = 3600.0


class AnnotatedVideos:
    """Writes frames into a video for each that they come from, one after another: videos/NAME.mp4.

    A video has its final name only when it is complete and can be read. What goes on for ever is cut into hours.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, Names()
        self._open: _OpenVideo | None = None
        try:
            str(folder.absolute()).encode()
        except UnicodeEncodeError:
            # OpenCV crashes on it.
            raise InputError(f"{folder}: the name of a folder for videos has to be UTF-8 text") from None

    def add(self, frame: Frame, drawn: UInt8[NDArray[np.uint8], "H W 3"]) -> str:
        """Write a frame as drawn, RGB; returns the name of the video it went into."""
        assert frame.video is not None
        if self._open is None or self._open.video != frame.video or self._open.is_full:
            self.finish()
            name = self._names.unused(file_name(Path(frame.video.name).stem or "video"))
            self._open = _OpenVideo(self._folder, name, frame, drawn.shape[:2])
        self._open.add(frame.number, drawn)
        return self._open.path.name

    def finish(self) -> None:
        """Complete the video that is being written, if there is one."""
        being_written, self._open = self._open, None
        if being_written is not None:
            being_written.finish()


class _OpenVideo:
    """One video while it is written; `first` tells where it begins, size_hw how large its frames are."""

    def __init__(self, folder: Path, name: str, first: Frame, size_hw: tuple[int, int]) -> None:
        assert first.video is not None
        self.video: Video = first.video
        self._fps = first.video.fps / first.video.every
        self._next, self._num_written = first.number, 0
        # These codecs halve the sides of the colours; OpenCV would cut off the odd row or column.
        self._height, self._width = size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2
        for suffix, codec in _CODECS:
            self.path = folder / f"{name}{suffix}"
            self._temporary = folder / f".{name}.{os.getpid()}.tmp{suffix}"
            hush()
            self._writer = cv2.VideoWriter(
                str(self._temporary.absolute()),
                cv2.CAP_FFMPEG,
                cv2.VideoWriter.fourcc(*codec),
                self._fps,
                (self._width, self._height),
            )
            if self._writer.isOpened():
                return
            self._temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{self.path}: no video can be written there. Check the disk, or leave it out: --without video"
        )

    @property
    def is_full(self) -> bool:
        return self.video.is_live and self._num_written >= _LONGEST_LIVE_S * self._fps

    def add(self, number: int, drawn: NDArray[np.uint8]) -> None:
        if self._num_written % _FRAMES_BETWEEN_LOOKS == 0:
            self._require_space()
        bgr = cv2.cvtColor(self._fitted(drawn), cv2.COLOR_RGB2BGR)
        # For frames of a camera that were left out, so that the video keeps time; a second at most, or a slow disk
        # would fall behind for good.
        missed = max(number - self._next, 0) // self.video.every
        for _ in range(1 + min(missed, round(self._fps))):
            self._writer.write(bgr)
            self._num_written += 1
        self._next = number + self.video.every

    def finish(self) -> None:
        """Close, read again and move to its place; StorageError where it is not what was written."""
        self._writer.release()
        try:
            if not self._is_whole():
                raise StorageError(
                    f"{self.path}: could not be written whole; is the disk full? "
                    "Free some space or choose another folder with --out"
                )
            move_into_place(self._temporary, self.path)
        finally:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _is_whole(self) -> bool:
        capture = cv2.VideoCapture(str(self._temporary.absolute()), cv2.CAP_FFMPEG)
        try:
            width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
            if (width, height) != (self._width, self._height):
                return False
            if capture.get(cv2.CAP_PROP_FRAME_COUNT) != self._num_written or not capture.read()[0]:
                return False
            if self._num_written > 1:  # OpenCV finds the way back to no frame but a later one
                capture.set(cv2.CAP_PROP_POS_FRAMES, self._num_written - 1)
                return bool(capture.read()[0])
            return True
        finally:
            capture.release()

    def _fitted(self, drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """With an even number of rows and columns; a stream may change its size, a video may not."""
        down, right = self._height - drawn.shape[0], self._width - drawn.shape[1]
        if (down, right) == (0, 0):
            return drawn
        if down in (0, 1) and right in (0, 1):
            return np.asarray(cv2.copyMakeBorder(drawn, 0, down, 0, right, cv2.BORDER_REPLICATE), np.uint8)
        return np.asarray(cv2.resize(drawn, (self._width, self._height), interpolation=cv2.INTER_AREA), np.uint8)

    def _require_space(self) -> None:
        if shutil.disk_usage(self._temporary.parent).free < _LEAST_FREE_BYTES:
            raise StorageError(f"{self.path}: the disk is full. Free some space or choose another folder with --out")
