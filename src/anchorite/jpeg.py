"""Images made smaller and written as JPEG, for pages and drawn scenes.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def shrunk(image: NDArray[np.uint8], longest_px: float) -> NDArray[np.uint8]:
    """An image (H, W, 3) whose longer side is at most `longest_px`, areas averaged; itself where it is so."""
    shrink = longest_px / max(image.shape[:2])
    if shrink >= 1:
        return image
    width, height = (max(1, round(side * shrink)) for side in (image.shape[1], image.shape[0]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """An RGB image (H, W, 3) uint8 as the bytes of a JPEG file; quality: 0..100."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return encoded.tobytes()
