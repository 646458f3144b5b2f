"""Video files, frame by frame."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import cv2

from anchorite.data.prefetch import prefetch
from anchorite.errors import InputError
from anchorite.predict.sources.captures import frames_per_second, open_video_file, retrieve_rgb
from anchorite.predict.sources.frames import Frame, Video


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
