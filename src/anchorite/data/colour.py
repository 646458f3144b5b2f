"""Colour jitter in HSV on the finished uint8 image: the hue through a look-up table, saturation and value scaled."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_HUES = 180  # OpenCV keeps the hue of a uint8 image in half degrees
STRIP_PIXELS = 102_400  # what is worked on at a time, so that the intermediate planes stay in the processor's cache


class Jitter(NamedTuple):
    """hue: shift in turns of the colour circle; saturation, value: factors."""

    hue: float
    saturation: float
    value: float


def jitter_colours(image: NDArray[np.uint8], jitter: Jitter) -> None:
    """Shift the hue and scale saturation and value of an RGB image (H, W, 3), in place; saturating at 255."""
    if jitter == (0.0, 1.0, 1.0):
        return
    height, width = image.shape[:2]
    strip_height = min(height, max(1, STRIP_PIXELS // width))
    hues = hue_table(jitter.hue)
    hsv = np.empty((strip_height, width, 3), np.uint8)
    planes = [np.empty((strip_height, width), np.uint8) for _ in range(3)]
    for top in range(0, height, strip_height):
        strip = image[top : top + strip_height]
        if strip.shape[0] < strip_height:  # the last one
            hsv, planes = hsv[: strip.shape[0]], [plane[: strip.shape[0]] for plane in planes]
        _jitter_strip(strip, jitter, hues, hsv, planes)


def _jitter_strip(
    strip: NDArray[np.uint8],
    jitter: Jitter,
    hues: NDArray[np.uint8],
    hsv: NDArray[np.uint8],
    planes: list[NDArray[np.uint8]],
) -> None:
    cv2.cvtColor(strip, cv2.COLOR_RGB2HSV, dst=hsv)
    hue, saturation, value = cv2.split(hsv, planes)
    cv2.LUT(hue, hues, dst=hue)
    cv2.convertScaleAbs(saturation, dst=saturation, alpha=jitter.saturation)  # as tables would, but vectorised
    cv2.convertScaleAbs(value, dst=value, alpha=jitter.value)
    cv2.merge((hue, saturation, value), dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=strip)


def hue_table(shift: float) -> NDArray[np.uint8]:
    """The table (256,) uint8 that shifts OpenCV's hues by a fraction of the colour circle."""
    return ((np.arange(256) + hue_steps(shift)) % NUM_HUES).astype(np.uint8)


def hue_steps(shift: float) -> int:
    """A shift of the hue, a fraction of the colour circle, in OpenCV's half degrees."""
    return round(shift * NUM_HUES)
