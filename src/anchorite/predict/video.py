"""Video files, cameras and network streams through OpenCV: their frames in order, or the newest of those that come.

Legend: H, W frame height and width in pixels.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.headers import MAX_PIXELS
from anchorite.data.prefetch import prefetch
from anchorite.errors import InputError, StorageError
from anchorite.interrupts import HeldInterrupts
from anchorite.predict.frames import FLUSH, Frame, Video

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".ogv"}
)

_USUAL_FPS = 30.0  # of what does not say how many frames a second it has
_MOST_FPS = 1000.0
_TIMEOUT_MS = 10_000  # to answer, and between two frames
_CAMERA = re.compile(r"(?:camera:)?([0-9]{1,3})")
_STREAMS = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp"})
_SECRET = re.compile(r"(?<=//)[^/@]*@")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a Path has one slash left of two


def open_video_file(path: Path) -> cv2.VideoCapture:
    """A video file ready to be read, turned as its metadata say.

    Raises InputError when it is missing, empty, damaged at its beginning or of an unknown codec, StorageError when the
    disk or a permission refuses.
    """
    _require_content(path)
    if not _is_utf8(str(path.absolute())):
        raise InputError(f"{path}: the name of a video has to be UTF-8 text; rename it or its folder")
    hush()
    # Absolute, so that no name passes for an address: FFmpeg would open it.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise InputError(
            f"{path}: no video that can be read: damaged, cut off, or of an unknown codec. "
            "Copy it again, or convert it to H.264 in an .mp4"
        )
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if width * height > MAX_PIXELS:
        capture.release()
        raise InputError(f"{path}: frames of {width:.0f}x{height:.0f} pixels, more than {MAX_PIXELS // 10**6} million")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def open_camera(number: int, name: str) -> cv2.VideoCapture:
    """The camera that the system calls `number`; InputError when it is not there or somebody else has it."""
    hush()
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise InputError(
            f"{name}: there is no such camera, another program uses it, or you may not. "
            "Cameras count from camera:0; on Linux they are /dev/video0 and so on"
        )
    return capture


def open_stream(address: str, name: str) -> cv2.VideoCapture:
    """A network stream; InputError, with `name` for the address, when nothing answers within ten seconds."""
    hush()
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise InputError(f"{name}: the stream does not answer. Check the address, user and password, and the network")
    return capture


def frames_per_second(capture: cv2.VideoCapture) -> float:
    """As the video says, or a usual rate where it says none or nonsense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return float(fps) if 0 < fps <= _MOST_FPS else _USUAL_FPS


def retrieve_rgb(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    """The frame (H, W, 3) that was grabbed last, or None where it is damaged."""
    ok, bgr = capture.retrieve()
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8) if ok else None


def _require_content(path: Path) -> None:
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{path}: not a regular file")  # a pipe or device might block for ever
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path}: the file is empty. Copy it again")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: there is no such video file. Check the path") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}. Check the permissions") from error


def _is_utf8(name: str) -> bool:
    """OpenCV crashes on a name that is none."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def hush() -> None:
    """Keep OpenCV and its FFmpeg from writing to stderr from now on: the errors raised here say it, with a remedy."""
    # Not put back: several threads open captures, and the settings are one for all of them. FFmpeg's is looked at when
    # the first capture of a process is opened.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def video_frames(path: Path, every: int = 1, depth: int = 16) -> Generator[Frame, None, None]:
    """The frames of a video file in their order, none lost, decoded by a thread up to `depth` ahead of their use.

    every: use each so-many-th, beginning with the first. After the frames before it raises InputError naming the frame
    at which a video breaks off; before any, what `open_video_file` raises.
    """
    return prefetch(lambda stop: read_video(path, every, stop), depth)


def read_video(path: Path, every: int, stop: threading.Event) -> Generator[Frame, None, None]:
    """`video_frames` in this thread."""
    capture = open_video_file(path)
    try:
        video = Video(str(path), frames_per_second(capture), every=every)
        number, seconds = 0, 0.0
        while not stop.is_set():
            if not capture.grab():
                break
            seconds = max(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, 0.0)
            if number % every == 0:
                image = retrieve_rgb(capture)
                if image is None:
                    break
                yield Frame.of(image, video, number, seconds)
            number += 1
        else:
            return
        _require_end(capture, video, number, seconds)
    finally:
        capture.release()


def _require_end(capture: cv2.VideoCapture, video: Video, num_read: int, seconds: float) -> None:
    """InputError unless a video that gives no more frames has reached its end.

    Some formats know how long they last but not how many frames that makes, so both have to fall short.
    """
    if num_read == 0:
        raise InputError(f"{video.name}: not one frame of this video can be read: it is damaged. Copy it again")
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    lasts = announced / video.fps
    # Only an AVI is sure how many pictures it holds; FFmpeg passes over damaged ones without a word.
    num_lost = announced - num_read if Path(video.name).suffix.lower() == ".avi" else 0
    # The last frame begins one frame's length before the end; containers are off by as much again.
    if num_read < announced - 1 and seconds < lasts - 2.5 / video.fps:
        raise InputError(
            f"{video.name}: breaks off at frame {num_read} ({seconds:.1f} of {lasts:.1f} s): the file is cut off or "
            f"damaged there. The {num_read} frames before it were used; copy the video again for the rest"
        )
    if num_lost > 2:
        raise InputError(
            f"{video.name}: {num_lost} of {announced} frames cannot be read: they are damaged or empty. "
            f"The {num_read} others were used, and are numbered without them; copy the video again for the rest"
        )


def address_scheme(source: str) -> str:
    """The lower-case scheme of an address, as rtsp in rtsp://host/path, or nothing."""
    address = _ADDRESS.match(source)
    return address[1].lower() if address else ""


