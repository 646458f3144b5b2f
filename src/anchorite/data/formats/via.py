"""VGG Image Annotator 1 and 2: a project or an export of annotations, as JSON or CSV.

An image has regions, each with a shape in pixels (rect, circle, ellipse, polygon; point, polyline and line outline no
object) and attributes that the user defined, one of which names the class: the only one, else the first of class,
label, name, type, category and object that there is, in any letter case. Where no region has any attribute, all are of
one class, "object". An image without regions is background.

Formats: https://gitlab.com/vgg/via/-/blob/via-2.x.y/CodeDoc.md, https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchorite.data.dataset import Box
from anchorite.data.formats.common import ClassesAndSplits, Fence, ReadingLog, box_around, is_finite
from anchorite.data.formats.named import LabelledImage, NamedBox, home_of, label_files, place_of, read_named
from anchorite.data.formats.shapes import around_ellipse
from anchorite.errors import InputError
from anchorite.reading import read_csv, read_csv_header, read_json, read_limited, shorten

LOOKED_FOR = "VIA: a *.json with _via_img_metadata, or an export of annotations as *.json or *.csv"
SUFFIXES = (".json", ".csv")
_METADATA = "_via_img_metadata"
_SHAPE, _ATTRIBUTES = "region_shape_attributes", "region_attributes"
_CLASS_ATTRIBUTES = ("class", "label", "name", "type", "category", "object")
_ONLY_CLASS = "object"
_NOT_OUTLINED = {"point", "polyline", "line"}
_MOST_JSONS = 100  # in a folder with more there is one an image


@dataclass
class _File:
    """An image as a label file has it; its regions as (origin, number, shape, attributes)."""

    image: LabelledImage
    size: object
    regions: list[tuple[str, int, Any, Any]] = field(default_factory=list)


def find(root: Path, log: ReadingLog, fence: Fence) -> list[Path]:
    """The projects and exports in a folder and the folders in it, or the one that the user named."""
    files = label_files(root, fence, *SUFFIXES)
    num_jsons = Counter(path.parent for path in files if path.suffix.lower() == ".json")
    return [path for path in files if num_jsons[path.parent] <= _MOST_JSONS and _is_via(path)]


def _is_via(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        return set(_names(read_csv_header(path)[1])) >= {"filename", _SHAPE, _ATTRIBUTES}
    try:
        data = read_limited(path, sys.maxsize)
        return (_METADATA.encode() in data or b'"regions"' in data) and _metadata(read_json(path)) is not None
    except InputError:
        return False


def _metadata(content: dict[str, Any]) -> dict[str, Any] | None:
    """The images of a project or export by their keys; None where it is neither."""
    metadata = content.get(_METADATA, content)
    entries = (one for one in content.values() if isinstance(one, dict))
    if metadata is content and not any({"filename", "regions"} <= one.keys() for one in entries):
        return None
    return metadata if isinstance(metadata, dict) else None


def read(paths: Sequence[Path], root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names, sorted, and the splits: those that the files' names or folders speak of, else those of the
    images' folders. Raises InputError where it is unclear which attribute names the class.
    """
    files: list[_File] = []
    for path in paths:
        log.dependencies.add_file(path)
        is_table = path.suffix.lower() == ".csv"
        folders, split = place_of(path, root)
        found = list((_read_table if is_table else _read_export)(path, log))
        for one in found:
            one.image.name, one.image.split = folders + one.image.name, split
        _tell_apart(found)
        files += found
    attribute = _class_attribute(files, root)
    if not any(region[-1] != {} for one in files for region in one.regions):  # as in sets of one sort of object
        for one in files:
            one.regions = [(*others, {attribute: _ONLY_CLASS}) for *others, _ in one.regions]
    for one in files:
        for origin, number, shape, attributes in one.regions:
            _read_region(one.image, origin, number, shape, attributes, attribute)
    return read_named([one.image for one in files], home_of(root), root, log, allow_outside)


def _read_export(path: Path, log: ReadingLog) -> Iterator[_File]:
    """The images of a JSON."""
    for key, value in (_metadata(read_json(path)) or {}).items():
        entry = value if isinstance(value, dict) else {}
        name, regions, origin = entry.get("filename"), entry.get("regions"), f"{path}: image {shorten(key)}"
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not isinstance(name, str) or not name:
            log.bad(origin, f"filename must name an image ({shorten(name)})")
            continue
        one = _File(LabelledImage(name, origin), entry.get("size"))
        if not isinstance(regions, list):
            one.image.faults.append((origin, f"regions must be a list ({shorten(regions)})"))
            regions = []
        for number, region in enumerate(regions):
            parts = region if isinstance(region, dict) else {}
            region_origin = f"{origin}, region "
            one.regions.append((region_origin, number, parts.get("shape_attributes"), parts.get("region_attributes")))
        yield one


