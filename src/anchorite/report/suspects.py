"""Suspect labels: those that a detector, trained on this very data or not, contradicts; ranked, as page and as CSV.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data import DatasetIndex, Record, decode_image
from anchorite.jpeg import shrunk
from anchorite.report.page import MAX_PAGE_BYTES, jpeg_uri, render_page
from anchorite.report.suspects_evidence import (
    LABEL_FIELDS,
    UNLABELLED_FIELDS,
    LabelKind,
    LabelScores,
    Observation,
    Observer,
    Rows,
    evidence,
    label_scores,
    missing_scores,
)

__all__ = ["KINDS", "Observation", "Observer", "Ranking", "Suspect", "as_csv", "rank_suspects", "suspects_page"]

SuspectKind = Literal["class", "missing", "spurious", "box", "duplicate", "loss"]
BoxXYXY = tuple[float, float, float, float]
KINDS: dict[SuspectKind, str] = {
    "class": "the detector sees another class than the label's",
    "missing": "something is seen where no label is",
    "spurious": "nothing is seen where the label is",
    "box": "what is seen lies elsewhere than the label",
    "duplicate": "two labels have nearly the same box",
    "loss": "the label costs far more than similar ones",
}
_LEAST_SCORE = 0.05
_LEAST_SECOND = 0.25  # from this score a second kind of suspicion is reported, too
# Longer side of a crop in pixels and JPEG quality, from fine to coarse; the first that fits is taken.
_CROP_SIZES = ((320, 82), (256, 75), (192, 68), (128, 60))
_MARGIN = 0.45  # around the boxes, of their longer side: the surroundings decide many a case
_LEAST_CROP_PX = 32
# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label, or for "missing" a box without one, that the detector contradicts.

    rank, kind_rank: from 1, among all and among its kind; score: 0..1. image: the record's path; origin: "file:line" of
    the label, "" for missing. class_id: of the label, None for missing; seen_class and seen_score: what is seen
    instead, or its own class where that is in doubt; iou: of label and likeliest detection, for missing of the
    detection and the nearest label. label_xyxy, seen_xyxy: in pixels of the image as displayed. reason: one line.
    """

    kind: SuspectKind
    score: float
    split: str
    image: Path
    origin: str
    class_id: int | None
    seen_class: int | None
    seen_score: float
    iou: float
    label_xyxy: BoxXYXY | None
    seen_xyxy: BoxXYXY | None
    reason: str
    rank: int = 0
    kind_rank: int = 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Suspects in order, the worst first, out of so many images and labels (ignored ones not counted)."""

    suspects: tuple[Suspect, ...]
    num_images: int
    num_labels: int

    def counts(self) -> dict[SuspectKind, int]:
        """How many there are of each kind, in the order of KINDS."""
        counted = Counter(suspect.kind for suspect in self.suspects)
        return {kind: counted[kind] for kind in KINDS}


def rank_suspects(
    dataset: DatasetIndex,
    splits: Sequence[str],
    observer: Observer,
    image_size: int,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Predict every image of the splits and rank what contradicts their labels.

    Images are not stored; memory is some 150 bytes a label. progress: called with (images done, images in all). Raises
    what `Observer.observe` raises.
    """
    images = [(split, record) for split in splits for record in dataset.splits[split]]
    records = [record for _, record in images]
    by_image: list[tuple[Rows, Rows]] = [(np.zeros(0, LABEL_FIELDS), np.zeros(0, UNLABELLED_FIELDS))] * len(records)
    for index, observations in observer.observe(records, image_size, batch_size, progress):
        by_image[index] = evidence(records[index], observations, len(dataset.class_names), index)
    labels = np.concatenate([np.zeros(0, LABEL_FIELDS), *(rows for rows, _ in by_image)])
    unlabelled = np.concatenate([np.zeros(0, UNLABELLED_FIELDS), *(rows for _, rows in by_image)])
    return Ranking(suspects_of(labels, unlabelled, images, dataset.class_names), len(records), len(labels))


