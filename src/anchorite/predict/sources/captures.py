"""Video files, cameras and streams as OpenCV opens them; its own words about what fails are kept off stderr."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.headers import MAX_PIXELS
from anchorite.errors import InputError, StorageError

_USUAL_FPS = 30.0  # of what does not say how many frames a second it has
_MOST_FPS = 1000.0
_TIMEOUT_MS = 10_000  # to answer, and between two pictures


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
