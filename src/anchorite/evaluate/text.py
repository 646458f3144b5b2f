"""Columns of text that line up in a terminal, whatever script a class name is in."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_LONGEST_CELL = 40


def aligned_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as text: the first column to the left, the others to the right.

    Characters that would move the cursor or change colours are shown as spaces.
    """
    cells = [[_printable(cell) for cell in line] for line in lines]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) if column == 0 else " " * (width - _width(cell)) + cell
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _printable(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= _LONGEST_CELL else shown[: _LONGEST_CELL - 3] + "..."


def _width(text: str) -> int:
    """Columns a terminal gives a text: two for wide letters, none for marks that sit on the letter before."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)
