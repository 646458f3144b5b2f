"""What the page draws of a validation beside its numbers: curves, confusion, the best and the worst images.

Legend: K classes, N detections of an image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchorite.data import Record, decode_image
from anchorite.errors import StorageError
from anchorite.evaluate import ValidationResult
from anchorite.files import write_bytes_atomically, write_text_atomically
from anchorite.jpeg import encode_jpeg, shrunk
from anchorite.metrics import Predictions, Truth, confusion_matrix, detection_curves

DETAILS, EXAMPLES = "validation.json", "examples"
_MOST_OF_A_KIND = 6
_MOST_BOXES = 100  # of an image, of each kind; more cannot be told apart in a small picture
_MAX_SIDE_PX = 640
_JPEG_QUALITY = 80
_CONFUSION_CONFIDENCE = 0.25
_NUM_CONFIDENCES = 101


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an image went at one confidence, at IoU .5: boxes found right, missed, false alarms, as another class."""

    right: int
    missed: int
    false_alarms: int
    confused: int

    @property
    def f1(self) -> float:
        """1 where nothing is wrong, an image without boxes and detections included."""
        wrong = self.missed + self.false_alarms + 2 * self.confused
        return 1.0 if not wrong else 2 * self.right / (2 * self.right + wrong)


def save_details(run_folder: Path, result: ValidationResult, records: Sequence[Record]) -> None:
    """Write validation.json, and into examples/ the plain images that it names; StorageError when the disk refuses.

    records: of the validated split, in the result's order. Raises InputError when an image cannot be decoded any more.
    """
    curves = detection_curves(result.truths, result.predictions, result.class_names)
    at, _ = curves.best_confidence()
    confidence = _CONFUSION_CONFIDENCE if np.isnan(at) else at
    confusion = confusion_matrix(result.truths, result.predictions, result.class_names, _CONFUSION_CONFIDENCE)
    every = (len(curves.confidences) - 1) // (_NUM_CONFIDENCES - 1)
    details = {
        "class_names": list(result.class_names),
        "iou_threshold": curves.iou_threshold,
        "recalls": _rounded(curves.recalls),
        "envelope": [_rounded(row) for row in curves.envelope],
        "confidences": _rounded(curves.confidences[::every]),
        "f1": [_rounded(row) for row in curves.f1[:, ::every]],
        "confusion": {"counts": confusion.counts.tolist(), "confidence": confusion.confidence},
        "examples": {"confidence": round(confidence, 3), "images": _examples(run_folder, result, records, confidence)},
    }
    write_text_atomically(run_folder / DETAILS, json.dumps(details, ensure_ascii=False, allow_nan=False) + "\n")


def judge(truth: Truth, found: Predictions, class_names: Sequence[str], confidence: float) -> Verdict:
    """How one image went."""
    counts = confusion_matrix([truth], [found], class_names, confidence).counts
    right = int(np.trace(counts))
    confused = int(counts[:-1, :-1].sum()) - right
    return Verdict(right, int(counts[:-1, -1].sum()), int(counts[-1, :-1].sum()), confused)


def choose_examples(verdicts: Sequence[Verdict]) -> tuple[list[int], list[int]]:
    """Numbers of the worst images, the worst first, and of the best, the best first: at most 6 each, none twice.

    Of images with equal F1, more wrong boxes are worse, and more right ones better.
    """
    order = sorted(
        range(len(verdicts)),
        key=lambda i: (
            verdicts[i].f1,
            -(verdicts[i].missed + verdicts[i].false_alarms + verdicts[i].confused),
            verdicts[i].right,
        ),
    )
    num_worst = min(_MOST_OF_A_KIND, (len(order) + 1) // 2)
    num_best = min(_MOST_OF_A_KIND, len(order) - num_worst)
    return order[:num_worst], order[len(order) - num_best :][::-1]


def _examples(
    run_folder: Path, result: ValidationResult, records: Sequence[Record], confidence: float
) -> list[dict[str, Any]]:
    verdicts = [
        judge(truth, found, result.class_names, confidence)
        for truth, found in zip(result.truths, result.predictions, strict=True)
    ]
    folder = run_folder / EXAMPLES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.jpg"):
            old.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}") from error
    examples = []
    for kind, chosen in zip(("worst", "best"), choose_examples(verdicts), strict=True):
        for number, index in enumerate(chosen, 1):
            file = f"{kind}-{number:02d}.jpg"
            picture = shrunk(decode_image(records[index].path), _MAX_SIDE_PX)
            write_bytes_atomically(folder / file, encode_jpeg(picture, _JPEG_QUALITY))
            truth, found, verdict = result.truths[index], result.predictions[index], verdicts[index]
            examples.append(
                {
                    "kind": kind,
                    "file": file,
                    "name": records[index].path.name.encode("utf-8", "replace").decode("utf-8"),
                    "width": records[index].width,
                    "height": records[index].height,
                    "f1": round(verdict.f1, 4),
                    "right": verdict.right,
                    "missed": verdict.missed,
                    "false_alarms": verdict.false_alarms,
                    "confused": verdict.confused,
                    "labels": _labels(truth),
                    "found": _found(found, confidence),
                }
            )
    return examples


def _labels(truth: Truth) -> list[dict[str, Any]]:
    """The labelled boxes, first ones first; those that count neither as right nor as wrong are left out."""
    chosen = np.flatnonzero(~truth.ignored)[:_MOST_BOXES]
    return [{"box": _rounded(truth.boxes_xyxy[i], 1), "class": int(truth.class_ids[i])} for i in chosen]


def _found(found: Predictions, confidence: float) -> list[dict[str, Any]]:
    """The detections of that confidence, best first."""
    order = np.argsort(-found.scores, kind="stable")
    chosen = [int(i) for i in order if found.scores[i] >= confidence][:_MOST_BOXES]
    return [
        {"box": _rounded(found.boxes_xyxy[i], 1), "class": int(found.class_ids[i]), "score": float(found.scores[i])}
        for i in chosen
    ]


def _rounded(values: NDArray[np.floating[Any]], digits: int = 4) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), digits) for value in values]
