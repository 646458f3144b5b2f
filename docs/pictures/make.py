"""Draw the pictures of docs/objective.md: `python docs/pictures/make.py` writes .svg files and numbers.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from draw_boxes import draw_anchors, draw_cells, draw_decode, draw_unknown
from draw_curves import draw_balance, draw_gr, draw_precision, draw_smoothing, draw_three_cells
from drawn_numbers import PICTURES, rounded
from style import save

FOLDER = Path(__file__).parent
DRAWINGS = {
    "anchors": draw_anchors,
    "decode": draw_decode,
    "cells": draw_cells,
    "three-cells": draw_three_cells,
    "balance": draw_balance,
    "gr": draw_gr,
    "smoothing": draw_smoothing,
    "precision": draw_precision,
    "unknown": draw_unknown,
}


def mark_of(numbers: Any) -> str:
    """A short hash of one picture's numbers; it stands in the picture, so that a stale one is noticed."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    """Compute, write down and draw."""
    numbers = {name: rounded(compute()) for name, compute in PICTURES.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in numbers.items())
    (FOLDER / "numbers.json").write_text("{\n" + lines + "\n}\n", encoding="ascii")
    for name, draw in DRAWINGS.items():
        save(draw(numbers[name]), FOLDER / f"{name}.svg", mark_of(numbers[name]))


if __name__ == "__main__":
    main()
