"""All suspects of a data set in one order, each with its reason in words.

Legend: K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anchorite.data import DatasetIndex, Record
from anchorite.report.suspects.evidence import LABEL_FIELDS, UNLABELLED_FIELDS, Rows, weigh
from anchorite.report.suspects.looks import Observer, Progress
from anchorite.report.suspects.scoring import Kind, LabelKind, LabelScores, label_scores, missing_scores

KINDS: dict[Kind, str] = {
    "class": "the label's class is not the one that is seen",
    "missing": "something is seen where no label is",
    "spurious": "nothing is seen where the label is",
    "box": "what is seen lies elsewhere than the label",
    "duplicate": "two labels share a place",
    "loss": "the label costs far more than its like",
}
LEAST_SCORE = 0.05
_LEAST_SECOND = 0.25  # a second kind of suspicion is told from this score
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label, or for "missing" a place without one, that the detector contradicts.

    rank, kind_rank: from 1, among all and among its kind; score: 0..1. image: the record's path; origin: "file:line" of
    the label, "" for missing. class_id: of the label, None for missing; seen_class and seen_score: what is seen
    instead, or its own class where that is in doubt; iou: of label and likeliest detection, for missing of the
    detection and the nearest label. label_xyxy, seen_xyxy: in pixels of the image as displayed. reason: one line.
    """

    kind: Kind
    score: float
    split: str
    image: Path
    origin: str
    class_id: int | None
    seen_class: int | None
    seen_score: float
    iou: float
    label_xyxy: _Box | None
    seen_xyxy: _Box | None
    reason: str
    rank: int = 0
    kind_rank: int = 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Suspects in order, the worst first, out of so many images and labels (ignored ones not counted)."""

    suspects: tuple[Suspect, ...]
    num_images: int
    num_labels: int

    def counts(self) -> dict[Kind, int]:
        """How many there are of each kind, in the order of KINDS."""
        counted = Counter(suspect.kind for suspect in self.suspects)
        return {kind: counted[kind] for kind in KINDS}


def rank_suspects(
    dataset: DatasetIndex,
    splits: Sequence[str],
    observer: Observer,
    image_size: int,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Ranking:
    """Look at every image of the splits and rank what contradicts their labels.

    Images are decoded on the way; what is kept of each label is some 150 bytes. progress: called with (images done,
    images in all). Raises what `Observer.looks` raises.
    """
    places = [(split, record) for split in splits for record in dataset.splits[split]]
    records = [record for _, record in places]
    num_classes = len(dataset.class_names)
    by_image: list[tuple[Rows, Rows]] = [(np.zeros(0, LABEL_FIELDS), np.zeros(0, UNLABELLED_FIELDS))] * len(records)
    for index, looks in observer.looks(records, image_size, batch_size, progress):
        by_image[index] = weigh(records[index], looks, num_classes, index)
    labels = np.concatenate([np.zeros(0, LABEL_FIELDS), *(rows for rows, _ in by_image)])
    unlabelled = np.concatenate([np.zeros(0, UNLABELLED_FIELDS), *(rows for _, rows in by_image)])
    suspects = suspects_of(labels, unlabelled, places, dataset.class_names)
    return Ranking(suspects, len(records), len(labels))


def suspects_of(
    labels: Rows, unlabelled: Rows, places: Sequence[tuple[str, Record]], class_names: Sequence[str]
) -> tuple[Suspect, ...]:
    """The suspects in order, of the evidence about all images; places: (split, record) of each image number.

    Each label stands there once, with its strongest kind, and only from a score of 0.05. Equal scores go by image, then
    labels in their order before detections in theirs: the order depends on nothing but the evidence.
    """
    scores = label_scores(labels)
    kinds: list[LabelKind] = list(scores.by_kind)
    table = np.stack([scores.by_kind[kind] for kind in kinds], axis=1)
    strongest = table.argmax(axis=1)
    rows: list[tuple[float, int, int, int]] = []
    for number in np.nonzero(table.max(axis=1, initial=0.0) >= LEAST_SCORE)[0].tolist():
        rows.append((-float(table[number].max()), int(labels["image"][number]), 0, number))
    of_missing = missing_scores(unlabelled, labels)
    for number in np.nonzero(of_missing >= LEAST_SCORE)[0].tolist():
        rows.append((-float(of_missing[number]), int(unlabelled["image"][number]), 1, number))
    suspects: list[Suspect] = []
    counted: Counter[Kind] = Counter()
    for negative, image, is_missing, number in sorted(rows):
        split, record = places[image]
        if is_missing:
            suspect = _missing(unlabelled[number], -negative, split, record, class_names)
        else:
            kind = kinds[strongest[number]]
            suspect = _suspect(kind, labels[number], -negative, split, record, _Words(scores, number, class_names))
        counted[suspect.kind] += 1
        suspects.append(replace(suspect, rank=len(suspects) + 1, kind_rank=counted[suspect.kind]))
    return tuple(suspects)


def _missing(row: Any, score: float, split: str, record: Record, class_names: Sequence[str]) -> Suspect:
    class_id, seen, iou = int(row["class_id"]), float(row["score"]), float(row["iou"])
    nearest = f"the nearest label overlaps it by {iou:.2f}" if iou >= 0.005 else "no label touches it"
    reason = f"no label, but {class_names[class_id]} is seen {seen:.2f}; {nearest}"
    box = _as_box(row["found_xyxy"])
    return Suspect("missing", score, split, record.path, "", None, class_id, seen, iou, None, box, reason)


def _suspect(kind: LabelKind, row: Any, score: float, split: str, record: Record, words: _Words) -> Suspect:
    label = int(row["label"])
    is_other = kind == "class" or float(row["other"]) > float(row["given"])
    reasons = [words.reason(kind, row, record)]
    reasons += [f"also {words.reason(second, row, record)}" for second in words.seconds(kind)]
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
        reason="; ".join(reasons),
    )


@dataclass(frozen=True, slots=True)
class _Words:
    """Reasons in words for one label, `number` among the scores."""

    scores: LabelScores
    number: int
    class_names: Sequence[str]

    def seconds(self, first: LabelKind) -> list[LabelKind]:
        """The other kinds that are strong, too; a high loss is no news where something else is."""
        return [
            kind
            for kind, scores in self.scores.by_kind.items()
            if kind not in (first, "loss") and scores[self.number] >= _LEAST_SECOND
        ]

    def reason(self, kind: LabelKind, row: Any, record: Record) -> str:
        """Why a label is suspected of one kind."""
        scores, number = self.scores, self.number
        name, other = self.class_names[row["class_id"]], self.class_names[row["other_class"]]
        given = f"labelled {name} ({row['given']:.2f})"
        if kind == "class":
            return f"labelled {name}, seen as {other} {row['other']:.2f}, as {name} {row['given']:.2f}"
        if kind == "spurious":
            found = max(row["given"], row["other"], row["found"])
            return (
                f"labelled {name}, hardly anything is seen there ({found:.2f}; usual: {scores.usual_found[number]:.2f})"
            )
        if kind == "box":
            usual = scores.usual_iou[number]
            return f"{given}, the object found {row['found']:.2f} overlaps by {row['iou']:.2f} (usual: {usual:.2f})"
        if kind == "duplicate":
            twin = int(row["twin"])
            twin_name = self.class_names[record.class_ids[twin]]
            where = Path(record.origins[twin].rpartition(":")[0]).name + ":" + record.origins[twin].rpartition(":")[2]
            return f"labelled {name}, {twin_name} of {where} has nearly the same box (IoU {row['twin_iou']:.2f})"
        return f"{given}, costs {row['loss']:.2f} (usual: {scores.usual_loss[number]:.2f})"


def _as_box(box: Any) -> _Box:
    left, top, right, bottom = (float(edge) for edge in box)
    return left, top, right, bottom
