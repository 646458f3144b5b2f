"""The label of a sample: a `Record` as JSON, and back with every field as it was.

Numbers are written so that they read back as the very same. What is read is checked like the labels of every other
format, but nothing is corrected: what does not fit was not written by this package, or is damaged.

Legend: N boxes of an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchorite.data.headers import MAX_PIXELS
from anchorite.data.records import Record
from anchorite.errors import InputError
from anchorite.reading import shorten

_LONGEST_ORIGIN = 5000  # a path has up to 4096 letters


def label_bytes(record: Record, name: str) -> bytes:
    """The JSON of a record, plain ASCII. name: what its image was called."""
    content = {
        "name": name,
        "width": record.width,
        "height": record.height,
        "boxes": record.boxes_xyxy.tolist(),
        "classes": record.class_ids.tolist(),
        "ignored": record.ignored.tolist(),
        "areas": record.areas.tolist(),
        "origins": list(record.origins),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_label(data: bytes, path: Path, num_classes: int) -> Record:
    """The record of an image at `path` from the JSON beside it; InputError, which does not name the path."""
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(f"its label is not readable as JSON: {shorten(str(error))}") from error
    if not isinstance(content, dict):
        raise InputError(f"its label is no JSON object but {shorten(content)}")
    width, height = (_side(content, name) for name in ("width", "height"))
    if width * height > MAX_PIXELS:
        raise InputError(
            f"its label says {width}x{height} pixels, more than the limit of {MAX_PIXELS // 1_000_000} million"
        )
    class_ids = _array(content, "classes", "i", (-1,)).astype(np.int64)
    num_boxes = len(class_ids)
    boxes_xyxy = _array(content, "boxes", "if", (num_boxes, 4)).astype(np.float64)
    areas = _array(content, "areas", "if", (num_boxes,)).astype(np.float64)
    ignored = _array(content, "ignored", "b", (num_boxes,)).astype(np.bool_)
    origins = content.get("origins")
    if num_boxes and (class_ids.min() < 0 or class_ids.max() >= num_classes):
        raise InputError(
            f"its label names class {class_ids.max()} or {class_ids.min()}; there are 0 to {num_classes - 1}"
        )
    _check_boxes(boxes_xyxy, width, height)
    if not (np.isfinite(areas).all() and (areas >= 0).all()):
        raise InputError("its label has an area that is negative or not finite")
    if not isinstance(origins, list) or len(origins) != num_boxes or not all(map(_is_origin, origins)):
        raise InputError(f"its label must say where each of its {num_boxes} boxes came from, as a list of texts")
    return Record(path, width, height, boxes_xyxy, class_ids, ignored, areas, tuple(origins))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _side(content: dict[str, Any], name: str) -> int:
    side = content.get(name)
    if type(side) is not int or side < 1:
        raise InputError(f"its label must say {name} in whole pixels, not {shorten(side)}")
    return side


def _array(content: dict[str, Any], name: str, kinds: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A list of numbers as an array of this shape; an empty one has no kind of its own."""
    values = content.get(name)
    try:
        array = np.array(values) if isinstance(values, list) else None
    except ValueError:  # of lists of different lengths
        array = None
    if array is not None and array.size == 0 and shape[0] <= 0:
        return array.reshape(0, *shape[1:])
    wanted = None if array is None else (array.shape[:1] if shape[0] < 0 else shape)
    if array is None or array.dtype.kind not in kinds or array.shape != wanted:
        raise InputError(f"its label has no fitting list {name}, but {shorten(values)}")
    return array


def _check_boxes(boxes_xyxy: NDArray[np.float64], width: int, height: int) -> None:
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    is_good = (low >= 0).all(axis=1) & (high > low).all(axis=1) & (high <= [width, height]).all(axis=1)
    if not is_good.all():  # nor is a NaN good
        row = int(np.flatnonzero(~is_good)[0])
        raise InputError(
            f"its label has a box without area or outside of {width}x{height}: {shorten(boxes_xyxy[row].tolist())}"
        )


def _is_origin(text: object) -> bool:
    return isinstance(text, str) and len(text) <= _LONGEST_ORIGIN
