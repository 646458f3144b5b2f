"""The dataset index: what every label format is read into, and the only thing the rest of the package sees.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its labels.

    width, height: size in pixels as displayed (after EXIF orientation). boxes_xyxy: (N, 4) float64 corners in those
    pixels, 0..width and 0..height, already clipped. class_ids: (N,) int64. ignored: (N,) bool, crowd regions and
    difficult objects: no training target, and neither right nor wrong in validation. areas: (N,) float64 in pixels,
    the annotated area where the format has one, else the box's. origins: N strings "file:line" of each label.
    """

    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What reading did to one label that is well-formed but not usable as it stands.

    kind: "clipped" (reached outside the image), "dropped-empty" (no area), "dropped-duplicate", or "skipped-bad" (a
    malformed row dropped because the user asked for it). origin: "file:line". detail: the values, readable.
    """

    kind: str
    origin: str
    detail: str


@dataclass(frozen=True, slots=True)
class DatasetIndex:
    """A dataset as read: class names and the records of each split ("train", "val", "test").

    root: the folder (or file) the user named; format: "yolo", "coco" or "voc"; adjustments: see Adjustment;
    allow_outside: the user gave leave to follow paths out of the dataset.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[Record, ...]]
    adjustments: tuple[Adjustment, ...] = field(default=())
    allow_outside: bool = False
