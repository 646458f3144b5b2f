"""Suspect labels: those that a detector, trained on this very data or not, contradicts; ranked, as page and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anchorite.data import DatasetIndex, Record, decode_image
from anchorite.jpeg import shrunk
from anchorite.predict import TorchRuntime
from anchorite.report.page import MAX_PAGE_BYTES, jpeg_uri, render_page
from anchorite.report.suspects_evidence import EVIDENCE, Rows, SuspectKind, evidence, observe, score_evidence

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
_LEAST_SECOND = 0.25  # from this score another kind of suspicion is reported, too
# Longer side of a crop in pixels and JPEG quality, from fine to coarse; the first that fits is taken.
_CROP_SIZES = ((320, 82), (256, 75), (192, 68), (128, 60))
_MARGIN = 0.45  # around the boxes, of their longer side: the surroundings decide many a case
_LEAST_CROP_PX = 32
_MOST_NAMED = 5  # classes that a source does not cover
# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_EDGES = ("left", "top", "right", "bottom")
_COLUMNS = (
    *("rank", "kind_rank", "kind", "score", "split", "image", "origin", "label_class", "seen_class", "seen_score"),
    *("iou", *_EDGES, *(f"seen_{edge}" for edge in _EDGES), "reason"),
)
_SPLIT_ORDER = ("train", "val", "test")


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
    seen_class: int
    seen_score: float
    iou: float
    label_xyxy: BoxXYXY | None
    seen_xyxy: BoxXYXY | None
    reason: str
    rank: int
    kind_rank: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Suspects in order, the worst first, out of so many images and labels (ignored ones not counted).

    unknown: sentences on what labels do not know, so that nothing there is suspect.
    """

    suspects: tuple[Suspect, ...]
    num_images: int
    num_labels: int
    unknown: tuple[str, ...] = ()

    def counts(self) -> dict[SuspectKind, int]:
        """How many there are of each kind, in the order of KINDS."""
        counted = Counter(suspect.kind for suspect in self.suspects)
        return {kind: counted[kind] for kind in KINDS}


