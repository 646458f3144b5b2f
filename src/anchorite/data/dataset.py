"""The dataset index: what every label format is read into, and the only thing the rest of the package sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from anchorite.data.records import Record, Split, as_split

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
    "ignored-key" (read and not obeyed), "relocated" (a path that was found elsewhere in the dataset).
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

    root: the folder (or file) the user named; format: "yolo", "coco", "voc" or "shards"; splits: any sequence of
    records will do for each, it becomes a `Split`; adjustments: see Adjustment; allow_outside: the user permitted paths
    that lead out of the dataset; skip_bad: and to leave out what is bad, which for images that turn out damaged only
    when they are decoded is yet to be done.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    adjustments: tuple[Adjustment, ...] = field(default=())
    allow_outside: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", {name: as_split(records) for name, records in self.splits.items()})

    def split(self, name: str) -> Split:
        """The records of a split; none where the dataset does not have it."""
        return self.splits[name] if name in self.splits else as_split(())


class LeftOut(NamedTuple):
    """A record whose image cannot be decoded, and why."""

    record: Record
    reason: str


def without_images(dataset: DatasetIndex, split: str, left_out: Sequence[LeftOut]) -> DatasetIndex:
    """The dataset without these images of a split; each becomes an Adjustment("skipped-bad")."""
    if not left_out:
        return dataset
    remaining = dataset.splits[split].without({one.record.path for one in left_out})
    skipped = [
        Adjustment("skipped-bad", str(one.record.path), one.reason, split, image=one.record.path) for one in left_out
    ]
    return replace(dataset, splits={**dataset.splits, split: remaining}, adjustments=(*dataset.adjustments, *skipped))


def dataset_fingerprint(dataset: DatasetIndex) -> str:
    """SHA-256, in hexadecimal, over the class names and the fingerprint of every split, both in order.

    A changed label, image size, file name, class name or order changes it. Pixels, file times, the format and the
    place of the dataset do not enter, so it takes about a second for 100 000 images.
    """
    digest = hashlib.sha256()
    fingerprints = [(split, records.fingerprint()) for split, records in dataset.splits.items()]
    for texts in (dataset.class_names, *fingerprints):
        digest.update(len(texts).to_bytes(8, "little"))  # lengths first: no other lists of texts give the same bytes
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
