"""The boxes around shapes that annotation tools draw: rotated boxes, ellipses and masks.

Angles are in degrees, clockwise as seen on the screen, where y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from anchorite.data.dataset import Box
from anchorite.data.formats.common import box_around


def around_rotated(box_xyxy: Box, degrees: float, about_xy: tuple[float, float]) -> Box:
    """The box around a box that is turned about a point."""
    if degrees % 360 == 0:
        return box_xyxy
    x1, y1, x2, y2 = box_xyxy
    (x, y), (cosine, sine) = about_xy, (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    offsets = ((left - x, top - y) for left in (x1, x2) for top in (y1, y2))
    return box_around((x + dx * cosine - dy * sine, y + dx * sine + dy * cosine) for dx, dy in offsets)


def around_ellipse(center_xy: tuple[float, float], radii_xy: tuple[float, float], degrees: float = 0.0) -> Box:
    """The box around an ellipse that is turned about its centre."""
    (x, y), (rx, ry) = center_xy, radii_xy
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dx, dy = (
        (rx, ry) if degrees % 180 == 0 else (math.hypot(rx * cosine, ry * sine), math.hypot(rx * sine, ry * cosine))
    )
    return x - dx, y - dy, x + dx, y + dy


def around_runs(runs: Iterable[tuple[int, int]], width: int) -> Box | None:
    """The box around the pixels of some runs, (first, behind the last), counted row by row in an image so wide.

    None where there is no pixel. No mask is made, so a run may be of any length.
    """
    left, top, right, bottom = width, -1, 0, 0
    for first, end in runs:
        if first < end:
            row, last_row = first // width, (end - 1) // width
            top, bottom = row if top < 0 else min(top, row), max(bottom, last_row + 1)
            is_one_row = row == last_row
            left = min(left, first % width if is_one_row else 0)
            right = max(right, (end - 1) % width + 1 if is_one_row else width)
    return None if top < 0 else (float(left), float(top), float(right), float(bottom))
