"""Small real videos, made by OpenCV: a bright square that moves over black."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from anchorite.predict.frames import hush

hush()  # before the first capture of the process, or FFmpeg's part comes too late


def square_at(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """The RGB picture of a frame: a red, green or blue square, whose place tells the number."""
    image = np.zeros((height, width, 3), np.uint8)
    left, top = 8 * (number % 10), 8 * (number // 10)
    image[top : top + 40, left : left + 40, number % 3] = 255
    return image


def make_video(path: Path, num_frames: int = 12, codec: str = "MJPG", fps: float = 25.0, size=(128, 96)) -> Path:
    """A video of `square_at`, size: width and height."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size)
    assert writer.isOpened()
    for number in range(num_frames):
        writer.write(square_at(number, size[1], size[0])[..., ::-1])
    writer.release()
    return path


def all_frames(path: Path) -> list[np.ndarray]:
    """What OpenCV reads, in RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(np.ascontiguousarray(read[1][..., ::-1]))
    return frames
