"""COCO datasets: one json a split, with images, annotations and categories.

Boxes are [x, y, width, height] in pixels; iscrowd marks what is ignored. A json has no lines worth naming, so an origin
reads "file: annotation id N". A file is parsed by msgspec into its unparsed items and these one by one, so that what
`segmentation` holds never becomes Python objects: on a file of 72 MB (250 000 annotations) that takes 2.7 s and 107 MB,
the `json` module 3.4 s and 427 MB, ijson 7.3 s and 10 MB.

Legend: K classes.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from anchorite.data.dataset import NO_NUMBER, RecordTable, pack_box
from anchorite.data.formats.common import (
    ClassesAndSplits,
    Fence,
    ReadingLog,
    SplitBuilder,
    assign_splits,
    is_class_name,
    is_image_name,
    split_of,
    without_links,
)
from anchorite.errors import InputError
from anchorite.reading import read_json, read_limited, shorten

LOOKED_FOR = "COCO: annotations/instances_*.json, <split>/_annotations.coco.json, or one COCO *.json"
SUFFIXES = (".json",)
ROBOFLOW_NAME = "_annotations.coco.json"
_LARGEST_ID = 10**18  # of those that int64 holds
_LARGEST = sys.float_info.max
_BOM = b"\xef\xbb\xbf"

Id = int | str
Content = dict[str, Any]  # the members of a json, unparsed (`msgspec.Raw`) or as Python's parser reads them


class _Image(msgspec.Struct):
    id: Any = None
    file_name: Any = None
    width: Any = 0
    height: Any = 0


class _Annotation(msgspec.Struct):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0
    area: Any = None


def find(root: Path, log: ReadingLog, fence: Fence) -> dict[str, Path]:
    """The json of each split in a folder: annotations/instances_*.json, a json in each split's folder, or json files
    named by split; of one json its split by its own name, else by its folder's, else "train".

    None is found unless its path says that it is COCO, or its content does. Raises InputError when one that is found
    is a link that leads out of the fence.
    """
    bases, lone = (root / "annotations", root), root if root.is_file() else root / ROBOFLOW_NAME
    named = {
        path.stem.removeprefix("instances_"): path for base in bases for path in sorted(base.glob("instances_*.json"))
    }
    if not named and lone.is_file():
        split = split_of(lone.stem.removeprefix("instances_")) or split_of(lone.absolute().parent.name) or "train"
        return {split: fence.check(lone)}
    if not named:
        places = (child / ROBOFLOW_NAME for child in sorted(root.iterdir()) if split_of(child.name))
        named = {path.parent.name: path for path in places if path.is_file()}
    for base in bases:
        jsons, broken = ([], {}) if named else loose_jsons(base, fence)
        if jsons:  # a split must not get lost because its json is cut short; other jsons may be anything
            jsons += [path for path in broken if split_of(path.stem)]
            named = dict(sorted((path.stem, path) for path in jsons))
    return {split: fence.check(path) for split, path in assign_splits(named, log).items()} if named else {}


def loose_jsons(folder: Path, fence: Fence) -> tuple[list[Path], dict[Path, InputError]]:
    """The jsons in a folder that hold images and annotations, and what is wrong with those that cannot be read."""
    found, broken = list[Path](), dict[Path, InputError]()
    for path in sorted(folder.glob("*.json")):
        try:
            if not fence.refusal(path) and {"images", "annotations"} <= _read_content(path).keys():
                found.append(path)
        except InputError as error:
            broken[path] = error
    return found, broken


def read(files: Mapping[str, Path], root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names and splits of the json of each split; records in the order of their file names.

    Raises InputError for a json or categories that cannot be read; the log is told of bad annotations and images.
    """
    for path in files.values():
        log.dependencies.add_file(path)
    contents = {path: _read_content(path) for path in files.values()}
    names = _agree_on_categories({path: _read_categories(content, path) for path, content in contents.items()})
    class_ids = {category_id: number for number, category_id in enumerate(names)}
    splits: dict[str, RecordTable] = {}
    for split, path in files.items():
        folders, home = _image_folders(path, split, root, log), path.parent
        fence = Fence([root if root.is_dir() else home, *without_links(folders, home)], allow_outside)
        builder = SplitBuilder(split, names.values(), fence, log)
        splits[split] = _read_split(path, contents.pop(path), class_ids, folders, builder)
    return tuple(names.values()), splits


# From bytes to items. Python's own parser reads again what msgspec cannot, either to refuse it in words or because it
# alone takes it, such as NaN.


def _read_content(path: Path) -> Content:
    data = read_limited(path, sys.maxsize).removeprefix(_BOM)
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return read_json(path)


def _items(content: Content, key: str, path: Path) -> list[Any]:
    """The items of a list, unparsed as far as possible; InputError when it is none."""
    items = content.pop(key, None)
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        items = msgspec.json.decode(items, type=list[msgspec.Raw]) if isinstance(items, msgspec.Raw) else items
    items = _value(items, path)
    if not isinstance(items, list):
        raise InputError(f"{path}: {key} must be a list; got {shorten(items)}")
    return items


