"""What a validation measured, made ready to be shown: the twelve COCO numbers, each class, curves and confusion.

Legend: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchorite.report.curves import format_number
from anchorite.report.overlay import Line, Overlay, make_overlay
from anchorite.report.run_files import RunFiles

COCO_NUMBERS = (
    ("map", "mAP", "AP averaged over IoU .50 to .95 and all classes"),
    ("map50", "mAP50", "AP at IoU .50"),
    ("map75", "mAP75", "AP at IoU .75"),
    ("map_small", "mAP small", "objects under 32 x 32 pixels"),
    ("map_medium", "mAP medium", "objects from 32 x 32 to 96 x 96 pixels"),
    ("map_large", "mAP large", "objects over 96 x 96 pixels"),
    ("ar_1", "AR 1", "average recall with the best detection of each image and class"),
    ("ar_10", "AR 10", "average recall with the best 10"),
    ("ar_100", "AR 100", "average recall with the best 100"),
    ("ar_small", "AR small", "average recall of small objects"),
    ("ar_medium", "AR medium", "average recall of medium objects"),
    ("ar_large", "AR large", "average recall of large objects"),
)
_MOST_LINES = 16  # of one chart; of more classes, the worst and the best
_MOST_CONFUSED = 24  # rows of the matrix; of more classes, those with most errors
_MOST_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Cell:
    """A count of the matrix, how dark it is (0 to 10, by its share of the row), and the words that hovering shows."""

    count: int
    shade: int
    right: bool
    words: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """names: of the rows, which are the columns, too, the last one the background; note: what was left out."""

    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str


def best_epoch(files: RunFiles) -> int | None:
    """The row of the metrics with the highest mAP, the first of equals; None where there is none."""
    scores = files.metrics.get("val/map", [])
    finite = [row for row, score in enumerate(scores) if math.isfinite(score)]
    return max(finite, key=lambda row: (scores[row], -row)) if finite else None


def coco_table(files: RunFiles) -> dict[str, Any] | None:
    """The twelve numbers of the best and of the last epoch as rows of texts; None without any."""
    row = best_epoch(files)
    if row is None:
        return None
    last = len(files.epochs) - 1
    rows = []
    for key, title, meaning in COCO_NUMBERS:
        column = files.metrics.get(f"val/{key}")
        if column is not None:
            rows.append((title, decimals(column[row]), decimals(column[last]), meaning))
    return {"best": format_number(files.epochs[row]), "last": format_number(files.epochs[last]), "rows": rows}


def class_table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a class from the section best_validation; empty where it is missing or of another shape."""
    try:
        classes = summary["best_validation"]["metrics"]["classes"]
        return [
            {
                "name": str(one["name"]),
                "images": int(one["num_images"]),
                "labels": int(one["num_truths"]),
                "ap": decimals(one["ap"]),
                "ap50": decimals(one["ap50"]),
                "share": round(100 * (one["ap"] or 0.0)),
            }
            for one in classes[:_MOST_CLASSES]
        ]
    except (KeyError, TypeError, ValueError):
        return []


def validation_charts(details: dict[str, Any]) -> list[Overlay]:
    """Precision over recall and F1 over confidence, a line a class and their mean; empty where there is none."""
    try:
        names = [str(name) for name in details["class_names"]]
        limit = details["iou_limit"] if "iou_limit" in details else details["iou_threshold"]  # its name in older runs
        envelope, f1 = _matrix(details["envelope"]), _matrix(details["f1"])
        charts = [
            _class_chart(
                f"Precision over recall at IoU {limit:g}",
                "AP",
                "recall",
                names,
                details["recalls"],
                envelope,
                _means(envelope),
            ),
            _class_chart(
                f"F1 over confidence at IoU {limit:g}",
                "best F1",
                "confidence",
                names,
                details["confidences"],
                f1,
                _highest(f1),
            ),
        ]
    except (KeyError, TypeError, ValueError, IndexError):
        return []
    return [chart for chart in charts if chart is not None]


def confusion_table(details: dict[str, Any]) -> Matrix | None:
    """The confusion matrix, of many classes those with the most errors; None where there is none."""
    try:
        names = [str(name) for name in details["class_names"]] + ["background"]
        counts = np.array(details["confusion"]["counts"], dtype=np.int64)
        confidence = float(details["confusion"]["confidence"])
        if counts.shape != (len(names), len(names)):
            return None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    note = f"Detections of confidence {confidence:g} or more, at IoU .5."
    background = len(names) - 1
    chosen = list(range(len(names)))
    if background > _MOST_CONFUSED:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        chosen = [*sorted(np.argsort(-errors[:-1], kind="stable")[:_MOST_CONFUSED].tolist()), background]
        note += f" Shown are the {_MOST_CONFUSED} of {background} classes with the most errors."
    rows = tuple(tuple(_cell(counts, names, i, j) for j in chosen) for i in chosen)
    return Matrix(tuple(names[i] for i in chosen), rows, note)


def decimals(value: Any) -> str:
    """A score to four decimals, "-" where there is none."""
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _cell(counts: NDArray[np.int64], names: Sequence[str], i: int, j: int) -> Cell:
    count, total, background = int(counts[i, j]), int(counts[i].sum()), len(names) - 1
    share = count / total if total else 0.0
    shade = 0 if not count else max(1, round(10 * share))
    if i == background:
        words = f"{count} x {names[j]} found where nothing is labelled"
    elif j == background:
        words = f"{names[i]}: {count} of {total} missed"
    elif i == j:
        words = f"{names[i]}: {count} of {total} found"
    else:
        words = f"{names[i]}: {count} of {total} taken for {names[j]}"
    return Cell(count, shade, i == j and i != background, words)


def _class_chart(
    title: str,
    measure: str,
    x_name: str,
    names: Sequence[str],
    xs: Sequence[float],
    rows: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> Overlay | None:
    """A line a class with its score, under a strong one for the mean of the classes."""
    labelled = [k for k in range(len(names)) if math.isfinite(scores[k])]
    if not labelled:
        return None
    mean = np.nanmean(rows[labelled], axis=0)
    best_first = sorted(labelled, key=lambda k: -scores[k])
    half = _MOST_LINES // 2
    chosen = best_first if len(best_first) <= _MOST_LINES else [*best_first[:half], *best_first[-half:]]
    overall = mean.mean() if measure == "AP" else mean.max()
    lines = [Line(names[k], xs, rows[k].tolist(), f"{scores[k]:.3f}") for k in chosen]
    lines.append(Line("mean of classes", xs, mean.tolist(), f"{overall:.3f}", strong=True))
    note = "" if len(chosen) == len(labelled) else f"the {half} best and the {half} worst of {len(labelled)} classes"
    return make_overlay(f"{title} ({measure})", lines, x_name=x_name, note=note, y_range=(0.0, 1.0))


def _matrix(rows: Any) -> NDArray[np.float64]:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows.mean(axis=1))


def _highest(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, nan where it has none."""
    return np.where(np.isnan(rows).all(axis=1), np.nan, np.nan_to_num(rows, nan=-1.0).max(axis=1))
