"""The record: one image and its labels.

Legend: N boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its labels.

    width, height: size in pixels as displayed (after EXIF orientation). boxes_xyxy: (N, 4) float64 corners in those
    pixels, 0..width and 0..height, already clipped. class_ids: (N,) int64. ignored: (N,) bool, crowd regions and
    difficult objects: no training target, and neither right nor wrong in validation. areas: (N,) float64 in pixels,
    the annotated area where the format has one, else the box's. origins: N strings "file:line" of each label. Arrays of
    a record that was read are not to be written to.
    """

    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    origins: Sequence[str]