def suspects_of(
    labels: Rows, unlabelled: Rows, images: Sequence[tuple[str, Record]], class_names: Sequence[str]
) -> tuple[Suspect, ...]:
    """The suspects in order, of the evidence about all images; images: (split, record) of each image number.

    Each label is listed once, with its strongest kind, and only from a score of 0.05. Equal scores are ordered by
    image, then labels in their order before detections in theirs: the order depends on the evidence alone.
    """
    scores = label_scores(labels)
    kinds: list[LabelKind] = list(scores.by_kind)
    table = np.stack([scores.by_kind[kind] for kind in kinds], axis=1)
    missing = missing_scores(unlabelled, labels)
    rows = [
        (-float(of_rows[number]), int(evidence_rows["image"][number]), is_missing, number)
        for is_missing, (of_rows, evidence_rows) in enumerate(
            ((table.max(axis=1, initial=0.0), labels), (missing, unlabelled))
        )
        for number in np.nonzero(of_rows >= _LEAST_SCORE)[0].tolist()
    ]
    suspects: list[Suspect] = []
    counted: Counter[SuspectKind] = Counter()
    for negative, image, is_missing, number in sorted(rows):
        split, record = images[image]
        if is_missing:
            suspect = _missing(unlabelled[number], -negative, split, record, class_names)
        else:
            kind = kinds[int(table[number].argmax())]
            reason = _label_reason(kind, labels[number], scores, number, record, class_names)
            suspect = _suspect(kind, labels[number], -negative, split, record, reason)
        counted[suspect.kind] += 1
        suspects.append(replace(suspect, rank=len(suspects) + 1, kind_rank=counted[suspect.kind]))
    return tuple(suspects)


def _missing(row: Any, score: float, split: str, record: Record, class_names: Sequence[str]) -> Suspect:
    class_id, seen, iou = int(row["class_id"]), float(row["score"]), float(row["iou"])
    nearest = f"the nearest label overlaps it by {iou:.2f}" if iou >= 0.005 else "no label touches it"
    reason = f"no label, but {class_names[class_id]} is seen {seen:.2f}; {nearest}"
    box = _as_box(row["found_xyxy"])
    return Suspect("missing", score, split, record.path, "", None, class_id, seen, iou, None, box, reason)


def _suspect(kind: LabelKind, row: Any, score: float, split: str, record: Record, reason: str) -> Suspect:
    label = int(row["label"])
    is_other = kind == "class" or float(row["other"]) > float(row["given"])
    return Suspect(
        kind=kind,
        score=score,
        split=split,
        image=record.path,
        origin=record.origins[label],
        class_id=int(row["class_id"]),
        seen_class=int(row["other_class"] if is_other else row["class_id"]),
        seen_score=float(row["other"] if is_other else row["given"]),
        iou=float(row["iou"]),
        label_xyxy=_as_box(record.boxes_xyxy[label]),
        seen_xyxy=_as_box(row["found_xyxy"]) if row["found"] > 0 else None,
        reason=reason,
    )


def _as_box(box: Any) -> BoxXYXY:
    left, top, right, bottom = (float(edge) for edge in box)
    return left, top, right, bottom


def _label_reason(
    kind: LabelKind, row: Any, scores: LabelScores, number: int, record: Record, class_names: Sequence[str]
) -> str:
    """Why a label is suspected, in words, with the other kinds that are strong, too."""
    name, other = class_names[row["class_id"]], class_names[row["other_class"]]
    given = f"labelled {name} ({row['given']:.2f})"
    found = max(row["given"], row["other"], row["found"])
    reasons: dict[LabelKind, str] = {
        "class": f"labelled {name}, seen as {other} {row['other']:.2f}, as {name} {row['given']:.2f}",
        "spurious": f"labelled {name}, hardly anything is seen there ({found:.2f}; "
        f"usual: {scores.usual_found[number]:.2f})",
        "box": f"{given}, the object found {row['found']:.2f} overlaps by {row['iou']:.2f} "
        f"(usual: {scores.usual_iou[number]:.2f})",
        "loss": f"{given}, costs {row['loss']:.2f} (usual: {scores.usual_loss[number]:.2f})",
    }
    if (twin := int(row["twin"])) >= 0:
        file, _, line = record.origins[twin].rpartition(":")
        twin_name = class_names[record.class_ids[twin]]
        where = f"{twin_name} of {Path(file).name}:{line}"
        reasons["duplicate"] = f"labelled {name}, {where} has nearly the same box (IoU {row['twin_iou']:.2f})"
    # A high loss is no news where something else is.
    seconds = [
        second
        for second, of_kind in scores.by_kind.items()
        if second not in (kind, "loss") and of_kind[number] >= _LEAST_SECOND
    ]
    return "; ".join([reasons[kind], *(f"also {reasons[second]}" for second in seconds)])


