"""An inspection, in which every label is read, every image decoded once and each check yields its findings; and the
corrected dataset. Nothing is written here.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from anchorite.anchors import AnchorSet
from anchorite.boxes import pairwise_iou_xyxy
from anchorite.data import DatasetIndex, Record, Split, as_split, dataset_fingerprint
from anchorite.inspect.anchors import anchor_findings, anchor_fit
from anchorite.inspect.findings import KINDS, Finding, Inspection, SplitBalance, box_finding
from anchorite.inspect.overview import balances_of, reading_findings, sources_of, split_findings, unlisted_images
from anchorite.inspect.similar import Progress, ScannedImage, same_pixels, scan_images, search_in_words, similar_pairs

_SPLIT_ORDER = {"train": 0, "val": 1, "test": 2}
_DENSE = 100  # boxes of a class in an image that COCO's average precision counts
_SAME_BOX_IOU = 0.8  # of one class: the same object drawn twice
_CONFLICT_IOU = 0.9  # of two classes: one of them is wrong
_THINNEST_PX = 1e-3  # a box thinner than this comes from rounding, and label formats could not store it
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
    balances = tuple(map(_with_most_boxes, balances_of(dataset), dataset.splits.values()))
    images = scan_images(dataset, progress)
    found = chain(
        reading_findings(dataset),
        unlisted_images(dataset),
        split_findings(dataset, balances),
        _label_findings(dataset),
        _image_findings(images, comparing),
        anchor_findings(dataset, anchors, image_size),
    )
    order = {kind: number for number, kind in enumerate(KINDS)}
    return Inspection(
        dataset=dataset,
        balances=balances,
        anchor_fit=anchor_fit(dataset.split("train"), anchors, image_size),
        findings=tuple(sorted(found, key=lambda finding: order[finding.kind])),
        images=tuple(images),
        label_fingerprint=dataset_fingerprint(dataset),
        split_fingerprints={split: records.fingerprint() for split, records in dataset.splits.items()},
        image_fingerprint=hashlib.sha256(b"".join(image.digest or b"unreadable" for image in images)).hexdigest(),
        search=search_in_words(len(images)),
        sources=sources_of(dataset),
    )


def _with_most_boxes(balance: SplitBalance, records: Split) -> SplitBalance:
    table = records.table()
    kept = ~table.boxes["ignored"]
    return replace(balance, most_boxes=int(np.bincount(table.image_of_box()[kept], minlength=1).max()))


def _label_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """Images without boxes or with very many, ignored boxes, and boxes that overlap too much."""
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
            for index in np.flatnonzero(record.ignored).tolist():
                box = box_finding(dataset, split, record, index)
                what = "for any class" if box.class_name is None else f"of {box.class_name}, crowd or difficult"
                yield replace(box, kind="ignored-box", detail=f"a region {what}")
            for kind, first, second, iou in overlaps(record):
                box, other = (box_finding(dataset, split, record, index) for index in (second, first))
                detail = f"{_shown(box)} overlaps {_shown(other)} by an IoU of {iou:.3f}, in {record.path.name}"
                yield replace(box, kind=kind, detail=detail, others=(record.origins[first],))


def _image_findings(images: Sequence[ScannedImage], progress: Progress | None) -> Iterator[Finding]:
    """Damaged images, the same pixels twice, and the same view twice; progress is that of `similar_pairs`."""
    for image in images:
        if image.error is not None:
            yield Finding("unreadable-image", image.error, image.split, str(image.record.path))
    for group in same_pixels(images):
        kind = "shared-image" if len({one.split for one in group}) > 1 else "repeated-picture"
        for image in group[1:]:
            twin = next((one for one in group if one.split != image.split), group[0])
            yield _twin_finding(kind, "the same pixels", image, twin)
    # Of images with the same pixels in a split only the first is compared.
    firsts = {(image.digest, image.split): image for image in reversed(images) if image.error is None}
    readable = list(reversed(firsts.values()))
    if len(readable) < 2:
        return
    split_ids = np.unique([image.split for image in readable], return_inverse=True)[1]
    for number, other, agreed in similar_pairs(np.stack([image.thumbnail for image in readable]), split_ids, progress):
        image, twin = readable[number], readable[other]
        if image.digest != twin.digest:
            kind = "similar-image" if image.split == twin.split else "similar-shared-image"
            yield _twin_finding(kind, "the same view", image, twin, f" (agreement {agreed:.3f})")


def _twin_finding(kind: str, what: str, image: ScannedImage, twin: ScannedImage, more: str = "") -> Finding:
    detail = f"{what} as {twin.split} {twin.record.path.name}{more}"
    return Finding(kind, detail, image.split, str(image.record.path), others=(str(twin.record.path),))


def overlaps(record: Record) -> Iterator[tuple[str, int, int, float]]:
    """The kind, first box, second box and IoU of pairs of boxes: "similar-box" above an IoU of 0.8 in one class,
    "class-conflict" above 0.9 in two; no crowds or difficult boxes."""
    boxes = torch.tensor(record.boxes_xyxy.reshape(-1, 4))
    for start in range(0, len(boxes), _BLOCK):
        ious = pairwise_iou_xyxy(boxes[start : start + _BLOCK], boxes).numpy()
        for row, second in np.argwhere(ious > _SAME_BOX_IOU).tolist():
            first, iou = start + row, float(ious[row, second])
            if first < second and not record.ignored[[first, second]].any():
                if record.class_ids[first] == record.class_ids[second]:
                    yield "similar-box", first, second, iou
                elif iou > _CONFLICT_IOU:
                    yield "class-conflict", first, second, iou


def _shown(box: Finding) -> str:
    """Class and corners of a finding about a box."""
    return f"{box.class_name} ({', '.join(f'{value:.6g}' for value in box.box_xyxy or ())})"


def corrected_dataset(inspection: Inspection) -> tuple[DatasetIndex, list[tuple[str, Finding]]]:
    """The index to write as a corrected copy, and the changes against what the label files say: what was done to a
    label or image, in two words, and the finding that says where and why.

    Boxes are clipped; boxes without area, exact and near duplicates (IoU above 0.8, one class: the first stays), bad
    rows and unreadable images are removed. An image in two splits stays in the later one of train, val, test. Images
    that merely show the same view stay, and no other finding changes anything.
    """
    dataset = inspection.dataset
    changes = [(done, one) for one in inspection.findings if (done := KINDS[one.kind].done)]
    removed = {(image.split, image.record.path) for image in inspection.images if image.error is not None}
    for group in same_pixels(inspection.images):
        last = max(group, key=lambda image: _SPLIT_ORDER[image.split])
        for image in group:
            if image.split != last.split:
                removed.add((image.split, image.record.path))
                detail = f"the same pixels as {last.split} {last.record.path.name}, which stays"
                finding = Finding("shared-image", detail, image.split, str(image.record.path))
                changes.append(("image out", finding))
    splits: dict[str, Split] = {}
    for split, records in dataset.splits.items():
        corrected = []
        for record in records:
            if (split, record.path) not in removed:
                bad = _bad_boxes(dataset, split, record)
                changes += [("dropped", finding) for finding in bad.values()]
                stays = [index for index in range(len(record.class_ids)) if index not in bad]
                names = ("boxes_xyxy", "class_ids", "ignored", "areas", "weights")
                columns = {name: getattr(record, name)[np.array(stays, np.int64)] for name in names}
                corrected.append(replace(record, origins=tuple(record.origins[index] for index in stays), **columns))
        splits[split] = as_split(corrected)
    return replace(dataset, splits=splits, adjustments=()), changes


def _bad_boxes(dataset: DatasetIndex, split: str, record: Record) -> dict[int, Finding]:
    """The boxes to leave out, in order: of near duplicates the second of each pair, and the thinnest."""
    reasons: dict[int, tuple[str, str]] = {}
    for second, first, iou in sorted((b, a, iou) for kind, a, b, iou in overlaps(record) if kind == "similar-box"):
        if first not in reasons and second not in reasons:
            origin = record.origins[first]
            reasons[second] = ("similar-box", f"an IoU of {iou:.3f} with the box of {origin}, which stays")
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    for index in np.flatnonzero((sides < _THINNEST_PX).any(axis=1)).tolist():
        reasons[index] = ("sub-pixel-box", f"thinner than {_THINNEST_PX:g} px")
    bad = {}
    for index, (kind, detail) in sorted(reasons.items()):
        box = box_finding(dataset, split, record, index)
        bad[index] = replace(box, kind=kind, detail=f"{_shown(box)}: {detail}")
    return bad
