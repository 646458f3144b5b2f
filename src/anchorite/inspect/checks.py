"""An inspection: every label read, every image decoded once, and each check's findings.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from anchorite.anchors import AnchorSet
from anchorite.boxes import pairwise_iou_xyxy
from anchorite.data import DatasetIndex, Record, dataset_fingerprint
from anchorite.data.formats.common import is_image_name
from anchorite.inspect.anchors import anchor_findings, anchor_fit
from anchorite.inspect.findings import KINDS, Finding, Inspection, SplitBalance, box_finding
from anchorite.inspect.similar import Progress, ScannedImage, same_pixels, scan_images, search_in_words, similar_pairs

_KIND_OF_ADJUSTMENT: Mapping[str, str] = MappingProxyType(
    {
        "clipped": "clipped-box",
        "dropped-empty": "empty-box",
        "dropped-duplicate": "duplicate-box",
        "skipped-bad": "malformed",
    }
)
_FILE_DETAILS: Mapping[str, str] = MappingProxyType(
    {"unused-label": "there is no image of that name", "ignored-file": "in no split, or without xml"}
)
_DENSE = 100  # boxes of a class in an image that COCO's average precision counts
_SAME_BOX_IOU = 0.8  # of one class: the same object drawn twice
_CONFLICT_IOU = 0.9  # of two classes: one of them is wrong
_BLOCK = 1024


def inspect_dataset(
    dataset: DatasetIndex,
    anchors: AnchorSet,
    image_size: int,
    progress: Progress | None = None,
    comparing: Progress | None = None,
) -> Inspection:
    """Inspect a dataset that was opened with skip_bad, so that every malformed row is among its adjustments.

    Anchors and image size are those of the planned training. progress is called with (images decoded, images in all),
    comparing, after that, with (images compared with all others, images in all). Nothing is written.
    """
    balances = tuple(_balance(dataset, split) for split in dataset.splits)
    images = scan_images(dataset, progress)
    order = {kind: number for number, kind in enumerate(KINDS)}
    found = chain(
        _reading_findings(dataset),
        _unlisted_findings(dataset),
        _class_name_findings(dataset),
        _split_findings(dataset, balances),
        _label_findings(dataset),
        _pixel_findings(images),
        _similar_findings(images, comparing),
        _overlap_findings(dataset),
        anchor_findings(dataset, anchors, image_size),
    )
    digest = hashlib.sha256(b"".join(image.digest or b"unreadable" for image in images))
    return Inspection(
        dataset=dataset,
        balances=balances,
        anchor_fit=anchor_fit(dataset.split("train"), anchors, image_size),
        findings=tuple(sorted(found, key=lambda finding: order[finding.kind])),
        images=tuple(images),
        label_fingerprint=dataset_fingerprint(dataset),
        split_fingerprints={split: records.fingerprint() for split, records in dataset.splits.items()},
        image_fingerprint=digest.hexdigest(),
        search=search_in_words(len(images)),
    )


def _balance(dataset: DatasetIndex, split: str) -> SplitBalance:
    labels = dataset.splits[split].labels()
    ids = labels.class_ids[~labels.ignored]
    image_of = np.repeat(np.arange(len(labels.counts)), labels.counts)
    return SplitBalance(
        split=split,
        images=len(labels.counts),
        empty_images=int((labels.counts == 0).sum()),
        boxes=len(ids),
        ignored=int(labels.ignored.sum()),
        most_boxes=int(np.bincount(image_of[~labels.ignored], minlength=1).max()),
        boxes_per_class=tuple(np.bincount(ids, minlength=len(dataset.class_names)).tolist()),
    )


def _reading_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """What reading adjusted: a finding for each label or setting, and one a file where an adjustment names several."""
    for one in dataset.adjustments:
        kind = _KIND_OF_ADJUSTMENT.get(one.kind, one.kind)
        if kind == "malformed" and one.image is not None and one.origin == str(one.image):
            kind = "unreadable-image"
        for file in one.files:
            image = str(file) if is_image_name(file.name) else None
            yield Finding(kind, _FILE_DETAILS[one.kind], one.split, image, str(file))
        if not one.files:
            image = None if one.image is None else str(one.image)
            yield Finding(kind, one.detail, one.split, image, one.origin, one.box_xyxy, one.class_name)


def _unlisted_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Folders that hold images of the dataset and others that no split names (VOC: reading reports them)."""
    if dataset.format == "voc":
        return
    known = {record.path for records in dataset.splits.values() for record in records}
    known |= {adjustment.image for adjustment in dataset.adjustments if adjustment.image is not None}
    for folder in sorted({path.parent for path in known if path.parent.is_dir()}):
        names = sorted(path.name for path in folder.iterdir() if is_image_name(path.name) and path not in known)
        if names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            others = tuple(str(folder / name) for name in names)
            detail = f"{len(names)} images that no split names: {listed}"
            yield Finding("unlisted-image", detail, origin=str(folder), others=others)