def is_live(source: str) -> bool:
    """Whether a word means a camera (camera:0, or a number that is no file) or a network stream (rtsp://...)."""
    return address_scheme(source) in _STREAMS or bool(_CAMERA.fullmatch(source) and not Path(source).exists())


class LiveSource:
    """A camera or stream, open and waiting; raises what opening it raises.

    name: as given, but without user and password. num_dropped: frames that came and were not looked at, because a
    newer one was there before the network was free. Close it, if `frames` is not used to the end.
    """

    def __init__(self, source: str) -> None:
        camera = _CAMERA.fullmatch(source)
        self.name = f"camera:{int(camera[1])}" if camera else _SECRET.sub("", source)
        self._capture = open_camera(int(camera[1]), self.name) if camera else open_stream(source, self.name)
        self.num_dropped = 0

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()

    def frames(self, stop: threading.Event, every: int = 1) -> Generator[Any, None, None]:
        """Frames until `stop` is set, each followed by a `FLUSH`; never waits with one for the next.

        every: look only at each so-many-th of those that come. Raises InputError when no more come.
        """
        video = Video(self.name, frames_per_second(self._capture), is_live=True, every=every)
        newest = _Newest()
        thread = threading.Thread(target=self._read, args=(video, newest, stop), name="anchorite-camera", daemon=True)
        try:
            with HeldInterrupts():
                thread.start()
            while (frame := newest.take(stop)) is not None:
                yield frame
                yield FLUSH
            if newest.error is not None:
                raise newest.error
        finally:
            stop.set()
            with HeldInterrupts():
                if thread.is_alive():
                    thread.join()
            self.num_dropped += newest.num_dropped
            self.close()

    def _read(self, video: Video, newest: _Newest, stop: threading.Event) -> None:
        """What the thread does; an error ends it, and is told where frames are taken."""
        number, error = 0, None
        try:
            while not stop.is_set():
                image = None
                if self._capture.grab():
                    if number % video.every:
                        number += 1
                        continue
                    image = retrieve_rgb(self._capture)
                if stop.is_set():
                    break
                if image is None:
                    error = InputError(f"{self.name}: gave no more pictures after {number}. Check it, and start anew")
                    break
                seconds = max(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, number / video.fps)
                newest.put(Frame.of(image, video, number, seconds))
                number += 1
        except BaseException as raised:
            newest.end(raised)
        else:
            newest.end(error)


class _Newest:
    """Room for one frame: a newer one takes the place of one that nobody took."""

    def __init__(self) -> None:
        self.num_dropped = 0
        self.error: BaseException | None = None
        self._frame: Frame | None = None
        self._ended = False
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> None:
        with self._changed:
            self.num_dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self.error, self._ended = error, True
            self._changed.notify()

    def take(self, stop: threading.Event) -> Frame | None:
        """The newest frame, once there is one that was not taken; None after the last, and when stopped."""
        with self._changed:
            while self._frame is None and not self._ended and not stop.is_set():
                self._changed.wait(timeout=0.1)
            frame, self._frame = self._frame, None
            return frame
