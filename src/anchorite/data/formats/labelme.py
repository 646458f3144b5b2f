"""LabelMe: a json an image, beside it or apart, with the shapes drawn on it.

The boxes are rectangles, and those around polygons, circles, masks and rectangles that are turned. Of these outlines
those of one label and one group_id are parts of one object, and the box is the one around all of them. An image without
a json is left out, for nobody looked whether it is empty; one whose json has no shape is background. Format:
https://github.com/wkentaro/labelme, as the files of the program are.
"""

from __future__ import annotations

import math
import posixpath
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from anchorite.data.dataset import Box
from anchorite.data.formats.common import (
    ClassesAndSplits,
    Fence,
    ReadingLog,
    box_around,
    files_with_suffix,
    folders_in,
    is_finite,
    walk_files,
)
from anchorite.data.formats.named import LabelledImage, NamedBox, home_of, place_of, read_named
from anchorite.errors import InputError
from anchorite.reading import parse_json, read_limited, shorten

LOOKED_FOR = "LabelMe: a *.json for each image, in the folder or in folders within"
SUFFIXES = (".json",)
_MOST_BYTES = 1_000_000_000  # an image may be within, as text
_MOST_LOOKED_AT = 8  # jsons of a folder that tell whether it holds LabelMe's
_MOST_FOLDERS, _DEEPEST = 1_000, 3
_ABSOLUTE = re.compile(r"/|[A-Za-z]:")
_OUTLINES = {
    "rectangle": "rectangles",
    "polygon": "polygons",
    "circle": "circles",
    "mask": "masks",
    "rotation": "rotated boxes",
    "oriented_rectangle": "rotated boxes",
}
_OUTLINING_NOTHING = {"point": "points", "points": "points", "line": "lines", "linestrip": "lines"}


class _File(msgspec.Struct, rename="camel"):
    """What is read of a file; the image within it, `imageData`, never becomes an object."""

    shapes: Any = None
    image_path: Any = None
    image_width: Any = None
    image_height: Any = None


def find(root: Path, log: ReadingLog, fence: Fence) -> Path | None:
    """The folder, where jsons in it or not far below are LabelMe's; or the json that is named."""
    if root.is_file():
        return root if _is_labelme(root, log) else None
    for folder in _folders_near(root):
        if not fence.refusal(folder):
            jsons = [path for path in files_with_suffix(folder, ".json") if not fence.refusal(path)]
            if any(_is_labelme(path, log) for path in jsons[:_MOST_LOOKED_AT]):
                return root
    return None


def _folders_near(root: Path) -> Iterator[Path]:
    """A folder and those within, down to a few levels, the nearest first."""
    level, num_left = [root], _MOST_FOLDERS
    for _ in range(_DEEPEST):
        yield from level
        num_left -= len(level)
        level = list(islice(chain.from_iterable(map(folders_in, level)), max(0, num_left)))


def _is_labelme(path: Path, log: ReadingLog) -> bool:
    log.dependencies.add_file(path)
    try:
        content = _read_content(path)
    except InputError:
        return False
    return isinstance(content.shapes, list) and isinstance(content.image_path, str)


def _read_content(path: Path) -> _File:
    data = read_limited(path, _MOST_BYTES).removeprefix(BOM_UTF8)
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = parse_json(data, path)  # which says where it is damaged, and takes NaN
    if not isinstance(content, dict):
        raise InputError(f"{path}:1:1: a JSON object {{...}} is wanted, not {type(content).__name__}")
    return msgspec.convert({key: value for key, value in content.items() if key.isascii()}, _File)


