"""Label Studio's own formats, the exports "JSON" and "JSON-MIN": a list of tasks, in each one image.

Format: https://labelstud.io/guide/task_format and, of each kind of region, https://labelstud.io/tags. Regions are in
percent of the image. Of polygons, ellipses, brushed masks and boxes that are turned the boxes around them are taken.
A region with several labels is an object of each. Predictions and drafts are no labels. Of several annotations of a
task one is read, the one marked as ground truth or else the first with a region, so that no object is doubled. A task
that nobody finished is left out; one that was submitted without a region is background.
"""

from __future__ import annotations

import re
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from anchorite.data.dataset import Box
from anchorite.data.formats.common import (
    ClassesAndSplits,
    Fence,
    ReadingLog,
    box_around,
    files_with_suffix,
    is_finite,
    is_image_name,
    split_of,
)
from anchorite.data.formats.named import LabelledImage, NamedBox, plain_parts, read_named
from anchorite.data.formats.shapes import around_ellipse, around_rotated, around_runs
from anchorite.errors import InputError
from anchorite.reading import parse_json, read_limited, shorten

LOOKED_FOR = "Label Studio: a *.json that is a list of tasks (the exports JSON and JSON-MIN)"
SUFFIXES = (".json",)
_HEAD_BYTES = 1 << 20  # of a json that tell whether it is Label Studio's
_BEGINNING = re.compile(rb"\s*\[\s*\{")
_KEY = re.compile(rb'"(?:annotations|completions|annotation_id|annotator|[a-z]*labels)"\s*:')
_HASH = re.compile(r"[0-9a-f]{8}-(?=.)")  # before the name of a file that was uploaded
_LARGEST = 1.00001  # side of a region as a part of the image's, as rounding may leave it
_FILE_KEYS = ("image", "img")  # of a task's data, preferred where several name an image
_UNLABELLED = "was not labelled: it has no annotation that was submitted"
_OUTLINING_NOTHING = ("key points", "tags")
Region = dict[str, Any]


def find(root: Path, log: ReadingLog, fence: Fence) -> list[Path]:
    """The jsons of Label Studio in a folder, else in folders that are named by split; or the one that is named."""
    if root.is_file():
        return [root] if _is_label_studio(root, log) else []
    within = sorted(child for child in root.iterdir() if split_of(child.name) and child.is_dir())
    for folders in ([root], within):
        paths = chain.from_iterable(files_with_suffix(one, ".json") for one in folders if not fence.refusal(one))
        found = [path for path in paths if not fence.refusal(path) and _is_label_studio(path, log)]
        if found:
            return found
    return []


def _is_label_studio(path: Path, log: ReadingLog) -> bool:
    log.dependencies.add_file(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).removeprefix(BOM_UTF8)
    return bool(_BEGINNING.match(head) and _KEY.search(head))


