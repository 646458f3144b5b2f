"""The dataset as it should be, and every change that leads there; nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anchorite.data import DatasetIndex, Record
from anchorite.inspect.boxes import box_finding, overlapping_pairs, redundant_boxes
from anchorite.inspect.doctor import Inspection
from anchorite.inspect.findings import Finding
from anchorite.inspect.images import SeenImage, same_pixels

_THINNEST_PX = 1e-3  # a box thinner than this is an edge of rounding, and formats could not hold it
_SPLIT_RANKS = {"train": 0, "val": 1, "test": 2}
# What reading already did, as it is called in the list of changes.
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
    """What became of a label or image. done: in two words; finding: where, and why."""

    done: str
    finding: Finding

    def line(self) -> str:
        """The change as a line of text."""
        return f"{self.done:<12} {self.finding.kind:<16} {self.finding.line()}"


def corrected_dataset(inspection: Inspection) -> tuple[DatasetIndex, tuple[Change, ...]]:
    """The index to write as a corrected copy, and the changes against what the label files say.

    Boxes are clipped; boxes without area, exact and near duplicates (IoU above 0.8, one class: the first stays) and bad
    rows are gone, and so are unreadable images. An image that stands in two splits stays in the later one of train,
    val, test. Images that merely show the same view stay, and so does whatever else was found.
    """
    dataset = inspection.dataset
    changes = [Change(_DONE_BY_READING[one.kind], one) for one in inspection.findings if one.kind in _DONE_BY_READING]
    removed = {(image.split, image.record.path) for image in inspection.images if image.picture.error is not None}
    for image, twin in _superfluous(inspection):
        removed.add((image.split, image.record.path))
        detail = f"the same pixels as {twin.split} {twin.record.path.name}, which stays"
        place = str(image.record.path)
        changes.append(Change("image out", Finding("shared-image", detail, image.split, place)))
    splits: dict[str, tuple[Record, ...]] = {}
    for split, records in dataset.splits.items():
        kept: list[Record] = []
        for record in records:
            if (split, record.path) in removed:
                continue
            record, dropped = _without_superfluous_boxes(dataset, split, record)
            kept.append(record)
            changes += dropped
        splits[split] = tuple(kept)
    return replace(dataset, splits=splits, adjustments=()), tuple(changes)


def _superfluous(inspection: Inspection) -> list[tuple[SeenImage, SeenImage]]:
    """Images to leave out because a later split has the same pixels, each with one that stays."""
    found: list[tuple[SeenImage, SeenImage]] = []
    for group in same_pixels(inspection.images):
        last = max(_SPLIT_RANKS[image.split] for image in group)
        stays = next(image for image in group if _SPLIT_RANKS[image.split] == last)
        found += [(image, stays) for image in group if _SPLIT_RANKS[image.split] < last]
    return found


def _without_superfluous_boxes(dataset: DatasetIndex, split: str, record: Record) -> tuple[Record, list[Change]]:
    same, _ = overlapping_pairs(record)
    reasons = {
        index: ("similar-box", f"an IoU of {pair.iou:.3f} with the box of {record.origins[pair.first]}, which stays")
        for index, pair in redundant_boxes(same).items()
    }
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    for thin in np.flatnonzero((sides < _THINNEST_PX).any(axis=1)):
        reasons[int(thin)] = ("sub-pixel-box", f"thinner than {_THINNEST_PX:g} px")
    if not reasons:
        return record, []
    changes = []
    for index, (kind, detail) in sorted(reasons.items()):
        box = box_finding(dataset, split, record, index)
        corners = ", ".join(f"{value:.6g}" for value in box.box_xyxy or ())
        changes.append(Change("dropped", replace(box, kind=kind, detail=f"{box.class_name} ({corners}): {detail}")))
    keep = np.ones(len(record.class_ids), np.bool_)
    keep[list(reasons)] = False
    return _only(record, keep), changes


def _only(record: Record, keep: NDArray[np.bool_]) -> Record:
    return replace(
        record,
        boxes_xyxy=record.boxes_xyxy[keep],
        class_ids=record.class_ids[keep],
        ignored=record.ignored[keep],
        areas=record.areas[keep],
        origins=tuple(np.array(record.origins, dtype=object)[keep]),
    )