def as_csv(suspects: Sequence[Suspect], class_names: Sequence[str], root: Path) -> str:
    """One line a suspect, in order, under a header; boxes in pixels, paths relative to `root` where they lie in it.

    A text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    stream = io.StringIO()
    edges = ("left", "top", "right", "bottom")
    seen_edges = tuple(f"seen_{edge}" for edge in edges)
    first = ("rank", "kind_rank", "kind", "score", "split", "image", "origin", "label_class", "seen_class")
    columns = (*first, "seen_score", "iou", *edges, *seen_edges, "reason")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for suspect in suspects:
        row: dict[str, Any] = {
            "rank": suspect.rank,
            "kind_rank": suspect.kind_rank,
            "kind": suspect.kind,
            "score": f"{suspect.score:.4f}",
            "split": suspect.split,
            "image": _from_root(str(suspect.image), root),
            "origin": _from_root(suspect.origin, root),
            "label_class": "" if suspect.class_id is None else class_names[suspect.class_id],
            "seen_class": "" if suspect.seen_class is None else class_names[suspect.seen_class],
            "seen_score": f"{suspect.seen_score:.4f}",
            "iou": f"{suspect.iou:.4f}",
            "reason": suspect.reason,
        }
        row = {name: f"'{cell}" if str(cell).startswith(_FORMULA_STARTS) else cell for name, cell in row.items()}
        for names, box in ((edges, suspect.label_xyxy), (seen_edges, suspect.seen_xyxy)):
            row |= {name: f"{edge:.1f}" for name, edge in zip(names, box or (), strict=False)}
        writer.writerow(row)
    # File names may carry lone surrogates, which no UTF-8 file can hold.
    return stream.getvalue().encode("utf-8", "replace").decode("utf-8")


def _from_root(path: str, root: Path) -> str:
    """A path, or "file:line", without the dataset's folder where it lies in it."""
    return path.removeprefix(str(root if root.is_dir() else root.parent).rstrip(os.sep) + os.sep)


class Crop(NamedTuple):
    """uri: the JPEG; box_xyxy: the part of the image it shows, whole pixels; width, height: of the JPEG."""

    uri: str
    box_xyxy: tuple[int, int, int, int]
    width: int
    height: int


def make_crops(suspects: Sequence[Suspect], max_bytes: int) -> list[Crop]:
    """The crops of the first suspects, all if they fit within `max_bytes` together, in the finest size that does.

    Every image is decoded once, one at a time. Raises InputError naming an image that can no longer be decoded.
    """
    made: dict[int, list[Crop]] = {}
    by_image: dict[Path, list[int]] = {}
    for number, suspect in enumerate(suspects):
        by_image.setdefault(suspect.image, []).append(number)
    for path, numbers in by_image.items():
        image = decode_image(path)
        for number in numbers:
            made[number] = _crops(image, suspects[number])
    in_order = [made[number] for number in range(len(suspects))]
    for size in range(len(_CROP_SIZES)):
        if sum(len(crops[size].uri) for crops in in_order) <= max_bytes:
            return [crops[size] for crops in in_order]
    coarse = [crops[-1] for crops in in_order]
    num_bytes = np.cumsum([len(crop.uri) for crop in coarse])
    return coarse[: int((num_bytes <= max_bytes).sum())]


