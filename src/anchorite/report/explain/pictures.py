"""The network's input as JPEG data URIs, together within a number of bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anchorite.report.page import jpeg_uri

_LONGEST_PX = 960
# From best to smallest; the first that fits is taken, the last one whether it fits or not.
_WAYS = ((1.0, 86), (1.0, 75), (0.8, 75), (0.66, 70), (0.5, 66), (0.4, 60), (0.3, 50), (0.2, 45), (0.12, 40))


def picture_uri(image: NDArray[np.uint8], max_bytes: int) -> str:
    """An RGB image (H, W, 3) as a JPEG data URI of at most `max_bytes` characters wherever that is possible."""
    longest_px = min(_LONGEST_PX, max(image.shape[:2]))
    uri = ""
    for scale, quality in _WAYS:
        uri = jpeg_uri(image, longest_px * scale, quality)
        if len(uri) <= max_bytes:
            break
    return uri
