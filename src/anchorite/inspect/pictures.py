"""Every image decoded once: what is damaged, a hash of the pixels, and a small grey picture to compare by.

Legend: N images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data import decode_image
from anchorite.errors import AnchoriteError

Progress = Callable[[int, int], None]
THUMBNAIL_SIDE = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded image: the hash of its size and pixels, and (64, 64) uint8 grey whatever its shape.

    error: why it cannot be decoded; the rest then stands for nothing.
    """

    digest: bytes
    thumbnail: NDArray[np.uint8]
    error: str | None = None


def look_at(paths: Sequence[Path], progress: Progress | None = None) -> list[Picture]:
    """The pictures of N paths, decoded on all cores by the package's one decoder, 4 kB of each kept.

    progress is called with (images done, images in all).
    """
    pool = ThreadPoolExecutor(os.cpu_count())  # OpenCV releases the interpreter lock while it decodes
    pictures: list[Picture] = []
    try:
        for picture in pool.map(_look_at_one, paths):
            pictures.append(picture)
            if progress is not None:
                progress(len(pictures), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the images still to come
    return pictures


def _look_at_one(path: Path) -> Picture:
    try:
        image = decode_image(path)
    except AnchoriteError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return Picture(b"", np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8), reason)
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.data)
    return Picture(digest.digest(), thumbnail(image))


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 3) as (64, 64) grey, areas averaged."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA), np.uint8)