def read(place: Path, root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names, sorted, and splits; records in the order of the images' paths.

    Splits are told by the folders on the images' paths. The log is told of bad shapes, files and images.
    """
    fence = Fence([root], allow_outside)
    others: dict[Path, list[str]] = {}
    entries: list[LabelledImage] = []
    is_json = lambda name: name.lower().endswith(".json")  # noqa: E731
    for path in walk_files(place, fence, log, is_json) if place.is_dir() else [place]:
        log.dependencies.add_file(path)
        try:
            content = _read_content(fence.check(path))
        except InputError as error:
            log.bad(*_located(path, str(error)))
            continue
        if content.shapes is None and content.image_path is None:
            others.setdefault(path.parent, []).append(path.name)
        else:
            entries.append(_read_file(content, path, root, log))
    for folder, names in sorted(others.items()):
        log.adjusted_files("ignored-file", folder, names, "json files that are not LabelMe's")
    return read_named(entries, home_of(root), root, log, allow_outside)


def _located(path: Path, message: str) -> tuple[str, str]:
    """Origin and reason of a message "path:line:column: reason" or "path: reason"."""
    rest = message.removeprefix(str(path))
    place, _, reason = rest.partition(": ")
    return f"{path}{place}", reason


def _read_file(content: _File, path: Path, root: Path, log: ReadingLog) -> LabelledImage:
    """The image of a json: the one beside it that has its stem, else the one that it names, else one of that stem."""
    named = content.image_path.replace("\\", "/") if isinstance(content.image_path, str) else ""
    beside = log.folders.images_of_stem(path.parent, path.stem)
    if len(beside) == 1:  # people rename both files, and the json still has the former name
        named = beside[0]
    folders, split = place_of(path, root)
    name = named if _ABSOLUTE.match(named) else posixpath.normpath(folders + named)
    image = LabelledImage(name, str(path), (folders + path.stem,), split=split)
    for name, side in (("imageWidth", content.image_width), ("imageHeight", content.image_height)):
        if side is not None and (not is_finite(side) or side < 0 or side % 1):
            image.faults.append((str(path), f"{name} must be a whole number ({shorten(side)})"))
            return image
    image.stated_wh = int(content.image_width or 0), int(content.image_height or 0)
    if not isinstance(content.shapes, list):
        image.faults.append((str(path), f"shapes must be a list ({shorten(content.shapes)})"))
        return image
    groups: dict[tuple[str, Any], list[NamedBox]] = {}
    kinds: dict[tuple[str, Any], str] = {}
    for number, shape in enumerate(content.shapes, start=1):
        try:
            if not isinstance(shape, dict):
                raise InputError(f"must be an object ({shorten(shape)})")
            kind = shape.get("shape_type") or "polygon"  # which the first versions of the program did not write
            if isinstance(kind, str) and kind in _OUTLINING_NOTHING:
                image.pass_over(_OUTLINING_NOTHING[kind])
                continue
            label, box = shape.get("label"), _box_of(shape, kind)
        except InputError as error:
            image.faults.append((f"{path}: shape {number}", str(error)))
            continue
        fault = "" if type(label) in (str, int) else f"label must be a text ({shorten(label)})"
        if not isinstance(kind, str) or kind not in _OUTLINES:
            fault = f"a shape of this type is not read ({shorten(kind)}); draw a rectangle or polygon instead"
        group, is_box = shape.get("group_id"), kind == "rectangle" and len(shape["points"]) == 2
        name, is_part = "" if fault else str(label), type(group) in (int, str) and not is_box and not fault
        key = name, ("group", group) if is_part else number
        groups.setdefault(key, []).append(NamedBox(name, box, f"{path}: shape ", number, fault=fault))
        kinds[key] = "" if is_box or fault else _OUTLINES[kind]
    for key, parts in groups.items():
        if len(parts) == 1:
            image.add(parts[0], kinds[key])
        else:
            corners = [corner for part in parts for corner in (part.xyxy[:2], part.xyxy[2:])]
            image.add(parts[0]._replace(xyxy=box_around(corners)), "groups of outlines")
    return image


def _box_of(shape: dict[str, Any], kind: Any) -> Box:
    """The box around a shape; InputError, which names no file, for what is none."""
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < (3 if kind == "polygon" else 2):
        what = kind if isinstance(kind, str) and kind in _OUTLINES else "object"
        raise InputError(f"these points outline no {what} ({shorten(points)})")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(is_finite, point)):
            raise InputError(f"a point must be two finite numbers [x, y] ({shorten(point)})")
    if kind == "circle":
        (x, y), (edge_x, edge_y), *_ = points
        radius = math.hypot(edge_x - x, edge_y - y)
        return x - radius, y - radius, x + radius, y + radius
    return box_around(points)
