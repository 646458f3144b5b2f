"""The dataset index: what every label format is read into, and the only thing the rest of the package sees."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from anchorite.data.columns import record_paths, records_at
from anchorite.data.record import Record
from anchorite.data.shards.split import ShardedSplit

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

    root: the folder (or file) the user named; format: "yolo", "coco", "voc" or "shards"; splits: as read, a
    `RecordTable` or `ShardedSplit` each, but any sequence of records will do; adjustments: see Adjustment;
    allow_outside: the user gave leave to follow paths out of the dataset; skip_bad: and to leave out what is bad, which
    for images that turn out damaged only when they are decoded is yet to be done.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[Record]]
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
    records = dataset.splits[split]
    if isinstance(records, ShardedSplit):
        kept: Sequence[Record] = records.without(gone)
    else:
        kept = records_at(records, [index for index, path in enumerate(record_paths(records)) if path not in gone])
    noted = [
        Adjustment("skipped-bad", str(one.record.path), one.reason, split, image=one.record.path) for one in left_out
    ]
    return replace(dataset, splits={**dataset.splits, split: kept}, adjustments=(*dataset.adjustments, *noted))
