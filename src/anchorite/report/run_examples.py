"""The best and the worst images of a validation, with their labels and detections over them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from anchorite.report.pictures import make_gallery
from anchorite.report.run_files import RunFiles

_NAME = re.compile(r"(worst|best)-[0-9]{2}\.jpg")
_MOST = 12


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the pixels of the image and the words on it; label_x, label_y: where they begin."""

    x: float
    y: float
    width: float
    height: float
    words: str
    label_x: float
    label_y: float


@dataclass(frozen=True, slots=True)
class Example:
    """An image of the split with its boxes; unit: what a hundredth of its longer side is, in its pixels."""

    kind: str
    name: str
    uri: str
    width: int
    height: int
    unit: float
    words: str
    labels: tuple[Box, ...]
    found: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """confidence: of the detections that are drawn."""

    confidence: str
    images: tuple[Example, ...]

    @property
    def num_bytes(self) -> int:
        """What the pictures add to the page."""
        return sum(len(one.uri) for one in self.images)


def read_examples(files: RunFiles, max_bytes: int) -> Examples | None:
    """The examples that validation.json names, as many as fit; None without any."""
    try:
        section = files.validation["examples"]
        names = [str(name) for name in files.validation["class_names"]]
        described = [one for one in section["images"][:_MOST] if _NAME.fullmatch(one["file"])]
        confidence = f"{float(section['confidence']):g}"
    except (KeyError, TypeError, ValueError):
        return None
    gallery = make_gallery([files.folder / "examples" / one["file"] for one in described], _MOST, max_bytes)
    uris = {picture.name: picture.uri for picture in gallery.pictures}
    images = []
    for one in described:
        if one["file"] in uris:
            try:
                images.append(_example(one, uris[one["file"]], names))
            except (KeyError, TypeError, ValueError, IndexError):
                continue
    return Examples(confidence, tuple(images)) if images else None


def _example(one: dict[str, Any], uri: str, names: list[str]) -> Example:
    width, height = int(one["width"]), int(one["height"])
    unit = max(width, height) / 100
    outcomes = [(one["right"], "right"), (one["missed"], "missed"), (one["false_alarms"], "false")]
    outcomes.append((one["confused"], "of another class"))
    words = ", ".join(f"{int(count)} {what}" for count, what in outcomes if count) or "nothing labelled, nothing found"
    labels = [_box(box["box"], names[box["class"]], unit, height, below=True) for box in one["labels"]]
    found = [
        _box(box["box"], f"{names[box['class']]} {float(box['score']):.2f}", unit, height, below=False)
        for box in one["found"]
    ]
    drawn = tuple(_apart(labels, unit, height)), tuple(_apart(found, unit, height))
    return Example(str(one["kind"]), str(one["name"]), uri, width, height, unit, words, *drawn)


def _box(corners: list[float], words: str, unit: float, height: int, *, below: bool) -> Box:
    """Words on a label stand at its foot, those on a detection over its head, inside where there is no room."""
    x0, y0, x1, y1 = (float(value) for value in corners)
    letters = 4.2 * unit
    over = y0 - 0.8 * unit if y0 > letters else y0 + letters - unit
    y = y1 - 0.8 * unit if below else over
    return Box(x0, y0, x1 - x0, y1 - y0, words, x0 + 0.8 * unit, min(max(y, letters - unit), height - 0.8 * unit))


def _apart(boxes: list[Box], unit: float, height: int) -> list[Box]:
    """The boxes with words that lie on those of an earlier one moved down, where there is room for them."""
    letters, placed = 4.2 * unit, list[Box]()
    for box in boxes:
        y = box.label_y
        while any(abs(y - one.label_y) < 0.9 * letters and _meet(box, one, unit) for one in placed):
            y += letters
            if y > height:
                y = box.label_y
                break
        placed.append(replace(box, label_y=y))
    return placed


def _meet(box: Box, other: Box, unit: float) -> bool:
    """Whether their words share a stretch of width; a letter takes about two hundredths of the image."""
    first, second = sorted((box, other), key=lambda one: one.label_x)
    return second.label_x < first.label_x + 2.2 * unit * len(first.words)
