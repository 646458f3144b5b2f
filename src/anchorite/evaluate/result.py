"""`ValidationResult`: what a validation measured, as numbers, as text and as plots, and how long its parts took.

Legend: K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from rich.cells import cell_len

from anchorite.files import StrPath, make_folder
from anchorite.metrics import (
    CocoMetrics,
    Curves,
    Predictions,
    Truth,
    confusion_matrix,
    detection_curves,
    save_confusion_matrix,
    save_f1_curve,
    save_pr_curve,
)
from anchorite.reading import filled

_LONGEST_CELL = 40
_MOST_NAMED = 10  # classes that only some labels cover


class ValidationSpeed(NamedTuple):
    """Seconds spent on each part of a validation, and images a second from pixels to boxes (data, forward and NMS)."""

    images_per_second: float
    seconds_data: float
    seconds_forward: float
    seconds_nms: float
    seconds_loss: float
    seconds_metrics: float


class Stopwatch:
    """Adds up wall-clock seconds by name; the caller sees to it that the device has finished."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` block to `name`."""
        start = perf_counter()
        yield
        self._seconds[name] += perf_counter() - start

    def speed(self, num_images: int) -> ValidationSpeed:
        """What was measured so far, for so many images."""
        data, forward, nms, *others = (self._seconds[name] for name in ("data", "forward", "nms", "loss", "metrics"))
        return ValidationSpeed(num_images / max(data + forward + nms, 1e-9), data, forward, nms, *others)


class ValidationLosses(NamedTuple):
    """Means over all images, with their gains, without the factor B."""

    box: float
    objectness: float
    classification: float


@dataclass(frozen=True)
class ValidationResult:
    """One validation. losses: None unless a criterion was given; truths, predictions: one an image, in the
    records' order, boxes in pixels of the original images.
    """

    metrics: CocoMetrics
    losses: ValidationLosses | None
    truths: tuple[Truth, ...]
    predictions: tuple[Predictions, ...]
    class_names: tuple[str, ...]
    speed: ValidationSpeed

    @cached_property
    def curves(self) -> Curves:
        """Precision, recall and F1 of each class, at IoU .5."""
        return detection_curves(self.truths, self.predictions, self.class_names)

    def rows(self) -> Iterator[tuple[str, float]]:
        """Every number as (name, value), always the same names in the same order; nan where nothing is to measure."""
        losses = {} if self.losses is None else self.losses._asdict()
        for name, value in [*self.metrics.rows(), *losses.items(), *self.speed._asdict().items()]:
            yield f"val/{name}", value

    def to_json(self) -> dict[str, Any]:
        """Everything but the boxes in plain types, None for nan; images_covering: None where all labels cover all."""
        covering = self.images_covering()
        best = self.curves.best_confidence()
        confidence, f1 = (None if math.isnan(value) else value for value in best)
        return {
            "images": len(self.truths),
            "images_covering": covering
            if min(covering.values(), default=len(self.truths)) < len(self.truths)
            else None,
            "metrics": self.metrics.to_dict(),
            "best_f1": {"f1": f1, "confidence": confidence},
            "losses": None if self.losses is None else self.losses._asdict(),
            "speed": self.speed._asdict(),
        }

    def save_plots(self, folder: StrPath, confidence: float = 0.25) -> list[Path]:
        """Write pr_curve.png, f1_curve.png and confusion_matrix.png (at `confidence`) into a folder, made if need be.

        Returns their paths; raises StorageError when the folder cannot be written.
        """
        folder = Path(folder)
        make_folder(folder)
        paths = [folder / name for name in ("pr_curve.png", "f1_curve.png", "confusion_matrix.png")]
        save_pr_curve(paths[0], self.curves)
        save_f1_curve(paths[1], self.curves)
        save_confusion_matrix(paths[2], confusion_matrix(self.truths, self.predictions, self.class_names, confidence))
        return paths

    def images_covering(self) -> dict[str, int]:
        """Of each class, on how many images it was measured: those whose labels cover it."""
        flags = [truth.covered for truth in self.truths if truth.covered is not None]
        lacks = np.sum(flags, axis=0) - len(flags) if flags else np.zeros(len(self.class_names))
        return {name: len(self.truths) + int(lack) for name, lack in zip(self.class_names, lacks, strict=True)}

    def table(self) -> str:
        """A plain text table, a line for each class under one for all, with the other COCO numbers and the speed below.

        F1 is the best at IoU .5, `at` the confidence where it is reached.
        """
        metrics, curves = self.metrics, self.curves
        num_labels = sum(one.num_truths for one in metrics.classes)
        confidence, f1 = curves.best_confidence()
        rows = [("all", len(self.truths), num_labels, metrics.map, metrics.map50, f1, confidence)]
        for one, (confidence, f1) in zip(metrics.classes, curves.best_confidences(), strict=True):
            rows.append((one.name, one.num_images, one.num_truths, one.ap, one.ap50, f1, confidence))
        lines: list[tuple[str, ...]] = [("class", "images", "labels", "AP", "AP50", "F1", "at")]
        for name, images, labels, *rest in rows:
            decimals = ("-" if math.isnan(value) else f"{value:.4f}" for value in rest)
            lines.append((name, str(images), str(labels), *decimals))
        facts = {"table": aligned_table(lines), "metrics": metrics, "speed": self.speed, "losses": self.losses}
        facts["num_ignored"] = sum(int(truth.ignored.sum()) for truth in self.truths)
        partly = [(name, number) for name, number in self.images_covering().items() if number < len(self.truths)]
        facts |= {"partly": partly[:_MOST_NAMED], "num_more": len(partly[_MOST_NAMED:]), "num_images": len(self.truths)}
        return filled("evaluate", "validation", facts).rstrip()


def aligned_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as text: the first column to the left, the others to the right.

    Characters that would move the cursor or change colours are shown as spaces, long cells are cut.
    """

    def shown(cell: str) -> str:
        text = "".join(letter if letter.isprintable() else " " for letter in cell)
        return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + "..."

    cells = [[shown(cell) for cell in line] for line in lines]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    gaps = [[" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return "\n".join(
        "  ".join([line[0] + gap[0], *(gap + cell for gap, cell in zip(gap[1:], line[1:], strict=True))])
        for line, gap in zip(cells, gaps, strict=True)
    )