def _parsed(item: Any, decoder: msgspec.json.Decoder[Any], path: Path) -> Any:
    """An item as a struct; as it is where it is no object."""
    try:
        if isinstance(item, msgspec.Raw):
            return decoder.decode(item)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # the latter from strings that are not UTF-8
        item = _value(item, path)
    return msgspec.convert(item, decoder.type) if isinstance(item, dict) else item


def _value(item: Any, path: Path) -> Any:
    """An item as Python's parser reads it."""
    try:
        return json.loads(bytes(item)) if isinstance(item, msgspec.Raw) else item
    except (ValueError, RecursionError):
        read_json(path)  # raises in its own words: not UTF-8, a number of thousands of digits
        raise


def _read_categories(content: Content, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, item in enumerate(_items(content, "categories", path)):
        category, where = _value(item, path), f"{path}: categories[{index}]"
        if not isinstance(category, dict) or type(category.get("id")) is not int:
            raise InputError(f"{where}: must be an object with a whole number as id; got {shorten(category)}")
        category_id, name = category["id"], category.get("name")
        if not isinstance(name, str) or not is_class_name(name):
            raise InputError(f"{where}: category {shorten(category_id)} must have a text as name; got {shorten(name)}")
        if category_id in names:
            raise InputError(
                f"{where}: the category id {shorten(category_id)} stands twice; give each category its own"
            )
        names[category_id] = name
    return names


def _agree_on_categories(lists: Mapping[Path, Mapping[int, str]]) -> dict[int, str]:
    """The K class names of all files' categories by category id, in the order of the ids.

    Ids alone tell categories apart: those of equal names stay two classes, "name" and "name#ID". Raises InputError when
    two files give an id different names, or a name different ids.
    """
    names: dict[int, tuple[str, Path]] = {}
    ids_of_names: dict[str, tuple[set[int], Path]] = {}
    for path, here in lists.items():
        ids_here: dict[str, set[int]] = defaultdict(set)
        for category_id, name in here.items():
            other_name, other = names.setdefault(category_id, (name, path))
            if other_name != name:
                raise InputError(
                    f"{path}: category {shorten(category_id)} is {shorten(name)}, but in {other} it is "
                    f"{shorten(other_name)}; give all splits the same categories"
                )
            ids_here[name].add(category_id)
        for name, ids in ids_here.items():
            other_ids, other = ids_of_names.setdefault(name, (ids, path))
            if other_ids != ids:
                listed, others = (", ".join(map(shorten, sorted(some)[:5])) for some in (ids, other_ids))
                raise InputError(
                    f"{path}: category {shorten(name)} has id {listed}, but in {other} id {others}; "
                    "give all splits the same categories"
                )
    if not names:
        raise InputError(f"{next(iter(lists))}: categories is empty; a dataset needs at least one class")
    distinct: dict[int, str] = {}
    for category_id, (name, _) in sorted(names.items()):
        made = name
        while made in distinct.values() or (made != name and made in ids_of_names):
            made = f"{made}#{category_id}"
        distinct[category_id] = made
    return distinct


def _image_folders(path: Path, split: str, root: Path, log: ReadingLog) -> list[Path]:
    """The existing folders that a json's file names may be relative to, the most telling first."""
    home = path.parent
    is_apart = home.resolve().name.lower() == "annotations"
    word = path.stem.removeprefix("instances_")
    names = list(dict.fromkeys([word, split, *(["valid"] if split == "val" else []), f"{split}2017"]))
    folders: list[Path] = []
    for base in (home, home / ".." if home.name in ("", "..") else home.parent):
        if base != home and home == root and not is_apart:
            break  # the user named this folder, so what lies beside it is none of the dataset
        folders += [base / folder / name for folder in ("images", "") for name in names] + [base / "images"]
        if base == home or is_apart or root.is_dir():  # the folder above a lone json may be the whole disk
            folders.append(base)
    log.dependencies.add_candidate(home)
    return log.folders.existing(folders)


def _read_split(
    path: Path, content: Content, class_ids: Mapping[int, int], folders: list[Path], builder: SplitBuilder
) -> RecordTable:
    """The records of a split from its json; folders: those that the images may lie in."""
    log = builder.log
    images, known_ids = _read_images(_items(content, "images", path), path, log)
    annotations = _items(content, "annotations", path)
    del content
    usable = dict.fromkeys(known_ids, False) | {image.id: True for image in images}
    boxes, bad = _read_annotations(annotations, path, usable, class_ids, builder)
    for image in images:
        for origin, fault in bad.get(image.id, ()):
            log.bad(origin, fault)
        origin = f"{path}: image id {_shown_id(image.id)}"
        places = (folder / image.file_name for folder in folders)
        place = next((place for place in places if log.folders.has(place)), None)
        if place is None:
            searched = ", ".join(map(str, folders))
            log.bad(origin, f"the image does not exist ({shorten(image.file_name)}; looked in {searched})")
            continue
        header = builder.header(place, (image.width, image.height), f"{origin} ({place.name})")
        if header is not None:
            builder.add(place, header, boxes.pop(image.id, b""))
    return builder.table()


def _read_images(items: list[Any], path: Path, log: ReadingLog) -> tuple[list[_Image], set[Id]]:
    """The usable images in the order of their names, and the ids of all."""
    images: dict[Id, _Image] = {}
    ids_by_name: dict[str, Id] = {}
    known_ids: set[Id] = set()
    decoder = msgspec.json.Decoder(_Image)
    for index, item in enumerate(items):
        image = _parsed(item, decoder, path)
        if not (isinstance(image, _Image) and type(image.id) in (int, str)):
            value = shorten(_value(item, path))
            log.bad(f"{path}: images[{index}]", f"must be an object with a number or text as id ({value})")
            continue
        known_ids.add(image.id)
        name, size = image.file_name, [image.width, image.height]
        if not isinstance(name, str) or not is_image_name(PurePosixPath(name).name) or "\0" in name:
            fault = f"file_name must name an image ({shorten(name)})"
        elif image.id in images:
            fault = f"the id stands twice, for {shorten(images[image.id].file_name)} and {shorten(name)}"
        elif name in ids_by_name:
            fault = f"{shorten(name)} is listed already, as image id {_shown_id(ids_by_name[name])}"
        elif any(type(side) is not int or side < 0 for side in size):
            fault = f"width and height must be whole numbers ({shorten(size)})"
        else:
            images[image.id], ids_by_name[name] = image, image.id
            continue
        log.bad(f"{path}: image id {_shown_id(image.id)}", fault)
    return sorted(images.values(), key=lambda image: PurePosixPath(image.file_name).parts), known_ids


def _read_annotations(
    items: list[Any], path: Path, usable: Mapping[Id, bool], class_ids: Mapping[int, int], builder: SplitBuilder
) -> tuple[dict[Id, bytearray], dict[Id, list[tuple[str, str]]]]:
    """Of each usable image the good annotations, packed one behind another, and the bad ones, origin and fault.

    usable: the ids of all images, and whether they are. What belongs to no image is only told to the log.
    """
    log = builder.log
    boxes: dict[Id, bytearray] = defaultdict(bytearray)
    bad: dict[Id, list[tuple[str, str]]] = defaultdict(list)
    decoder, usual_head_id = msgspec.json.Decoder(_Annotation), builder.head_id(f"{path}: annotation id ")
    items.reverse()  # taken from the end, so that memory of the items is freed as the rows grow
    for index in range(len(items)):
        one = _parsed(items.pop(), decoder, path)
        if not isinstance(one, _Annotation):
            log.bad(f"{path}: annotations[{index}]", f"must be an object ({shorten(one)})")
            continue
        if type(one.image_id) not in (int, str) or one.image_id not in usable:
            log.bad(_origin(path, one.id, index), f"no image has this image_id ({shorten(one.image_id)})")
            continue
        if not usable[one.image_id]:
            continue
        if (fault := _fault(one, class_ids)) is not None:
            bad[one.image_id].append((_origin(path, one.id, index), fault))
            continue
        number, head_id = one.id, usual_head_id
        if not (type(number) is int and 0 <= number < _LARGEST_ID):
            number, head_id = NO_NUMBER, builder.head_id(_origin(path, one.id, index))
        x, y, width, height = map(float, one.bbox)
        area = math.nan if one.area is None else float(one.area)
        corners = (x, y, x + width, y + height)
        packed = pack_box(class_ids[one.category_id], corners, head_id, number, bool(one.iscrowd), area)
        boxes[one.image_id] += packed
    return boxes, bad


def _fault(one: _Annotation, class_ids: Mapping[int, int]) -> str | None:
    """What is wrong with an annotation, if anything is."""
    box, area = one.bbox, one.area
    if type(one.category_id) is not int or one.category_id not in class_ids:
        return f"no category has this category_id ({shorten(one.category_id)})"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox must be 4 finite numbers [x, y, width, height] ({shorten(box)})"
    if box[2] < 0 or box[3] < 0:
        return f"bbox has a negative width or height ({shorten(box)})"
    if one.iscrowd not in (0, 1):
        return f"iscrowd must be 0 or 1 ({shorten(one.iscrowd)})"
    if area is not None and not (_is_finite(area) and area >= 0):
        return f"area must be a finite number, 0 or more ({shorten(area)})"
    return None


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def _origin(path: Path, annotation_id: Any, index: int) -> str:
    has_id = isinstance(annotation_id, int | str)
    return f"{path}: annotation id {_shown_id(annotation_id)}" if has_id else f"{path}: annotations[{index}]"


def _shown_id(some_id: Id) -> str:
    """An id as shown in a message: as it stands if it is short and printable."""
    text = str(some_id)
    return text if text.isprintable() and len(text) <= 40 else shorten(some_id)
