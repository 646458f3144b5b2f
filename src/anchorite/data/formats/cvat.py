"""CVAT's own format, "CVAT for images 1.1": an xml with an element for each image, in it one for each shape.

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/. Of masks, polygons, ellipses, cuboids, skeletons and
boxes that are turned the boxes around them are taken. Classes are the labels in the order that CVAT has them in. Such a
file may have gigabytes, so it is read image by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import accumulate, chain, pairwise
from pathlib import Path
from xml.etree import ElementTree

from anchorite.data.dataset import Box
from anchorite.data.formats.common import (
    ClassesAndSplits,
    Fence,
    ReadingLog,
    box_around,
    files_with_suffix,
    folders_in,
    plain_integer,
    plain_number,
    split_of,
)
from anchorite.data.formats.named import LabelledImage, NamedBox, home_of, place_of, read_named
from anchorite.data.formats.shapes import around_ellipse, around_rotated, around_runs
from anchorite.errors import InputError
from anchorite.reading import iterate_xml, open_regular, shorten

LOOKED_FOR = 'CVAT: annotations.xml (the export "CVAT for images 1.1") in the folder or in folders within'
SUFFIXES = (".xml",)
_MOST_LOOKED_AT = 8  # xmls of a folder that tell whether it holds CVAT's: of Pascal VOC there may be a million
_HEAD_BYTES = 1000  # of a damaged xml, in which its root element stands
_FIRST_TAGS = ("version", "meta", "image", "track")  # within <annotations>
_OUTLINING_NOTHING = {"points": "points", "polyline": "lines", "tag": "tags"}
_IN_WORDS = {
    "polygon": "polygons",
    "ellipse": "ellipses",
    "cuboid": "cuboids",
    "skeleton": "skeletons",
    "mask": "masks",
}
_CUBOID_CORNERS = [(f"x{corner}", f"y{corner}") for corner in ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2")]


def find(root: Path, log: ReadingLog, fence: Fence) -> list[Path]:
    """The xmls of CVAT in a folder or its `annotations`, else in the folders within; or the one that is named."""
    if root.is_file():
        return [root] if _is_cvat(root, log) else []
    within = folders_in(root)
    near = [root, *(child for child in within if child.name.lower() == "annotations")]
    for folders in (near, within):
        found = list(
            chain.from_iterable(_xmls_in(folder, log, fence) for folder in folders if not fence.refusal(folder))
        )
        if found:
            return found
    return []


def _xmls_in(folder: Path, log: ReadingLog, fence: Fence) -> list[Path]:
    with suppress(PermissionError):
        paths = [path for path in files_with_suffix(folder, ".xml") if not fence.refusal(path)]
        if any(_is_cvat(path, log) for path in paths[:_MOST_LOOKED_AT]):
            return [path for path in paths if _is_cvat(path, log)]
    return []


def _is_cvat(path: Path, log: ReadingLog) -> bool:
    """Whether the beginning of an xml is CVAT's; InputError where it seems to be and is damaged."""
    log.dependencies.add_file(path)
    try:
        with closing(iterate_xml(path)) as parts:
            root, first = next(parts), next(parts, None)
        return root.tag == "annotations" and first is not None and first.tag in _FIRST_TAGS
    except InputError:
        head = b""
        with suppress(OSError, InputError), open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
        if b"<annotations" in head:
            raise
        return False