def read(files: Sequence[Path], root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names, sorted, and splits; records in the order of the images' paths.

    Splits are told by the name of the json and by the folders of the images. Raises InputError for a damaged json, and
    where two hold the same task, as two exports of one project do; the log is told of the rest.
    """
    entries: dict[tuple[str, str], LabelledImage] = {}
    for path in files:
        log.dependencies.add_file(path)
        known = dict(entries)
        split = split_of(path.stem) or (split_of(path.parent.name) if path.parent != root else None)
        for index, task in enumerate(_tasks(path)):
            if not isinstance(task, dict):
                log.bad(f"{path}: task {index + 1} of the list", f"must be an object ({shorten(task)})")
                continue
            has_id = isinstance(task.get("id"), int | str) and len(str(task["id"])) <= 40
            shown = shorten(task["id"]) if has_id else f"{index + 1} of the list"
            try:
                image = _read_task(task, f"{path}: task {shown}", split)
            except InputError as error:
                log.bad(f"{path}: task {shown}", str(error))
                continue
            key = shown, image.name
            if key in known:
                raise InputError(
                    f"{image.origin}: {shorten(image.name)} is in {known[key].origin} as well; if these are two "
                    "exports of a project, move the older one away, or name the one to read"
                )
            if key not in entries:
                entries[key] = image
            else:  # JSON-MIN lists each annotation of a task by itself
                first = entries[key]
                entries[key] = first if first.boxes or first.faults else image
                _tell_of_others(entries[key], 1)
    return read_named(entries.values(), root if root.is_dir() else root.parent, root, log, allow_outside)


def _tasks(path: Path) -> Iterator[Any]:
    """The items of a json's list, one by one, so that few of them are objects at a time."""
    data = read_limited(path, sys.maxsize).removeprefix(BOM_UTF8)
    try:
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = parse_json(data, path)  # which says where it is damaged, and takes NaN
        if not isinstance(content, list):
            raise InputError(f"{path}:1:1: a list of tasks [...] is wanted, not {type(content).__name__}") from None
        yield from content
        return
    for index, item in enumerate(items):
        try:
            task = msgspec.json.decode(item)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield from parse_json(data, path)[index:]
            return
        yield task


def _read_task(task: dict[str, Any], where: str, split: str | None) -> LabelledImage:
    """The image of a task and its objects; InputError, which names no file, where it has no image or several."""
    is_full = isinstance(task.get("data"), dict)
    name = _image_name(task["data"] if is_full else task)
    bare = plain_parts(name)[-1]
    others = tuple(dict.fromkeys((unquote(bare), _HASH.sub("", bare), _HASH.sub("", unquote(bare)))))
    image = LabelledImage(name, where, others, split=split, is_normalised=True)
    if is_full:
        finished = _finished_annotations(task)
        if finished:
            _tell_of_others(image, len(finished) - 1)
            chosen = max(finished, key=lambda one: (one.get("ground_truth") is True, bool(one["result"])))
            _add_regions(image, chosen["result"])
        else:
            image.left_out = _UNLABELLED
    else:
        regions = list(_regions_of_min(task))
        if not regions and task.get("annotation_id") is None:
            image.left_out = _UNLABELLED
        _add_regions(image, regions)
    return image


def _tell_of_others(image: LabelledImage, number: int) -> None:
    if number:
        image.told["ignored-annotation", image.origin, "annotations of tasks that have another, which is read"] += (
            number
        )


def _image_name(data: Mapping[str, Any]) -> str:
    """The one file that the values of a task's data name, by a path or a URL."""
    named: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, str) and "\0" not in value and (parts := plain_parts(value)) and is_image_name(parts[-1]):
            named[key] = value
    preferred = next((key for key in named if key.lower() in _FILE_KEYS), None)
    names = {plain_parts(name)[-1] for name in named.values()}
    if not named or (len(names) > 1 and preferred is None):
        listed = ", ".join(map(shorten, list(data)[:5]))
        what = "several images" if named else "no image"
        raise InputError(f"its data have {what} (keys {listed}); one image a task is read")
    return named[preferred or next(iter(named))]