def _class_name_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Class names that probably mean one class."""
    first: dict[str, str] = {}
    for name in dataset.class_names:
        key = "".join(char for char in name.casefold() if not (char.isspace() or char in "-_")) or name
        if key in first:
            yield Finding("similar-class-names", f"{first[key]!r} and {name!r}", class_name=name, others=(first[key],))
        first.setdefault(key, name)


def _split_findings(dataset: DatasetIndex, balances: Sequence[SplitBalance]) -> Iterator[Finding]:
    """Splits and classes that cannot be trained or measured."""
    train = next((counts for counts in balances if counts.split == "train"), None)
    if train is None or not train.images:
        yield Finding("no-training-images", "the split train is missing or empty", "train")
    elif not train.boxes:
        yield Finding("no-training-boxes", "all of train is background: nothing can be learned", "train")
    for counts in balances:
        if counts is not train and not counts.images:
            yield Finding("empty-split", "no image", counts.split)
        elif counts is not train and not counts.boxes:
            yield Finding("split-without-boxes", "nothing to measure against", counts.split)
        if counts.images == 1:
            yield Finding("single-image-split", "one image", counts.split)
    if train is None or not train.boxes:
        return
    for number, name in enumerate(dataset.class_names):
        if not train.boxes_per_class[number]:
            elsewhere = [f"{n} in {counts.split}" for counts in balances if (n := counts.boxes_per_class[number])]
            detail = f"only {' and '.join(elsewhere)}" if elsewhere else "no box in any split"
            yield Finding("class-without-training", f"class {name!r}: {detail}", class_name=name)


def _label_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Images without boxes or with very many, and ignored boxes."""
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
                box = box_finding(dataset, split, record, int(index))
                yield replace(box, kind="ignored-box", detail=f"{box.class_name}, crowd or difficult")


def _pixel_findings(images: Sequence[ScannedImage]) -> Iterator[Finding]:
    """Damaged images, and the same pixels twice."""
    for image in images:
        if image.error is not None:
            yield Finding("unreadable-image", image.error, image.split, str(image.record.path))
    for group in same_pixels(images):
        kind = "shared-image" if len({one.split for one in group}) > 1 else "repeated-picture"
        for image in group[1:]:
            twin = next((one for one in group if one.split != image.split), group[0])
            yield _twin_finding(kind, "the same pixels", image, twin)


def _similar_findings(images: Sequence[ScannedImage], progress: Progress | None) -> Iterator[Finding]:
    """The same view twice; progress is that of `similar_pairs`."""
    # Of images with the same pixels in a split only the first is compared.
    readable = list({(image.digest, image.split): image for image in images[::-1] if image.error is None}.values())[
        ::-1
    ]
    if len(readable) < 2:
        return
    split_ids = np.unique([image.split for image in readable], return_inverse=True)[1]
    for pair in similar_pairs(np.stack([image.thumbnail for image in readable]), split_ids, progress):
        first, second = readable[pair.first], readable[pair.second]
        if first.digest != second.digest:
            kind = "similar-image" if first.split == second.split else "similar-shared-image"
            yield _twin_finding(kind, "the same view", first, second, f" (agreement {pair.agreement:.3f})")


def _twin_finding(kind: str, what: str, image: ScannedImage, twin: ScannedImage, more: str = "") -> Finding:
    detail = f"{what} as {twin.split} {twin.record.path.name}{more}"
    return Finding(kind, detail, image.split, str(image.record.path), others=(str(twin.record.path),))


class BoxPair(NamedTuple):
    """Two boxes of a record, first < second, and their IoU."""

    first: int
    second: int
    iou: float


def overlapping_pairs(record: Record) -> tuple[list[BoxPair], list[BoxPair]]:
    """The pairs of one class above an IoU of 0.8, and of two classes above 0.9; no crowds or difficult boxes."""
    same: list[BoxPair] = []
    conflicting: list[BoxPair] = []
    boxes = torch.tensor(record.boxes_xyxy.reshape(-1, 4))
    for start in range(0, len(boxes), _BLOCK):
        iou = pairwise_iou_xyxy(boxes[start : start + _BLOCK], boxes).numpy()
        for row, second in np.argwhere(iou > _SAME_BOX_IOU).tolist():
            first = start + row
            if first >= second or record.ignored[first] or record.ignored[second]:
                continue
            pair = BoxPair(first, second, float(iou[row, second]))
            if record.class_ids[first] == record.class_ids[second]:
                same.append(pair)
            elif pair.iou > _CONFLICT_IOU:
                conflicting.append(pair)
    return same, conflicting


def _overlap_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    for split, records in dataset.splits.items():
        for record in records:
            for kind, pairs in zip(("similar-box", "class-conflict"), overlapping_pairs(record), strict=True):
                for pair in pairs:
                    box, other = (box_finding(dataset, split, record, index) for index in (pair.second, pair.first))
                    detail = f"{shown(box)} overlaps {shown(other)} by an IoU of {pair.iou:.3f}, in {record.path.name}"
                    yield replace(box, kind=kind, detail=detail, others=(record.origins[pair.first],))


def shown(box: Finding) -> str:
    """Class and corners of a finding about a box."""
    return f"{box.class_name} ({', '.join(f'{value:.6g}' for value in box.box_xyxy or ())})"
