"""The ranking as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from anchorite.report.suspects.ranking import Suspect

COLUMNS = (
    *(
        "rank",
        "kind_rank",
        "kind",
        "score",
        "split",
        "image",
        "origin",
        "label_class",
        "seen_class",
        "seen_score",
        "iou",
    ),
    *("left", "top", "right", "bottom", "seen_left", "seen_top", "seen_right", "seen_bottom", "reason"),
)
# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def as_csv(suspects: Sequence[Suspect], class_names: Sequence[str], root: Path) -> str:
    """One line a suspect, in order, under a header; boxes in pixels, paths from `root` where they lie in it.

    A text that a spreadsheet would take for a formula has an apostrophe in front.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for suspect in suspects:
        writer.writerow(_row(suspect, class_names, root))
    # File names may carry lone surrogates, which no UTF-8 file can hold.
    return stream.getvalue().encode("utf-8", "replace").decode("utf-8")


def from_root(path: str, root: Path) -> str:
    """A path, or "file:line", without the data set's folder where it lies in it."""
    prefix = str(root if root.is_dir() else root.parent).rstrip(os.sep) + os.sep
    return path.removeprefix(prefix)


def _row(suspect: Suspect, class_names: Sequence[str], root: Path) -> list[str | int]:
    def name(class_id: int | None) -> str:
        return "" if class_id is None else _text(class_names[class_id])

    def corners(box: tuple[float, float, float, float] | None) -> list[str]:
        return [""] * 4 if box is None else [f"{edge:.1f}" for edge in box]

    return [
        suspect.rank,
        suspect.kind_rank,
        suspect.kind,
        f"{suspect.score:.4f}",
        _text(suspect.split),
        _text(from_root(str(suspect.image), root)),
        _text(from_root(suspect.origin, root)),
        name(suspect.class_id),
        name(suspect.seen_class),
        f"{suspect.seen_score:.4f}",
        f"{suspect.iou:.4f}",
        *corners(suspect.label_xyxy),
        *corners(suspect.seen_xyxy),
        _text(suspect.reason),
    ]


def _text(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA_STARTS) else text
