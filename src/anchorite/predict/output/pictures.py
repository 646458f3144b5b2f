"""Images written to files: annotated ones, and what lies inside the boxes.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections
from anchorite.files import write_bytes_atomically
from anchorite.predict.output.names import folder_names, make_part

_JPEG_QUALITY = 92
_LONGEST_JPEG_SIDE = 65_500


def suffix_for(image: UInt8[NDArray[np.uint8], "H W 3"], source: str) -> str:
    """.png for the image of a PNG, and for what is too large for a JPEG; else .jpg."""
    as_png = Path(source).suffix.lower() == ".png" or max(image.shape) > _LONGEST_JPEG_SIDE
    return ".png" if as_png else ".jpg"


def write_image(path: Path, image: UInt8[NDArray[np.uint8], "H W 3"]) -> None:
    """Write an RGB image in the format that the suffix says; StorageError when the disk refuses."""
    # Encoded in memory: OpenCV's own writing neither reports a full disk nor takes every file name.
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []  # it warns of any other's
    ok, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    assert ok, path
    write_bytes_atomically(path, encoded.tobytes())


class Crops:
    """Each detection cut out, pixel for pixel, as crops/CLASS/NAME-1.png, NAME-2.png, ...: numbered best first."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._folder = folder
        self._class_folders = [folder / name for name in folder_names(class_names)]

    def add(self, name: str, image: UInt8[NDArray[np.uint8], "H W 3"], detections: Detections) -> None:
        """Write what was found in one image (H, W, 3) of RGB."""
        for number, found in enumerate(detections, 1):
            folder = self._class_folders[found.class_id]
            make_part(folder)
            x0, y0, x1, y1 = pixels_of(found.box_xyxy, *detections.image_size)
            write_image(folder / f"{name}-{number}.png", image[y0:y1, x0:x1])


def pixels_of(box_xyxy: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels that a box touches within an image: at least one, the last ones left out."""
    left, top, right, bottom = box_xyxy
    x0, y0 = min(max(math.floor(left), 0), width - 1), min(max(math.floor(top), 0), height - 1)
    return x0, y0, min(max(math.ceil(right), x0 + 1), width), min(max(math.ceil(bottom), y0 + 1), height)
