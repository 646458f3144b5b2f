"""Findings about labels, classes and splits, from the index alone.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from anchorite.data import Adjustment, DatasetIndex, Record, flat_labels
from anchorite.data.formats.paths import is_image_name
from anchorite.inspect.findings import Finding

_KINDS_OF_ADJUSTMENTS: Mapping[str, str] = MappingProxyType(
    {
        "clipped": "clipped-box",
        "dropped-empty": "empty-box",
        "dropped-duplicate": "duplicate-box",
        "skipped-bad": "malformed",
    }
)
_DENSE = 100  # boxes of a class in an image, of which COCO's average precision counts as many


@dataclass(frozen=True, slots=True)
class SplitBalance:
    """What a split holds. boxes_per_class: K counts of training boxes; ignored: crowd and difficult boxes."""

    split: str
    images: int
    empty_images: int
    boxes: int
    ignored: int
    most_boxes: int
    boxes_per_class: tuple[int, ...]


def balance(split: str, records: Sequence[Record], num_classes: int) -> SplitBalance:
    """Counts of a split."""
    labels = flat_labels(records)
    ids = labels.class_ids[~labels.ignored]
    owners = np.repeat(np.arange(len(records)), labels.counts)
    counts = np.bincount(owners[~labels.ignored], minlength=len(records))
    return SplitBalance(
        split=split,
        images=len(records),
        empty_images=int((labels.counts == 0).sum()),
        boxes=len(ids),
        ignored=int(labels.ignored.sum()),
        most_boxes=int(counts.max(initial=0)),
        boxes_per_class=tuple(np.bincount(ids, minlength=num_classes).tolist()),
    )


def reading_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """A finding for each label, file or setting that reading adjusted; one a file where an adjustment names several."""
    for adjustment in dataset.adjustments:
        kind = _KINDS_OF_ADJUSTMENTS.get(adjustment.kind, adjustment.kind)
        if kind == "malformed" and adjustment.image is not None and adjustment.origin == str(adjustment.image):
            kind = "unreadable-image"
        if adjustment.files:
            for file in adjustment.files:
                image = str(file) if is_image_name(file.name) else None
                yield Finding(kind, _FILE_DETAILS[adjustment.kind], adjustment.split, image, str(file))
        else:
            yield _of_adjustment(kind, adjustment)


_FILE_DETAILS: Mapping[str, str] = MappingProxyType(
    {"unused-label": "there is no image of that name", "ignored-file": "in no split, or without xml"}
)


def _of_adjustment(kind: str, adjustment: Adjustment) -> Finding:
    image = None if adjustment.image is None else str(adjustment.image)
    return Finding(
        kind,
        adjustment.detail,
        adjustment.split,
        image,
        adjustment.origin,
        adjustment.box_xyxy,
        adjustment.class_name,
    )


def image_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Images without boxes or with very many, and boxes that are set aside."""
    for split, records in dataset.splits.items():
        for record in records:
            image = str(record.path)
            if not len(record.class_ids):
                yield Finding("background-image", "no boxes", split, image)
                continue
            counts = np.bincount(record.class_ids[~record.ignored], minlength=1)
            if counts.max() > _DENSE:
                name = dataset.class_names[int(counts.argmax())]
                yield Finding("dense-image", f"{counts.max()} boxes of {name}", split, image, class_name=name)
            for index in np.flatnonzero(record.ignored):
                name = dataset.class_names[record.class_ids[index]]
                box = tuple(record.boxes_xyxy[index].tolist())
                yield Finding(
                    "ignored-box", f"{name}, crowd or difficult", split, image, record.origins[int(index)], box, name
                )


def split_findings(dataset: DatasetIndex, balances: tuple[SplitBalance, ...]) -> Iterator[Finding]:
    """Splits and classes that cannot be trained or measured."""
    by_split = {counts.split: counts for counts in balances}
    train = by_split.get("train")
    if train is None or not train.images:
        yield Finding("no-training-images", "the split train is missing or empty", "train")
    elif not train.boxes:
        yield Finding("no-training-boxes", "all of train is background: nothing can be learned", "train")
    for split, counts in by_split.items():
        if split != "train" and not counts.images:
            yield Finding("empty-split", "no image", split)
        elif split != "train" and not counts.boxes:
            yield Finding("split-without-boxes", "nothing to measure against", split)
        if counts.images == 1:
            yield Finding("single-image-split", "one image", split)
    if train is not None and train.boxes:
        yield from _class_findings(dataset, by_split)


def _class_findings(dataset: DatasetIndex, by_split: Mapping[str, SplitBalance]) -> Iterator[Finding]:
    for number, name in enumerate(dataset.class_names):
        if by_split["train"].boxes_per_class[number]:
            continue
        elsewhere = [
            f"{counts.boxes_per_class[number]} in {split}"
            for split, counts in by_split.items()
            if counts.boxes_per_class[number]
        ]
        detail = f"only {' and '.join(elsewhere)}" if elsewhere else "no box in any split"
        yield Finding("class-without-training", f"class {name!r}: {detail}", class_name=name)


def name_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Class names that are probably one class."""
    first: dict[str, str] = {}
    for name in dataset.class_names:
        key = "".join(char for char in name.casefold() if not (char.isspace() or char in "-_")) or name
        if key in first:
            yield Finding("similar-class-names", f"{first[key]!r} and {name!r}", class_name=name, others=(first[key],))
        first.setdefault(key, name)


def unlisted_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Folders that hold images of the dataset and others that no split names (VOC: the reader says so itself)."""
    if dataset.format == "voc":
        return
    known = {record.path for records in dataset.splits.values() for record in records}
    known |= {adjustment.image for adjustment in dataset.adjustments if adjustment.image is not None}
    for folder in sorted({path.parent for path in known}):
        if not folder.is_dir():
            continue
        names = sorted(path.name for path in folder.iterdir() if is_image_name(path.name) and path not in known)
        if names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            others = tuple(str(folder / name) for name in names)
            detail = f"{len(names)} images that no split names: {listed}"
            yield Finding("unlisted-image", detail, origin=str(folder), others=others)