def read(files: Sequence[Path], root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names and splits; records in the order of the images' paths.

    The split of an image is its subset in CVAT, else that of the task, else the one that the xml's name or a folder on
    its path speaks of. Raises InputError for a damaged xml, and for an export of videos; the log is told of the rest.
    """
    labels: dict[str, bool] = {}
    entries: list[LabelledImage] = []
    for path in files:
        log.dependencies.add_file(path)
        entries += _read_file(path, root, labels)
    used = {box.class_name for one in entries for box in one.boxes}
    class_names = [name for name, can_outline in labels.items() if can_outline or name in used]
    return read_named(entries, home_of(root), root, log, allow_outside, class_names or None)


def _read_file(path: Path, root: Path, labels: dict[str, bool]) -> Iterator[LabelledImage]:
    """The images of an xml; labels: takes its labels, and whether a shape of each can outline an object."""
    folders, split = place_of(path, root)
    interned: dict[str, str] = {}
    for element in iterate_xml(path):
        if element.tag == "meta":
            for label in element.iter("label"):
                if name := (label.findtext("name") or "").strip():
                    is_part = bool((label.findtext("parent") or "").strip())  # of a skeleton
                    labels[name] = labels.get(name, False) or not (
                        is_part or (label.findtext("type") or "").strip() in _OUTLINING_NOTHING
                    )
            split = split_of((element.findtext("task/subset") or "").strip()) or split
        elif element.tag == "track":
            raise InputError(
                f'{path}:{element.get("line")}: this is the export "CVAT for video"; export the task again as '
                '"CVAT for images 1.1", with the images'
            )
        elif element.tag == "image":
            yield _read_image(element, path, folders, split, interned)


def _read_image(
    element: ElementTree.Element, path: Path, folders: str, split: str | None, interned: dict[str, str]
) -> LabelledImage:
    name, subset = element.get("name", ""), element.get("subset", "")
    # The export has a folder for each subset, where two may hold images of the same name.
    name = f"{folders}{subset}/{name}" if subset else folders + name
    image = LabelledImage(name, f"{path}:{element.get('line')}", split=split_of(subset) or split)
    try:
        image.stated_wh = _whole_number(element, "width", "0"), _whole_number(element, "height", "0")
    except InputError as error:
        image.faults.append((image.origin, str(error)))
    head = f"{path}:"
    for shape in element:
        line, label = int(shape.attrib["line"]), shape.get("label", "")
        if shape.tag in _OUTLINING_NOTHING:
            image.pass_over(_OUTLINING_NOTHING[shape.tag])
        elif not _is_outside(shape):
            try:
                box, is_around = _box_of(shape)
            except InputError as error:
                image.faults.append((f"{path}:{line}", str(error)))
                continue
            around = _IN_WORDS.get(shape.tag, "rotated boxes") if is_around else ""
            image.add(NamedBox(interned.setdefault(label, label), box, interned.setdefault(head, head), line), around)
    return image


def _is_outside(shape: ElementTree.Element) -> bool:
    """Whether CVAT says that an object, or each point of it, lies outside the image."""
    parts = shape.findall("points") if shape.tag == "skeleton" else []
    return shape.get("outside") == "1" or (bool(parts) and all(part.get("outside") == "1" for part in parts))


def _box_of(shape: ElementTree.Element) -> tuple[Box, bool]:
    """The box of a shape, and whether it is one around something else; InputError, which names no file, for none."""
    match shape.tag:
        case "box":
            x1, y1, x2, y2 = (_number(shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
            if x2 < x1 or y2 < y1:
                raise InputError(f"xbr < xtl or ybr < ytl ({x1:g}, {y1:g}, {x2:g}, {y2:g})")
            degrees = _number(shape, "rotation", "0")
            return around_rotated((x1, y1, x2, y2), degrees, ((x1 + x2) / 2, (y1 + y2) / 2)), degrees % 360 != 0
        case "polygon":
            return box_around(_points(shape, 3)), True
        case "ellipse":
            cx, cy, rx, ry = (_number(shape, name) for name in ("cx", "cy", "rx", "ry"))
            if rx < 0 or ry < 0:
                raise InputError(f"rx or ry is negative ({rx:g}, {ry:g})")
            return around_ellipse((cx, cy), (rx, ry), _number(shape, "rotation", "0")), True
        case "cuboid":
            return box_around((_number(shape, x), _number(shape, y)) for x, y in _CUBOID_CORNERS), True
        case "skeleton":
            seen = [part for part in shape.findall("points") if part.get("outside") != "1"]
            if not seen:
                raise InputError("the skeleton has no points")
            return box_around(chain.from_iterable(_points(part) for part in seen)), True
        case "mask":
            return _box_of_mask(shape), True
    raise InputError(f"<{shorten(shape.tag)[1:-1]}> is no shape that is read; correct the file, or leave the shape out")


def _box_of_mask(shape: ElementTree.Element) -> Box:
    """The box around the set pixels of a mask: counts of pixels row by row, in turn not set and set."""
    left, top, width, height = (_whole_number(shape, name) for name in ("left", "top", "width", "height"))
    counts = [plain_integer(text.strip()) for text in shape.get("rle", "").split(",")]
    numbers = [count for count in counts if count is not None]
    if len(numbers) < len(counts) or sum(numbers) > width * height:
        raise InputError(f"rle must be counts of pixels, at most {width}x{height} ({shorten(shape.get('rle'))})")
    ends = accumulate(numbers, initial=0)
    box = around_runs(list(pairwise(ends))[1::2], max(1, width))
    if box is None:
        raise InputError(f"the mask has no pixel ({shorten(shape.get('rle'))})")
    return left + box[0], top + box[1], left + box[2], top + box[3]


def _points(shape: ElementTree.Element, fewest: int = 1) -> list[tuple[float, float]]:
    """The points of "x,y;x,y"."""
    points = []
    for text in shape.get("points", "").split(";"):
        x, comma, y = text.partition(",")
        numbers = plain_number(x.strip()), plain_number(y.strip())
        if not comma or numbers[0] is None or numbers[1] is None:
            raise InputError(f"points must be plain finite numbers x,y;x,y ({shorten(text)})")
        points.append((numbers[0], numbers[1]))
    if len(points) < fewest:
        raise InputError(f"{len(points)} points outline nothing; a {shape.tag} has {fewest} or more")
    return points


def _number(element: ElementTree.Element, name: str, default: str = "") -> float:
    number = plain_number(element.get(name, default).strip())
    if number is None:
        raise InputError(f"{name} must be a plain finite number ({shorten(element.get(name))})")
    return number


def _whole_number(element: ElementTree.Element, name: str, default: str = "") -> int:
    number = _number(element, name, default)
    if number % 1 or number < 0:
        raise InputError(f"{name} must be a whole number ({shorten(element.get(name))})")
    return int(number)
