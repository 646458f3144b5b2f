"""The dataset index: what every label format is read into, and the only thing the rest of the package sees.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

AdjustmentKind = Literal[
    "clipped",
    "dropped-empty",
    "dropped-duplicate",
    "skipped-bad",
    "repeated-image",
    "no-labels",
    "unused-label",
    "ignored-file",
    "ignored-key",
    "relocated",
]


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
    """What reading did to a label, file or setting that is well-formed but not usable as it stands.

    Of labels: "clipped" (reached outside the image), "dropped-empty" (no area), "dropped-duplicate", "skipped-bad" (a
    malformed row or unreadable image left out because the user asked for it). Of files: "repeated-image" (listed twice
    in a split, read once), "no-labels" (no image of a split has a label file), "unused-label" (label files without an
    image), "ignored-file" (belongs to no split, or an image without the labels that its format demands). Of settings:
    "ignored-key" (noted and not obeyed), "relocated" (a path that was found elsewhere in the dataset).
    origin: "file:line", or the file or folder. detail: the values, readable. Where they are known: split; image;
    class_name and box_xyxy, in pixels as the label file has it; files, where there are several.
    """

    kind: AdjustmentKind
    origin: str
    detail: str
    split: str | None = None
    image: Path | None = None
    class_name: str | None = None
    box_xyxy: tuple[float, float, float, float] | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetIndex:
    """A dataset as read: class names and the records of each split ("train", "val", "test").

    root: the folder (or file) the user named; format: "yolo", "coco" or "voc"; adjustments: see Adjustment;
    allow_outside: the user gave leave to follow paths out of the dataset; skip_bad: and to leave out what is bad, which
    for images that turn out damaged only when they are decoded is yet to be done.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[Record, ...]]
    adjustments: tuple[Adjustment, ...] = field(default=())
    allow_outside: bool = False
    skip_bad: bool = False


class LeftOut(NamedTuple):
    """A record whose image cannot be decoded, and why."""

    record: Record
    reason: str


def without_images(dataset: DatasetIndex, split: str, left_out: Sequence[LeftOut]) -> DatasetIndex:
    """The dataset without these images of a split; each becomes an Adjustment("skipped-bad")."""
    if not left_out:
        return dataset
    gone: Collection[Path] = {one.record.path for one in left_out}
    kept = tuple(record for record in dataset.splits[split] if record.path not in gone)
    noted = [
        Adjustment("skipped-bad", str(one.record.path), one.reason, split, image=one.record.path) for one in left_out
    ]
    return replace(dataset, splits={**dataset.splits, split: kept}, adjustments=(*dataset.adjustments, *noted))
