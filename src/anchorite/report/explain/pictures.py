"""The network's input as JPEG data URIs, together within a number of bytes."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

_LONGEST_PX = 960
# From best to smallest; the first that fits is taken, the last one whether it fits or not.
_WAYS = ((1.0, 86), (1.0, 75), (0.8, 75), (0.66, 70), (0.5, 66), (0.4, 60), (0.3, 50), (0.2, 45), (0.12, 40))


def picture_uri(image: NDArray[np.uint8], max_bytes: int) -> str:
    """An RGB image (H, W, 3) as a JPEG data URI of at most `max_bytes` characters wherever that is possible."""
    longest = max(image.shape[:2])
    base = min(1.0, _LONGEST_PX / longest)
    uri = ""
    for scale, quality in _WAYS:
        uri = _encoded(image, base * scale, quality)
        if len(uri) <= max_bytes:
            break
    return uri


def _encoded(image: NDArray[np.uint8], scale: float, quality: int) -> str:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    smaller = image if scale == 1 else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(np.asarray(smaller, np.uint8), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