def _crops(image: NDArray[np.uint8], suspect: Suspect) -> list[Crop]:
    """One crop of an image (H, W, 3) for each size."""
    height, width = image.shape[:2]
    boxes = [box for box in (suspect.label_xyxy, suspect.seen_xyxy) if box is not None]
    left, top, right, bottom = crop_box(boxes, width, height)
    part = np.ascontiguousarray(image[top:bottom, left:right])
    crops = []
    for side, quality in _CROP_SIZES:
        smaller = shrunk(part, side)
        uri = jpeg_uri(smaller, side, quality)
        crops.append(Crop(uri, (left, top, right, bottom), smaller.shape[1], smaller.shape[0]))
    return crops


def crop_box(boxes_xyxy: Sequence[BoxXYXY], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image of that size to show: all boxes with a margin, not beyond the image, in whole pixels."""
    corners = np.array(boxes_xyxy)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    longest = float((high - low).max())
    margin = max(_MARGIN * longest, (_LEAST_CROP_PX - longest) / 2)
    left, top = (int(edge) for edge in np.floor(np.clip(low - margin, 0, (width - 1, height - 1))))
    right, bottom = (int(edge) for edge in np.ceil(np.clip(high + margin, (left + 1, top + 1), (width, height))))
    return left, top, right, bottom


def suspects_page(
    ranking: Ranking, class_names: Sequence[str], root: Path, title: str, weights: str, top: int = 100
) -> str:
    """The page of the first `top` suspects, as HTML of at most 3 MB: smaller crops, and in the end fewer, keep it so.

    root: the dataset's folder, to which paths are relative; title, weights: names of data and weights. Raises
    InputError when an image can no longer be decoded.
    """
    chosen = ranking.suspects[:top]
    order = {"train": 0, "val": 1, "test": 2}

    def render(crops: Sequence[Crop]) -> str:
        shown = chosen[: len(crops)]
        class_ids = {number for suspect in shown for number in _class_ids(suspect)}
        context = {
            "title": title,
            "weights": weights,
            "ranking": ranking,
            "kinds": KINDS,
            "shown_kinds": Counter(suspect.kind for suspect in shown),
            "splits": sorted({suspect.split for suspect in shown}, key=lambda split: (order.get(split, 3), split)),
            "classes": [(number, class_names[number]) for number in sorted(class_ids)],
            "cards": [_card(suspect, crop, class_names, root) for suspect, crop in zip(shown, crops, strict=True)],
        }
        return render_page("suspects.html.j2", context, styles=("style.css", "suspects.css"), scripts=("suspects.js",))

    # The size of each card beside its picture is known once the page is rendered with empty ones.
    bare = render([Crop("", (0, 0, 1, 1), 1, 1)] * len(chosen))
    return render(make_crops(chosen, max(0, MAX_PAGE_BYTES - len(bare.encode("utf-8")) - 400 * len(chosen))))


def _class_ids(suspect: Suspect) -> list[int]:
    return [number for number in dict.fromkeys((suspect.class_id, suspect.seen_class)) if number is not None]


def _card(suspect: Suspect, crop: Crop, class_names: Sequence[str], root: Path) -> dict[str, Any]:
    """What the template shows of one suspect; boxes in pixels of the crop."""
    left, top, right, bottom = crop.box_xyxy
    x, y = crop.width / (right - left), crop.height / (bottom - top)

    def in_crop(box: BoxXYXY | None) -> dict[str, float] | None:
        if box is None:
            return None
        corner = {"x": (box[0] - left) * x, "y": (box[1] - top) * y}
        sides = {"width": (box[2] - box[0]) * x, "height": (box[3] - box[1]) * y}
        return {name: round(value, 1) for name, value in (corner | sides).items()}

    return {
        "suspect": suspect,
        "crop": crop,
        "label": None if suspect.class_id is None else class_names[suspect.class_id],
        "seen": None if suspect.seen_class is None else class_names[suspect.seen_class],
        "class_ids": " ".join(map(str, _class_ids(suspect))),
        "image": _from_root(str(suspect.image), root),
        "origin": _from_root(suspect.origin, root),
        "label_box": in_crop(suspect.label_xyxy),
        "seen_box": in_crop(suspect.seen_xyxy),
    }
