"""Colour jitter in HSV on the finished uint8 image: the hue through a look-up table, saturation and value scaled."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.scratch import Scratch

NUM_HUES = 180  # OpenCV keeps the hue of a uint8 image in half degrees
STRIP_PIXELS = 102_400  # what is worked on at a time, so that the intermediate planes stay in the processor's cache


class Jitter(NamedTuple):
    """hue: shift in turns of the colour circle; saturation, value: factors."""

    hue: float
    saturation: float
    value: float


NO_JITTER = Jitter(0.0, 1.0, 1.0)


def jitter_colours(
    image: NDArray[np.uint8], jitter: Jitter, out: NDArray[np.uint8] | None = None, scratch: Scratch | None = None
) -> None:
    """Shift the hue and scale saturation and value of an RGB image (H, W, 3), saturating at 255.

    out: where the result goes, (H, W, 3); None changes the image in place.
    """
    out = image if out is None else out
    if jitter == NO_JITTER:
        if out is not image:
            out[:] = image
        return
    scratch = scratch or Scratch()
    height, width = image.shape[:2]
    strip_height = min(height, max(1, STRIP_PIXELS // width))
    hues = hue_table(jitter.hue)
    for top in range(0, height, strip_height):
        rows = slice(top, top + strip_height)
        _jitter_strip(image[rows], jitter, hues, out[rows], scratch)


def _jitter_strip(
    strip: NDArray[np.uint8], jitter: Jitter, hues: NDArray[np.uint8], out: NDArray[np.uint8], scratch: Scratch
) -> None:
    hsv = scratch.array("hsv", *strip.shape)
    planes = [scratch.array(f"plane {skew}", *strip.shape[:2], skew=skew) for skew in (8, 16, 32)]
    cv2.cvtColor(strip, cv2.COLOR_RGB2HSV, dst=hsv)
    hue, saturation, value = cv2.split(hsv, planes)
    cv2.LUT(hue, hues, dst=hue)
    cv2.convertScaleAbs(saturation, dst=saturation, alpha=jitter.saturation)  # as tables would, but vectorised
    cv2.convertScaleAbs(value, dst=value, alpha=jitter.value)
    cv2.merge((hue, saturation, value), dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=out)


def hue_table(shift: float) -> NDArray[np.uint8]:
    """The table (256,) uint8 that shifts OpenCV's hues by a fraction of the colour circle."""
    return ((np.arange(256) + hue_steps(shift)) % NUM_HUES).astype(np.uint8)


def hue_steps(shift: float) -> int:
    """A shift of the hue, a fraction of the colour circle, in OpenCV's half degrees."""
    return round(shift * NUM_HUES)