def rank_suspects(
    dataset: DatasetIndex,
    splits: Sequence[str],
    runtime: TorchRuntime,
    image_size: int,
    batch_size: int = 16,
    *,
    mirrored: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Predict every image of the splits and rank what contradicts their labels.

    mirrored: look at each image's mirror image, too. Images are not stored; memory is some 150 bytes a label. progress:
    called with (images done, images in all). Raises what `observe` raises.
    """
    images = [(split, record) for split in splits for record in dataset.splits[split]]
    records = [record for _, record in images]
    by_image = [np.zeros(0, EVIDENCE)] * len(records)
    observed = observe(runtime, records, image_size, batch_size, mirrored=mirrored, progress=progress)
    for index, observations in observed:
        by_image[index] = evidence(records[index], observations, len(dataset.class_names), index)
    rows = np.concatenate([np.zeros(0, EVIDENCE), *by_image])
    num_labels = int((rows["label"] >= 0).sum())
    suspects = suspects_of(rows, images, dataset.class_names)
    return Ranking(suspects, len(records), num_labels, _unknown(records, dataset.class_names))


def _unknown(records: Sequence[Record], class_names: Sequence[str]) -> tuple[str, ...]:
    """What labels of these images do not know, and what is not suspected therefore, a sentence each."""
    regions = sum(int(record.ignored.sum()) for record in records)
    weights = np.concatenate([np.ones(0), *(record.weights[~record.ignored] for record in records)])
    sources = Counter(record.source for record in records)
    sentences = []
    if regions:
        sentences.append(f"ignored regions: {regions}; what is seen in one is no missing label")
    if num_weighted := int((weights < 1).sum()):
        mean = weights[weights < 1].mean()
        sentences.append(
            f"labels that count less than 1: {num_weighted} (mean {mean:.2f}); scores are multiplied by what they count"
        )
    for source, count in sources.items():
        where = f"{count} image{'' if count == 1 else 's'}{f' of {source.name}' if source.name else ''}"
        if source.background_weight < 1:
            weight = f"{source.background_weight:g}"
            sentences.append(f"background that counts {weight}: {where}; labels may be missing there, none is reported")
        elif source.covered is not None and not all(source.covered):
            others = [name for name, flag in zip(class_names, source.covered, strict=True) if not flag]
            shown = ", ".join(others[:_MOST_NAMED]) + (", ..." if len(others) > _MOST_NAMED else "")
            sentences.append(f"classes not covered: {shown} in {where}; none of these is reported as missing")
    return tuple(sentences)


def suspects_of(rows: Rows, images: Sequence[tuple[str, Record]], class_names: Sequence[str]) -> tuple[Suspect, ...]:
    """The suspects in order, of the evidence about all images; images: (split, record) of each image number.

    Each label is listed once, with its strongest kind, and only from a score of 0.05. Equal scores are ordered by
    image, then labels in their order before detections in theirs: the order depends on the evidence alone.
    """
    by_kind, usual = score_evidence(rows)
    table = np.stack([by_kind[kind] for kind in KINDS], axis=1)
    scores = table.max(axis=1)
    order = np.lexsort((rows["label"] < 0, rows["image"], -scores))
    suspects: list[Suspect] = []
    counted: Counter[SuspectKind] = Counter()
    for number in order[scores[order] >= _LEAST_SCORE].tolist():
        row, kind = rows[number], list(KINDS)[int(table[number].argmax())]
        counted[kind] += 1
        split, record = images[row["image"]]
        label, is_missing = int(row["label"]), kind == "missing"
        is_other = kind == "class" or row["other"] > row["given"]
        # A high loss is no news where something else is.
        others = [one for one in KINDS if one not in (kind, "loss") and by_kind[one][number] >= _LEAST_SECOND]
        count = "" if row["weight"] == 1 else f" (it counts {row['weight']:.2f})"
        reasons = _reasons(row, {name: values[number] for name, values in usual.items()}, record, class_names)
        suspects.append(
            Suspect(
                kind=kind,
                score=float(scores[number]),
                split=split,
                image=record.path,
                origin="" if is_missing else record.origins[label],
                class_id=None if is_missing else int(row["class_id"]),
                seen_class=int(row["other_class"] if is_other else row["class_id"]),
                seen_score=float(row["found"] if is_missing else row["other"] if is_other else row["given"]),
                iou=float(row["iou"]),
                label_xyxy=None if is_missing else tuple(record.boxes_xyxy[label].tolist()),
                seen_xyxy=tuple(row["found_xyxy"].tolist()) if row["found"] > 0 else None,
                reason="; ".join([reasons[kind], *(f"also {reasons[one]}" for one in others)]) + count,
                rank=len(suspects) + 1,
                kind_rank=counted[kind],
            )
        )
    return tuple(suspects)


def _reasons(row: Any, usual: dict[str, float], record: Record, class_names: Sequence[str]) -> dict[SuspectKind, str]:
    """Why a label, or a detection without one, would be suspected of each kind, in words."""
    name, other = class_names[row["class_id"]], class_names[row["other_class"]]
    given = f"labelled {name} ({row['given']:.2f})"
    nearest = f"the nearest label overlaps it by {row['iou']:.2f}" if row["iou"] >= 0.005 else "no label touches it"
    found = max(row["given"], row["other"], row["found"])
    reasons: dict[SuspectKind, str] = {
        "class": f"labelled {name}, seen as {other} {row['other']:.2f}, as {name} {row['given']:.2f}",
        "missing": f"no label, but {name} is seen {row['found']:.2f}; {nearest}",
        "spurious": f"labelled {name}, hardly anything is seen there ({found:.2f}; usual: {usual['found']:.2f})",
        "box": f"{given}, the object found {row['found']:.2f} overlaps by {row['iou']:.2f} (usual: {usual['iou']:.2f})",
        "loss": f"{given}, costs {row['loss']:.2f} (usual: {usual['loss']:.2f})",
    }
    if (twin := int(row["twin"])) >= 0:
        file, _, line = record.origins[twin].rpartition(":")
        where = f"{class_names[record.class_ids[twin]]} of {Path(file).name}:{line}"
        reasons["duplicate"] = f"labelled {name}, {where} has nearly the same box (IoU {row['twin_iou']:.2f})"
    return reasons


def as_csv(suspects: Sequence[Suspect], class_names: Sequence[str], root: Path) -> str:
    """One line a suspect, in order, under a header; boxes in pixels, paths relative to `root` where they lie in it.

    A text that a spreadsheet would take for a formula gets a leading apostrophe.
    """

    def box(box_xyxy: BoxXYXY | None) -> list[str]:
        return [""] * 4 if box_xyxy is None else [f"{edge:.1f}" for edge in box_xyxy]

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in suspects:
        places = one.split, _from_root(str(one.image), root), _from_root(one.origin, root)
        label, seen = "" if one.class_id is None else class_names[one.class_id], class_names[one.seen_class]
        *texts, reason = [
            f"'{text}" if text.startswith(_FORMULA_STARTS) else text for text in (*places, label, seen, one.reason)
        ]
        first = [one.rank, one.kind_rank, one.kind, f"{one.score:.4f}", *texts]
        seen_cells = [f"{one.seen_score:.4f}", f"{one.iou:.4f}"]
        writer.writerow([*first, *seen_cells, *box(one.label_xyxy), *box(one.seen_xyxy), reason])
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
    by_image: dict[Path, list[int]] = {}
    for number, suspect in enumerate(suspects):
        by_image.setdefault(suspect.image, []).append(number)
    in_order: list[list[Crop]] = [[] for _ in suspects]  # of each suspect a crop a size
    for path, numbers in by_image.items():
        image = decode_image(path)
        for number in numbers:
            boxes = [box for box in (suspects[number].label_xyxy, suspects[number].seen_xyxy) if box is not None]
            left, top, right, bottom = crop_box(boxes, image.shape[1], image.shape[0])
            part = np.ascontiguousarray(image[top:bottom, left:right])
            for side, quality in _CROP_SIZES:
                smaller = shrunk(part, side)
                uri = jpeg_uri(smaller, side, quality)
                in_order[number].append(Crop(uri, (left, top, right, bottom), smaller.shape[1], smaller.shape[0]))
    for size in range(len(_CROP_SIZES)):
        num_bytes = np.cumsum([len(crops[size].uri) for crops in in_order])
        count = int((num_bytes <= max_bytes).sum())
        if count == len(suspects):
            break
    return [crops[size] for crops in in_order[:count]]


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

    def render(crops: Sequence[Crop]) -> str:
        """The page of as many suspects as there are crops."""
        shown = chosen[: len(crops)]
        splits = {one.split for one in shown}
        class_ids = {one.class_id for one in shown if one.class_id is not None} | {one.seen_class for one in shown}
        context = {
            "title": title,
            "weights": weights,
            "ranking": ranking,
            "kinds": KINDS,
            "shown_kinds": Counter(one.kind for one in shown),
            "splits": [*(name for name in _SPLIT_ORDER if name in splits), *sorted(splits.difference(_SPLIT_ORDER))],
            "class_ids": sorted(class_ids),
            "class_names": class_names,
            "cards": list(zip(shown, crops, strict=True)),
            "from_root": lambda path: _from_root(str(path), root),
        }
        return render_page("suspects.html.j2", context, styles=("style.css", "suspects.css"), scripts=("suspects.js",))

    # The size of each card beside its picture is known once the page is rendered with empty ones.
    bare = render([Crop("", (0, 0, 1, 1), 1, 1)] * len(chosen))
    return render(make_crops(chosen, max(0, MAX_PAGE_BYTES - len(bare.encode("utf-8")) - 400 * len(chosen))))
