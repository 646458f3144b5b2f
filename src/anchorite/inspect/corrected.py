"""The corrected dataset, and every change against the label files; nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from anchorite.data import DatasetIndex, Record, Split, as_split
from anchorite.inspect.checks import BoxPair, overlapping_pairs, shown
from anchorite.inspect.findings import Finding, Inspection, box_finding
from anchorite.inspect.similar import same_pixels

_THINNEST_PX = 1e-3  # a box thinner than this comes from rounding, and label formats could not store it
_SPLIT_ORDER = {"train": 0, "val": 1, "test": 2}
# What reading already did, as the list of changes calls it.
_DONE_BY_READING = {
    "malformed": "left out",
    "unreadable-image": "left out",
    "empty-box": "dropped",
    "duplicate-box": "dropped",
    "clipped-box": "clipped",
    "unused-label": "left out",
    "ignored-file": "left out",
    "repeated-image": "listed once",
    "unlisted-image": "left out",
}


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to a label or image, in two words, and the finding that says where and why."""

    done: str
    finding: Finding

    def line(self) -> str:
        """The change as a line of text."""
        return f"{self.done:<12} {self.finding.kind:<16} {self.finding.line()}"


def corrected_dataset(inspection: Inspection) -> tuple[DatasetIndex, tuple[Change, ...]]:
    """The index to write as a corrected copy, and the changes against what the label files say.

    Boxes are clipped; boxes without area, exact and near duplicates (IoU above 0.8, one class: the first stays), bad
    rows and unreadable images are removed. An image in two splits stays in the later one of train, val, test. Images
    that merely show the same view stay, and no other finding changes anything.
    """
    dataset = inspection.dataset
    changes = [Change(_DONE_BY_READING[one.kind], one) for one in inspection.findings if one.kind in _DONE_BY_READING]
    removed = {(image.split, image.record.path) for image in inspection.images if image.error is not None}
    for group in same_pixels(inspection.images):
        last = max(group, key=lambda image: _SPLIT_ORDER[image.split])
        for image in group:
            if image.split != last.split:
                removed.add((image.split, image.record.path))
                detail = f"the same pixels as {last.split} {last.record.path.name}, which stays"
                finding = Finding("shared-image", detail, image.split, str(image.record.path))
                changes.append(Change("image out", finding))
    splits: dict[str, Split] = {}
    for split, records in dataset.splits.items():
        corrected = []
        for record in records:
            if (split, record.path) not in removed:
                record, dropped = _without_bad_boxes(dataset, split, record)
                corrected.append(record)
                changes += dropped
        splits[split] = as_split(corrected)
    return replace(dataset, splits=splits, adjustments=()), tuple(changes)


def redundant_boxes(pairs: list[BoxPair]) -> dict[int, BoxPair]:
    """The boxes to leave out so that no pair remains and the first of each stays, with the pair that is the reason."""
    dropped: dict[int, BoxPair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.second, pair.first)):
        if pair.first not in dropped:
            dropped.setdefault(pair.second, pair)
    return dropped


def _without_bad_boxes(dataset: DatasetIndex, split: str, record: Record) -> tuple[Record, list[Change]]:
    same, _ = overlapping_pairs(record)
    reasons = {
        index: ("similar-box", f"an IoU of {pair.iou:.3f} with the box of {record.origins[pair.first]}, which stays")
        for index, pair in redundant_boxes(same).items()
    }
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    for index in np.flatnonzero((sides < _THINNEST_PX).any(axis=1)).tolist():
        reasons[index] = ("sub-pixel-box", f"thinner than {_THINNEST_PX:g} px")
    changes = []
    for index, (kind, detail) in sorted(reasons.items()):
        box = box_finding(dataset, split, record, index)
        changes.append(Change("dropped", replace(box, kind=kind, detail=f"{shown(box)}: {detail}")))
    stays = np.array([index for index in range(len(record.class_ids)) if index not in reasons], np.int64)
    columns = {name: getattr(record, name)[stays] for name in ("boxes_xyxy", "class_ids", "ignored", "areas")}
    return replace(record, origins=tuple(record.origins[index] for index in stays.tolist()), **columns), changes