def _read_table(path: Path, log: ReadingLog) -> Iterable[_File]:
    """The images of a CSV, which has a row for each region, or one for an image without any."""
    delimiter, header = read_csv_header(path)
    names = _names(header)
    files: dict[tuple[str, str], _File] = {}
    counts: dict[tuple[str, str], str] = {}
    for line, cells in read_csv(path, delimiter):
        if line == 1:
            continue
        row = {name: cells[names.index(name)] if names.index(name) < len(cells) else "" for name in names}
        name, size, count = (
            row["filename"].strip(),
            row.get("file_size", "").strip(),
            row.get("region_count", "").strip(),
        )
        origin = f"{path}:{line}"
        if not name:
            log.bad(origin, f"filename must name an image ({shorten(delimiter.join(cells))})")
            continue
        one = files.setdefault((name, size), _File(LabelledImage(name, origin), size))
        counts[name, size] = count
        if len(cells) < len(names):
            one.image.faults.append((origin, f"{len(cells)} cells, not {len(names)}"))
            continue
        try:
            shape, attributes = (json.loads(row[column] or "{}") for column in (_SHAPE, _ATTRIBUTES))
        except (ValueError, RecursionError):
            one.image.faults.append((origin, f"the cells of a region must hold JSON ({shorten(row[_SHAPE])})"))
            continue
        if shape != {} or count not in ("", "0"):
            one.regions.append((f"{path}:", line, shape, attributes))
    for key, one in files.items():
        if counts[key] not in ("", str(len(one.regions))) and not one.image.faults:
            reason = f"region_count is {shorten(counts[key])}, but there are {len(one.regions)} regions"
            one.image.faults.append((one.image.origin, f"{reason}; export the annotations again"))
    return files.values()


def _names(header: Iterable[str]) -> list[str]:
    return [name.lower() for name in header]


def _tell_apart(files: Sequence[_File]) -> None:
    """Two images of a name have sizes in bytes that differ; nobody can say whose the regions are."""
    sizes: dict[str, set[str]] = {}
    for one in files:
        sizes.setdefault(one.image.name, set()).add(str(one.size))
    for one in files:
        if len(sizes[one.image.name]) > 1:
            listed = " and ".join(sorted(sizes[one.image.name]))
            reason = f"there are several images {shorten(one.image.name)}, of {listed} bytes; give each its own name"
            one.image.faults.append((one.image.origin, reason))


def _class_attribute(files: Iterable[_File], root: Path) -> str:
    """The attribute of the regions that names the class."""
    all_attributes = (attributes for one in files for *_, attributes in one.regions if isinstance(attributes, dict))
    names = dict.fromkeys(name for attributes in all_attributes for name, value in attributes.items() if value)
    if len(names) == 1:
        return next(iter(names))
    for word in _CLASS_ATTRIBUTES:
        for name in names:
            if name.strip().lower() == word:
                return name
    if not names:
        return _CLASS_ATTRIBUTES[0]  # as every region without one will be told
    listed = ", ".join(map(shorten, sorted(names)[:10]))
    raise InputError(f"{root}: which attribute of a region is its class? ({listed}); name it class in VIA")


def _read_region(image: LabelledImage, origin: str, number: int, shape: Any, attributes: Any, attribute: str) -> None:
    """Add the box of a region to its image, or what is wrong with it."""
    shown, values = f"{origin}{number}", shape if isinstance(shape, dict) else {}
    kind = str(values.get("name")).lower()
    if kind in _NOT_OUTLINED:
        image.pass_over("points and lines")
        return
    box, name = _box_of(kind, values), _class_name(attributes, attribute)
    if box is None:
        image.faults.append((shown, f"not a shape that is read ({shorten(shape)})"))
    else:
        value, fault = attributes.get(attribute) if isinstance(attributes, dict) else attributes, ""
        if name is None:
            fault = f"the region attribute {shorten(attribute)} must name one class ({shorten(value)})"
        around = "" if kind == "rect" else "polygons, circles and ellipses"
        image.add(NamedBox(name or "", box, origin, number, fault=fault), around)


def _class_name(attributes: Any, attribute: str) -> str | None:
    """The class of a region: a text or number, or of several boxes to tick the only one that is."""
    value = attributes.get(attribute) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        ticked = [name for name, is_ticked in value.items() if is_ticked is True]
        value = ticked[0] if len(ticked) == 1 else None
    value = str(value) if type(value) is int else value
    return value.strip() or None if isinstance(value, str) else None


def _box_of(kind: str, shape: Mapping[str, Any]) -> Box | None:
    """The box around a shape, in pixels; None where it is none."""
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or len(xs) < 3:
            return None
        return box_around(zip(xs, ys, strict=True)) if all(map(is_finite, xs + ys)) else None
    fields = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    numbers: list[Any] = [shape.get(name) for name in fields.get(kind, ("none",))]
    if not all(map(is_finite, numbers)) or min(numbers[2:]) < 0:
        return None
    if kind == "rect":
        x, y, width, height = map(float, numbers)
        return x, y, x + width, y + height
    cx, cy, rx, ry = map(float, numbers if kind == "ellipse" else [*numbers, numbers[-1]])
    angle = shape.get("theta") or 0.0
    if not is_finite(angle):
        return None
    return around_ellipse((cx, cy), (rx, ry), math.degrees(math.fmod(angle, math.tau)))
