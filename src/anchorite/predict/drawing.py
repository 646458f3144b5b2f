"""Detections drawn into their image.

Lines and letters grow with the image. A label goes above its box, below it or inside it, wherever it first lies free of
the labels of better detections; where the full text finds no room the score alone is tried, and then nothing:
labels on top of each other tell less than none, and labels may never hide most of a small image.

Legend: H, W image height and width.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detection, Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MOST_COVERED = 1 / 3

# RGB, chosen to differ in brightness as well as in hue.
_COLORS = """
e6194b 3cb44b 006edc ffbe14 911eb4 46f0f0 f58230 f032e6
bef03c 008080 800000 fabed4 000096 aa6e28 dcbeff 808000
"""
PALETTE = tuple((color[0], color[1], color[2]) for color in map(bytes.fromhex, _COLORS.split()))

# Letters that do not decompose into an ASCII letter and an accent, yet have a customary spelling:
# sharp s, ae, oe, o with stroke, d with stroke, l with stroke, thorn, eth, dotless i.
_ASCII_LETTERS = str.maketrans(
    {"\u00df": "ss", "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe", "\u0152": "Oe", "\u00f8": "o", "\u00d8": "O"}
    | {"\u0111": "d", "\u0110": "D", "\u0142": "l", "\u0141": "L", "\u00fe": "th", "\u00de": "Th"}
    | {"\u00f0": "d", "\u00d0": "D", "\u0131": "i"}
)


@dataclass(frozen=True)
class Label:
    """A text, its rectangle (x0, y0, x1, y1) in the image, the text's left end and baseline, and its letters' size."""

    text: str
    class_id: int
    rectangle: tuple[int, int, int, int]
    origin: tuple[int, int]
    font_scale: float
    stroke: int


def draw(image: UInt8[NDArray[np.uint8], "H W 3"], detections: Detections) -> UInt8[NDArray[np.uint8], "H W 3"]:
    """A copy of an RGB image (H, W, 3) with boxes and "name score" labels; the best detections lie on top.

    The detections' boxes are in pixels of this image. A class name that cannot be written in ASCII, not even without
    its accents, is drawn as "class 3".
    """
    canvas = np.ascontiguousarray(image).copy()
    line = _line_width(*canvas.shape[:2])
    for detection in reversed(list(detections)):
        x0, y0, x1, y1 = (round(edge) for edge in detection.box_xyxy)
        # The last pixel a box covers lies before its right and lower edge.
        corners = (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0))
        color = class_color(detection.class_id)
        if line > 1:  # a rim, so that the line shows on ground of its own colour; thinner lines would drown in it
            cv2.rectangle(canvas, *corners, _contrast(color), line + 2)
        cv2.rectangle(canvas, *corners, color, line)
    for label in place_labels(detections, *canvas.shape[:2]):
        x0, y0, x1, y1 = label.rectangle
        color, scale, stroke = class_color(label.class_id), label.font_scale, label.stroke
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), color, cv2.FILLED)
        cv2.putText(canvas, label.text, label.origin, _FONT, scale, _contrast(color), stroke, cv2.LINE_AA)
    return canvas


def _line_width(height: int, width: int) -> int:
    side = (height * width) ** 0.5
    return max(round(side / 270), 1 if side < 200 else 2)


def class_color(class_id: int) -> tuple[int, int, int]:
    """The RGB colour of a class: always the same, distinct for the first sixteen."""
    return PALETTE[class_id % len(PALETTE)]


def _contrast(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on bright colours, white on dark ones (weights of ITU-R BT.601)."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def ascii_name(name: str, class_id: int) -> str:
    """The name without accents, or "class <number>" when it has letters that ASCII cannot stand in for."""
    decomposed = unicodedata.normalize("NFKD", name.translate(_ASCII_LETTERS))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter)).strip()
    return plain if plain and plain.isascii() and plain.isprintable() else f"class {class_id}"


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
            if label is not None:
                x0, y0, x1, y1 = label.rectangle
                if (x1 - x0) * (y1 - y0) <= room:
                    labels.append(label)
                    room -= (x1 - x0) * (y1 - y0)
                    break
    return labels


def _place(text: str, detection: Detection, labels: list[Label], height: int, width: int) -> Label | None:
    """The first free spot for a text, in smaller letters where the image is too narrow for it."""
    font_scale = max((height * width) ** 0.5 / 1100, 0.4)  # below 0.4 the letters of this font run together
    stroke, padding = max(round(font_scale * 1.6), 1), max(round(font_scale * 6), 2)
    (text_width, text_height), descent = cv2.getTextSize(text, _FONT, font_scale, stroke)
    fitting = (width - 2 * padding) / text_width
    if fitting < 1:
        stroke, font_scale = 1, font_scale * max(fitting, 0.1)
        (text_width, text_height), descent = cv2.getTextSize(text, _FONT, font_scale, stroke)
    tag_width, tag_height = text_width + 2 * padding, text_height + descent + 2 * padding
    if tag_width > width or tag_height > height:
        return None
    x0, y0, x1, y1 = (round(edge) for edge in detection.box_xyxy)
    edge = _line_width(height, width) // 2 + 1
    # Above the box, below it, inside at the top, inside at the bottom; left, then right.
    for top, left in product((y0 - tag_height, y1, y0, y1 - tag_height), (x0 - edge, x1 + edge - tag_width)):
        left, top = min(max(left, 0), width - tag_width), min(max(top, 0), height - tag_height)
        right, bottom = left + tag_width, top + tag_height
        others = (label.rectangle for label in labels)
        if not any(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in others):
            origin = (left + padding, top + padding + text_height)
            return Label(text, detection.class_id, (left, top, right, bottom), origin, font_scale, stroke)
    return None