def _finished_annotations(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The annotations that were submitted; InputError for what is none."""
    annotations = task.get("annotations")
    if annotations is None:
        annotations = task.get("completions")  # the name before 2021
    if not isinstance(annotations, list | None):
        raise InputError(f"annotations must be a list ({shorten(annotations)})")
    for one in annotations or ():
        if not isinstance(one, dict) or not isinstance(one.get("result"), list):
            raise InputError(f"each of its annotations must be an object with a list as result ({shorten(one)})")
    return [one for one in annotations or () if one.get("was_cancelled") in (None, False)]


def _regions_of_min(task: Mapping[str, Any]) -> Iterator[Region]:
    """The regions of a task in JSON-MIN, where each list of them stands at the name of its control."""
    for value in task.values():
        for one in value if isinstance(value, list) else ():
            if isinstance(one, dict) and _shape(one) != "tags":
                yield {"value": one} | one


def _labels(value: Mapping[str, Any]) -> Any:
    """What stands at `rectanglelabels`, `labels` or the like, None where a region has none."""
    return next((value[key] for key in value if isinstance(key, str) and key.endswith("labels")), None)


def _add_regions(image: LabelledImage, regions: Sequence[Any]) -> None:
    """Add the objects of an annotation, or what is wrong with them."""
    # With the controls Labels and Rectangle apart a region has an entry of each, and of further controls about it.
    labelled = {
        one["id"] for one in regions
        if isinstance(one, dict) and isinstance(one.get("id"), str) and isinstance(one.get("value"), dict)
        and _labels(one["value"]) and _shape(one["value"])
    }  # fmt: skip
    for number, one in enumerate(regions, start=1):
        origin = f"{image.origin}, result {number}"
        if not isinstance(one, dict):
            image.faults.append((origin, f"must be an object ({shorten(one)})"))
            continue
        value, is_known = one.get("value"), isinstance(one.get("id"), str) and one["id"] in labelled
        if one.get("type") == "relation" or (is_known and isinstance(value, dict) and not _labels(value)):
            continue
        try:
            _add_region(image, one, value, number)
        except InputError as error:
            image.faults.append((origin, str(error)))


def _add_region(image: LabelledImage, region: Region, value: Any, number: int) -> None:
    if not isinstance(value, dict):
        raise InputError(f"value must be an object ({shorten(value)})")
    shape, labels = _shape(value), _labels(value)
    if shape in _OUTLINING_NOTHING:
        image.pass_over(shape)
        return
    fault = ""
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        fault, labels = f"the region has no label ({shorten(labels)}); give it one", [""]
    if region.get("image_rotation") not in (None, 0):
        turned = shorten(region["image_rotation"])
        raise InputError(
            f"the image was turned by {turned} degrees to label it, which is not read; turn the file itself"
        )
    wh = _side(region, "original_width"), _side(region, "original_height")
    if 0 not in wh:
        if image.stated_wh not in ((0, 0), wh):
            raise InputError(f"the image is {wh[0]}x{wh[1]} here, but {image.stated_wh[0]}x{image.stated_wh[1]} before")
        image.stated_wh = wh
    box, is_around = _box_of(value, shape, wh)
    for label in dict.fromkeys(labels):
        named = NamedBox(label, box, f"{image.origin}, result ", number, score=region.get("score"), fault=fault)
        image.add(named, shape if is_around else "")


def _shape(value: Mapping[str, Any]) -> str:
    """What a region is, by the keys of its value, in the plural."""
    if "rle" in value:
        return "brushed masks"
    if "points" in value:
        return "polygons"
    if "radiusX" in value or "radiusY" in value:
        return "ellipses"
    if "x" in value or "y" in value:
        return "rotated boxes" if "height" in value else "key points"
    return "other regions" if _labels(value) else "tags"


def _box_of(value: Mapping[str, Any], shape: str, wh: tuple[int, int]) -> tuple[Box, bool]:
    """The box of a region as parts of the image's size wh, and whether it is one around something else.

    Raises InputError, which names no file.
    """
    if shape == "brushed masks":
        return _box_of_brush(value, wh), True
    if shape == "polygons":
        return box_around(_points(value)), True
    if shape not in ("ellipses", "rotated boxes"):
        raise InputError(f"a region of this kind is not read (keys {', '.join(map(shorten, list(value)[:5]))})")
    degrees = 0.0 if value.get("rotation") is None else _number(value, "rotation")
    is_turned = degrees % 360 != 0
    if is_turned and 0 in wh:
        raise InputError("it is rotated, but original_width and original_height are missing")
    # A rotation is one of pixels; without one, parts stay exact.
    width, height = wh if is_turned else (1, 1)
    x, y = _number(value, "x") / 100 * width, _number(value, "y") / 100 * height
    names = ("radiusX", "radiusY") if shape == "ellipses" else ("width", "height")
    w, h = (_number(value, name) / 100 for name in names)
    if not (0 <= w <= _LARGEST and 0 <= h <= _LARGEST):
        raise InputError(f"{names[0]} and {names[1]} must be percent of the image, 0..100 ({w * 100:g}, {h * 100:g})")
    if shape == "ellipses":
        x1, y1, x2, y2 = around_ellipse((x, y), (w * width, h * height), degrees)
    else:
        x1, y1, x2, y2 = around_rotated((x, y, x + w * width, y + h * height), degrees, (x, y))
    return (x1 / width, y1 / height, x2 / width, y2 / height), is_turned or shape == "ellipses"


def _box_of_brush(value: Mapping[str, Any], wh: tuple[int, int]) -> Box:
    """The box around the pixels of a brushed mask, by the opacity of each."""
    data, width, height = value.get("rle"), *wh
    if 0 in wh or value.get("format", "rle") != "rle" or not isinstance(data, list):
        raise InputError("a brushed mask is read with format rle, original_width and original_height")
    try:
        runs = list(_opaque_runs(bytes(data), width * height))
    except (TypeError, ValueError) as error:
        raise InputError(f"the rle of the brushed mask is damaged, or of another image ({shorten(data)})") from error
    box = around_runs(runs, width)
    if box is None:
        raise InputError("the brushed mask has no pixel")
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _opaque_runs(data: bytes, num_pixels: int) -> Iterator[tuple[int, int]]:
    """The runs of pixels, (first, behind the last), whose opacity in a packed RGBA image is above 0.

    The packing is that of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack: the number of values in 32
    bits, bits a value in 5, four sizes of counts in 4 each; then, of each run, whether it repeats one value in 1, which
    of the sizes its count has in 2, the count, less one, and the values. Raises ValueError where it is not.
    """
    bits = _Bits(data)
    if bits.take(32) != num_pixels * 4 or bits.take(5) + 1 != 8:
        raise ValueError
    sizes = [bits.take(4) + 1 for _ in range(4)]
    start = 0
    while start < num_pixels * 4:
        is_repeated = bits.take(1)
        end = start + bits.take(sizes[bits.take(2)]) + 1
        if end > num_pixels * 4:
            raise ValueError
        if is_repeated:
            if bits.take(8):
                yield start // 4, end // 4  # opacity is the last of each four
        else:
            for place in range(start, end):
                if bits.take(8) and place % 4 == 3:
                    yield place // 4, place // 4 + 1
        start = end


class _Bits:
    """Takes whole numbers of some bits from bytes, the highest bit first; ValueError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, num_bits: int) -> int:
        end = self._place + num_bits
        if end > len(self._data) * 8:
            raise ValueError
        part = self._data[self._place // 8 : -(-end // 8)]
        self._place = end
        return (int.from_bytes(part, "big") >> (-end % 8)) & ((1 << num_bits) - 1)


def _points(value: Mapping[str, Any]) -> list[tuple[float, float]]:
    points = value["points"]
    if not isinstance(points, list) or len(points) < 3:
        raise InputError(f"points must be 3 or more of [x, y] ({shorten(points)})")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(is_finite, point)):
            raise InputError(f"a point must be two finite numbers [x, y] ({shorten(point)})")
    return [(x / 100, y / 100) for x, y in points]


def _number(value: Mapping[str, Any], name: str) -> float:
    number: Any = value.get(name)
    if not is_finite(number):
        raise InputError(f"{name} must be a finite number ({shorten(number)})")
    return float(number)


def _side(region: Region, name: str) -> int:
    """A side of the image, 0 where the region does not have it."""
    side = 0 if region.get(name) is None else region[name]
    if not is_finite(side) or side < 0 or side % 1:
        raise InputError(f"{name} must be a whole number ({shorten(side)})")
    return int(side)
