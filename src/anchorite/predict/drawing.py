"""Detections drawn into their image.

Lines and letters grow with the image. A label goes above its box, below it or inside it, wherever it first lies free of
the labels of better detections; where the full text finds no room the score alone is tried, and then nothing:
labels on top of each other tell less than none, and labels may never hide most of a small image.

Legend: H, W image height and width.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detection, Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MOST_COVERED = 1 / 3

# RGB, chosen to differ in brightness as well as in hue.
PALETTE = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 110, 220),
    (255, 190, 20),
    (145, 30, 180),
    (70, 240, 240),
    (245, 130, 48),
    (240, 50, 230),
    (190, 240, 60),
    (0, 128, 128),
    (128, 0, 0),
    (250, 190, 212),
    (0, 0, 150),
    (170, 110, 40),
    (220, 190, 255),
    (128, 128, 0),
)

# Letters that do not decompose into an ASCII letter and an accent, yet have a customary spelling:
# sharp s, ae, oe, o with stroke, d with stroke, l with stroke, thorn, eth, dotless i.
_ASCII_LETTERS = str.maketrans(
    {"\u00df": "ss", "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe", "\u0152": "Oe", "\u00f8": "o", "\u00d8": "O"}
    | {"\u0111": "d", "\u0110": "D", "\u0142": "l", "\u0141": "L", "\u00fe": "th", "\u00de": "Th"}
    | {"\u00f0": "d", "\u00d0": "D", "\u0131": "i"}
)


@dataclass(frozen=True)
class _Pen:
    """Sizes in pixels that suit one image: line thickness, stroke of the letters, their scale, padding around them."""

    line: int
    stroke: int
    font_scale: float
    padding: int


@dataclass(frozen=True)
class Label:
    """A text, its rectangle (x0, y0, x1, y1) in the image, the text's left end and baseline, and its pen."""

    text: str
    class_id: int
    rectangle: tuple[int, int, int, int]
    origin: tuple[int, int]
    pen: _Pen


def draw(image: UInt8[NDArray[np.uint8], "H W 3"], detections: Detections) -> UInt8[NDArray[np.uint8], "H W 3"]:
    """A copy of an RGB image (H, W, 3) with boxes and "name score" labels; the best detections lie on top.

    The detections' boxes are in pixels of this image. A class name that cannot be written in ASCII, not even without
    its accents, is drawn as "class 3".
    """
    canvas = np.ascontiguousarray(image).copy()
    pen = _pen(*canvas.shape[:2])
    for detection in reversed(list(detections)):
        _draw_box(canvas, detection, pen)
    for label in place_labels(detections, *canvas.shape[:2]):
        _draw_label(canvas, label)
    return canvas


def class_color(class_id: int) -> tuple[int, int, int]:
    """The RGB colour of a class: always the same, distinct for the first sixteen."""
    return PALETTE[class_id % len(PALETTE)]


def ascii_name(name: str, class_id: int) -> str:
    """The name without accents, or "class <number>" when it has letters that ASCII cannot stand in for."""
    decomposed = unicodedata.normalize("NFKD", name.translate(_ASCII_LETTERS))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    writable = plain.isascii() and plain.isprintable() and plain.strip()
    return plain.strip() if writable else f"class {class_id}"


def place_labels(detections: Detections, height: int, width: int) -> list[Label]:
    """The labels that find room, best detection first.

    They lie inside the image, free of each other, and cover a third of it at most.
    """
    labels: list[Label] = []
    room = _MOST_COVERED * height * width
    for detection in detections:
        score = f"{detection.score:.2f}"
        for text in (f"{ascii_name(detection.class_name, detection.class_id)} {score}", score):
            label = _place(text, detection, labels, height, width)
            if label is not None and _area(label.rectangle) <= room:
                labels.append(label)
                room -= _area(label.rectangle)
                break
    return labels


def _pen(height: int, width: int) -> _Pen:
    side = (height * width) ** 0.5
    # Below 0.4 the letters of this font run together.
    font_scale = max(side / 1100, 0.4)
    return _Pen(
        line=max(round(side / 270), 1 if side < 200 else 2),
        stroke=max(round(font_scale * 1.6), 1),
        font_scale=font_scale,
        padding=max(round(font_scale * 6), 2),
    )


def _place(text: str, detection: Detection, labels: list[Label], height: int, width: int) -> Label | None:
    """The first free spot for a text, in smaller letters where the image is too narrow for it."""
    pen = _pen(height, width)
    (text_width, text_height), descent = cv2.getTextSize(text, _FONT, pen.font_scale, pen.stroke)
    fitting = (width - 2 * pen.padding) / text_width
    if fitting < 1:
        pen = replace(pen, stroke=1, font_scale=pen.font_scale * max(fitting, 0.1))
        (text_width, text_height), descent = cv2.getTextSize(text, _FONT, pen.font_scale, pen.stroke)
    tag_width, tag_height = text_width + 2 * pen.padding, text_height + descent + 2 * pen.padding
    if tag_width > width or tag_height > height:
        return None
    for left, top in _spots(detection, pen, tag_width, tag_height):
        left, top = min(max(left, 0), width - tag_width), min(max(top, 0), height - tag_height)
        rectangle = (left, top, left + tag_width, top + tag_height)
        if not any(_overlap(rectangle, other.rectangle) for other in labels):
            origin = (left + pen.padding, top + pen.padding + text_height)
            return Label(text, detection.class_id, rectangle, origin, pen)
    return None


def _spots(detection: Detection, pen: _Pen, tag_width: int, tag_height: int) -> Iterator[tuple[int, int]]:
    """Upper left corners to try: above the box, below it, inside at the top, inside at the bottom; left, then right."""
    x0, y0, x1, y1 = (round(edge) for edge in detection.box_xyxy)
    edge = pen.line // 2 + 1
    for top in (y0 - tag_height, y1, y0, y1 - tag_height):
        yield x0 - edge, top
        yield x1 + edge - tag_width, top


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _area(rectangle: tuple[int, int, int, int]) -> int:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _draw_box(canvas: NDArray[np.uint8], detection: Detection, pen: _Pen) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in detection.box_xyxy)
    # The last pixel a box covers lies before its right and lower edge.
    corners = (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0))
    color = class_color(detection.class_id)
    if pen.line > 1:  # a rim, so that the line shows on ground of its own colour; thinner lines would drown in it
        cv2.rectangle(canvas, *corners, _contrast(color), pen.line + 2)
    cv2.rectangle(canvas, *corners, color, pen.line)


def _draw_label(canvas: NDArray[np.uint8], label: Label) -> None:
    x0, y0, x1, y1 = label.rectangle
    color, pen = class_color(label.class_id), label.pen
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), color, cv2.FILLED)
    cv2.putText(canvas, label.text, label.origin, _FONT, pen.font_scale, _contrast(color), pen.stroke, cv2.LINE_AA)


def _contrast(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on bright colours, white on dark ones (weights of ITU-R BT.601)."""
    red, green, blue = color
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _WHITE
