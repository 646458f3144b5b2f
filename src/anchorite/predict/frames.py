"""Frames: images that are read, and where they come from: files, arrays, videos, cameras and network streams.

Videos, cameras and streams are read through OpenCV: files frame by frame, none lost; of what is live, the newest that
came. Legend: H, W height and width in pixels.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.data.headers import MAX_PIXELS
from anchorite.data.images import decode_image
from anchorite.data.prefetch import prefetch
from anchorite.errors import InputError, StorageError

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
_WANTED = "give numpy arrays (H, W, 3) of uint8 in RGB order, Pillow images or paths"


@dataclass(frozen=True)
class Video:
    """A video, camera or stream: its name as given, frames a second, whether it is endless; each `every`-th is used."""

    name: str
    fps: float
    is_live: bool = False
    every: int = 1


@dataclass(frozen=True, eq=False)
class Frame:
    """An image (H, W, 3) uint8 RGB and its name; of a video, its number (from 0, counting unused ones) and its time."""

    image: UInt8[NDArray[np.uint8], "H W 3"]
    name: str
    video: Video | None = None
    number: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, image: UInt8[NDArray[np.uint8], "H W 3"], video: Video, number: int, seconds: float) -> Frame:
        """A frame of a video, named after both."""
        return cls(image, f"{video.name} frame {number}", video, number, seconds)


FLUSH: Any = object()
"""What a source yields between its images when there is none for now and waiting for one may take long:
`Predictor.stream` then yields all results that are due instead of filling a batch first."""


def each_source(sources: Any) -> Iterator[Any]:
    """The images of `sources` one by one: a single image or path stands for itself, anything iterable for its items.

    An array of four axes is a batch of images. Raises InputError when it is none of these.
    """
    is_batch = isinstance(sources, np.ndarray) and sources.ndim == 4
    if not is_batch and (isinstance(sources, str | os.PathLike | np.ndarray | Frame) or _is_pillow(sources)):
        yield sources
    elif isinstance(sources, Iterable):
        yield from sources
    else:
        raise InputError(f"images cannot be taken from {type(sources).__name__}; {_WANTED}")


def read_frame(source: Any) -> Frame:
    """The frame of a path, an array or a Pillow image, named by its path where that is known; a Frame as it is.

    A file is turned as its EXIF orientation says; a Pillow image is taken as its pixels lie, so that boxes fit what the
    caller holds. Raises InputError (StorageError, if the disk refuses) naming the file, or shape and type and remedy.
    """
    if isinstance(source, Frame):
        return source
    if isinstance(source, str | os.PathLike):
        return Frame(decode_image(source), os.fspath(source))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise InputError(f"an image array of shape {source.shape} and type {source.dtype} was given; {_WANTED}")
        return Frame(source, "")
    if _is_pillow(source):
        if source.mode[0] in "IF":
            raise InputError(
                f"a Pillow image of mode {source.mode} was given, whose brightness has no fixed range; "
                "scale it to 8 bits first"
            )
        return Frame(np.asarray(source.convert("RGB")), str(getattr(source, "filename", "") or ""))
    raise InputError(f"an image cannot be taken from {type(source).__name__}; {_WANTED}")


def _is_pillow(source: Any) -> bool:
    """Whether it behaves like a Pillow image; Pillow itself is never imported."""
    return all(hasattr(source, name) for name in ("mode", "size", "convert", "getbands"))


def open_video_file(path: Path) -> cv2.VideoCapture:
    """A video file ready to be read, turned as its metadata say.

    Raises InputError when it is missing, empty, damaged at its beginning or of an unknown codec, StorageError when the
    disk or a permission refuses.
    """
    try:
        str(path.absolute()).encode()
        if not path.is_file() and path.exists():
            raise InputError(f"{path}: not a regular file")  # a pipe or device might block for ever
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path}: the file is empty. Copy it again")
    except UnicodeEncodeError:  # on which OpenCV crashes
        raise InputError(f"{path}: the name of a video has to be UTF-8 text; rename it or its folder") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: there is no such video file. Check the path") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}. Check the permissions") from error
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


def frames_per_second(capture: cv2.VideoCapture) -> float:
    """As the video says, or a usual rate where it says none or nonsense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return float(fps) if 0 < fps <= _MOST_FPS else _USUAL_FPS


def retrieve_rgb(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    """The frame (H, W, 3) that was grabbed last, or None where it is damaged."""
    ok, bgr = capture.retrieve()
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8) if ok else None


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
    """A camera or stream, open and waiting; InputError when it does not answer or somebody else has it.

    name: as given, but without user and password. num_dropped: frames that came and were not looked at, because a
    newer one was there before the network was free.
    """

    def __init__(self, source: str) -> None:
        self.num_dropped = 0
        hush()
        camera = _CAMERA.fullmatch(source)
        if camera:
            self.name = f"camera:{int(camera[1])}"
            self._capture = cv2.VideoCapture(int(camera[1]))
            missing = (
                "there is no such camera, another program uses it, or you may not. "
                "Cameras count from camera:0; on Linux they are /dev/video0 and so on"
            )
        else:
            self.name = _SECRET.sub("", source)
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
            self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
            missing = "the stream does not answer. Check the address, user and password, and the network"
        if not self._capture.isOpened():
            raise InputError(f"{self.name}: {missing}")

    def frames(self, stop: threading.Event, every: int = 1) -> Generator[Any, None, None]:
        """Frames until `stop` is set, each followed by a `FLUSH`; never waits with one for the next.

        every: look only at each so-many-th of those that come. Raises InputError when no more come.
        """
        video = Video(self.name, frames_per_second(self._capture), is_live=True, every=every)
        newest: queue.Queue[Frame] = queue.Queue(maxsize=1)
        try:
            with ThreadPoolExecutor(1, "anchorite-camera") as thread:
                reading = thread.submit(self._read, video, newest, stop)
                try:
                    while not stop.is_set():
                        has_ended = reading.done()  # asked first: what it gave until then is in the queue
                        try:
                            yield newest.get(timeout=0 if has_ended else 0.1)
                        except queue.Empty:
                            if has_ended:
                                break
                        else:
                            yield FLUSH
                finally:
                    stop.set()
                reading.result()
        finally:
            self._capture.release()

    def _read(self, video: Video, newest: queue.Queue[Frame], stop: threading.Event) -> None:
        """What the thread does: put each frame in the place of one that nobody took, until `stop`."""
        number = 0
        while not stop.is_set():
            is_there = self._capture.grab()
            if is_there and number % video.every:
                number += 1
                continue
            image = retrieve_rgb(self._capture) if is_there else None
            if stop.is_set():
                break
            if image is None:
                raise InputError(f"{self.name}: gave no more pictures after {number}. Check it, and start anew")
            seconds = max(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, number / video.fps)
            with suppress(queue.Empty):
                newest.get_nowait()
                self.num_dropped += 1
            newest.put_nowait(Frame.of(image, video, number, seconds))
            number += 1
