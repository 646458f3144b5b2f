"""COCO datasets: one json a split, with images, annotations and categories.

Boxes are [x, y, width, height] in pixels; iscrowd marks what is ignored, and `score` may be the weight of an object.
`info.anchorite` is our own: {"ignore_classes": [name, ...], "scores": "as-weights"}. Where an annotation has a
segmentation and no bbox, its box is the one around the polygons or the mask. A json has no lines worth naming, so an
origin reads "file: annotation id N". A file is parsed by msgspec into its unparsed items and these one by one, so that
what `segmentation` holds never becomes Python objects: on a file of 72 MB (250 000 annotations) that takes 2.7 s and
107 MB, the `json` module 3.4 s and 427 MB, ijson 7.3 s and 10 MB.

Format: https://cocodataset.org/#format-data. Legend: K classes.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import msgspec

from anchorite.choices import ScoresUse
from anchorite.data.dataset import NO_CLASS, NO_NUMBER, Box, RecordTable, pack_box
from anchorite.data.formats.common import (
    SCORES_HINT,
    ClassesAndSplits,
    Fault,
    Fence,
    ReadingLog,
    SplitBuilder,
    assign_splits,
    box_around,
    exists,
    files_with_suffix,
    folders_in,
    is_class_name,
    is_finite,
    is_image_name,
    split_of,
    weight_fault,
    without_links,
)
from anchorite.data.formats.named import plain_parts
from anchorite.data.formats.shapes import around_runs
from anchorite.errors import InputError
from anchorite.reading import read_json, read_limited, shorten

LOOKED_FOR = "COCO: annotations/instances_*.json, <split>/_annotations.coco.json, or other COCO *.json, <split>/*.json"
SUFFIXES = (".json",)
ROBOFLOW_NAME = "_annotations.coco.json"
_PREFIX = "instances_"
_KEYS = {"images", "annotations", "categories"}
_MOST_JSONS = 100  # of any name that are looked into; in a folder with more there is one an image
_LARGEST_ID = 10**18  # of those that int64 holds
_LONGEST_RUN_BITS = 60
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?")

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
    score: Any = None


class _Outline(msgspec.Struct):
    segmentation: Any = None


class _Use(msgspec.Struct):
    category_id: Any = None


@dataclass(frozen=True)
class _Category:
    name: str
    group: object = None  # the name of its supercategory


@dataclass
class _Images:
    """The images of a json by their files.

    first: by path the first entry of each, in the order of their names; more: by path the other entries, as merged
    exports have them; place_of: the path of each image id, "" where the image cannot be used; faults: by path why an
    image is left out.
    """

    first: dict[str, _Image] = field(default_factory=dict)
    more: dict[str, list[_Image]] = field(default_factory=lambda: defaultdict(list))
    place_of: dict[Id | None, str] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))


def find(root: Path, log: ReadingLog, fence: Fence) -> dict[str, Path]:
    """The json of each split in a folder: annotations/instances_*.json, a json in each split's folder, or json files
    named by split; of one json its split by its own name, else by its folder's, else "train".

    None is found unless its path says that it is COCO, or its content does. Raises InputError when one that is found
    is a link that leads out of the fence.
    """
    if root.is_file():
        fence.check(root)
        return {_split_of_lone(root): root} if _keys(root) & _KEYS else {}
    bases = [*filter(None, [log.folders.find(root, ["annotations"])]), root]
    jsons = [path for base in bases for path in files_with_suffix(base, ".json")]
    named = _by_word(path for path in jsons if path.name.lower().startswith(_PREFIX))
    lone = _roboflow_json(root)
    if not named and lone is not None:
        return {_split_of_lone(lone): fence.check(lone)}
    if not named:
        named = _jsons_of_splits([child for child in folders_in(root) if split_of(child.name)], fence)
    for base in bases:
        jsons, broken = ([], {}) if named else loose_jsons(base, fence)
        if jsons:  # a split must not get lost because its json is cut short; other jsons may be anything
            jsons += [path for path in broken if split_of(path.stem)]
            named = _by_word(sorted(jsons))
    return {split: fence.check(path) for split, path in assign_splits(named, log).items()} if named else {}


def _word(path: Path) -> str:
    """What a json is named beside "instances_"."""
    return path.stem[len(_PREFIX) :] if path.name.lower().startswith(_PREFIX) else path.stem


def _by_word(paths: Iterable[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if named.setdefault(_word(path), path) != path:
            raise InputError(f"{path} and {named[_word(path)]} have one name; move one away, or name the one to use")
    return named


def _split_of_lone(path: Path) -> str:
    return split_of(_word(path)) or split_of(path.absolute().parent.name) or "train"


def _roboflow_json(folder: Path) -> Path | None:
    return next((path for path in files_with_suffix(folder, ".json") if path.name.lower() == ROBOFLOW_NAME), None)


def _jsons_of_splits(folders: Iterable[Path], fence: Fence) -> dict[str, Path]:
    """The json in each split's folder: of Roboflow's name, else the only one that holds images and annotations."""
    named: dict[str, Path] = {}
    unread: list[InputError] = []
    for folder in folders:
        roboflow = _roboflow_json(folder)
        found, broken = ([roboflow], {}) if roboflow is not None else loose_jsons(folder, fence)
        if len(found) == 1:
            named[folder.name] = found[0]
        elif found:
            listed = ", ".join(path.name for path in found[:5])
            raise InputError(f"{folder}: several files hold images and annotations ({listed}); keep one")
        unread += broken.values() if not found else ()
    if named and unread:  # else a split would get lost because its json is cut short
        raise unread[0]
    return named


def loose_jsons(folder: Path, fence: Fence) -> tuple[list[Path], dict[Path, InputError]]:
    """The jsons in a folder that hold images and annotations, and what is wrong with those that cannot be read.

    Where there are hundreds, one an image, only those named by split are looked at.
    """
    found, broken = list[Path](), dict[Path, InputError]()
    paths = files_with_suffix(folder, ".json")
    for path in paths if len(paths) <= _MOST_JSONS else [path for path in paths if split_of(path.stem)]:
        try:
            if not fence.refusal(path) and {"images", "annotations"} <= _keys(path):
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
    for path, content in contents.items():
        _read_own_words(content, path, log)
    categories = {path: _read_categories(content, path) for path, content in contents.items()}
    groups = _unused_groups(categories, contents)
    for category_id, (path, name) in groups.items():
        what = f"{shorten(name)} has no box and only groups other categories: it is no class"
        log.adjusted("ignored-category", f"{path}: category id {_shown_id(category_id)}", what)
    names = _agree_on_categories(
        {
            path: {category_id: one.name for category_id, one in here.items() if category_id not in groups}
            for path, here in categories.items()
        }
    )
    class_ids: dict[Id | None, int] = {category_id: number for number, category_id in enumerate(names)}
    splits: dict[str, RecordTable] = {}
    for split, path in files.items():
        folders, home = _image_folders(path, split, root, log), path.parent
        fence = Fence([root if root.is_dir() else home, *without_links(folders, home)], allow_outside)
        builder = SplitBuilder(split, names.values(), fence, log)
        splits[split] = _read_split(path, contents.pop(path), class_ids, folders, builder)
    return tuple(names.values()), splits


# From bytes to items. Python's own parser reads again what msgspec cannot, either to refuse it in words or because it
# alone takes it, such as NaN.


def _keys(path: Path) -> set[str]:
    """The keys of the object in a json; none where it holds a list. InputError where it cannot be read."""
    content = _read_content(path, dict[str, msgspec.Raw] | list[msgspec.Raw])
    return set(content) if isinstance(content, dict) else set()


def _read_content(path: Path, kind: Any = dict[str, msgspec.Raw]) -> Any:
    data = read_limited(path, sys.maxsize).removeprefix(BOM_UTF8)
    try:
        return msgspec.json.decode(data, type=kind)
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
    if not isinstance(item, dict):
        return item
    # Not by msgspec.convert, which takes no keys that are not UTF-8.
    return decoder.type(**{name: item[name] for name in decoder.type.__struct_fields__ if name in item})


def _value(item: Any, path: Path) -> Any:
    """An item as Python's parser reads it."""
    try:
        return json.loads(bytes(item)) if isinstance(item, msgspec.Raw) else item
    except (ValueError, RecursionError):
        read_json(path)  # raises in its own words: not UTF-8, a number of thousands of digits
        raise


def _read_own_words(content: Content, path: Path, log: ReadingLog) -> None:
    """Tell the log what info.anchorite says of classes and scores, if there is such a thing."""
    info = content.pop("info", None)
    if isinstance(info, msgspec.Raw):  # what else stands there need not even be UTF-8
        info = _value(info, path) if b'"anchorite"' in bytes(info) else None
    if not isinstance(info, dict) or info.get("anchorite") is None:
        return
    where, said = f"{path}: info.anchorite", info["anchorite"]
    names, scores = (said.get("ignore_classes", []), said.get("scores", "ignore")) if isinstance(said, dict) else (0, 0)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{where}: must be an object as {{"ignore_classes": ["cat"]}}; got {shorten(said)}')
    if not isinstance(scores, str) or scores not in get_args(ScoresUse):
        raise InputError(f"{where}: scores must be {' or '.join(get_args(ScoresUse))}; got {shorten(scores)}")
    log.ignored_classes |= {name: where for name in names if name not in log.ignored_classes}
    log.scores = "as-weights" if scores == "as-weights" else log.scores


def _read_categories(content: Content, path: Path) -> dict[Id, _Category]:
    categories: dict[Id, _Category] = {}
    for index, item in enumerate(_items(content, "categories", path)):
        category, where = _value(item, path), f"{path}: categories[{index}]"
        category_id = _plain_id(category.get("id")) if isinstance(category, dict) else None
        if category_id is None:
            raise InputError(f"{where}: must be an object with a whole number or a text as id; got {shorten(category)}")
        name = category.get("name")
        if not isinstance(name, str) or not is_class_name(name):
            raise InputError(f"{where}: category {shorten(category_id)} must have a text as name; got {shorten(name)}")
        if category_id in categories:
            raise InputError(
                f"{where}: the category id {shorten(category_id)} stands twice; give each category its own"
            )
        categories[category_id] = _Category(name, category.get("supercategory"))
    return categories


def _unused_groups(
    categories: Mapping[Path, Mapping[Id, _Category]], contents: Mapping[Path, Content]
) -> dict[Id, tuple[Path, str]]:
    """By id the categories that are the supercategory of others and have no annotation in any file: where they stand
    first, and their names. Exports of Roboflow begin with such a root.
    """
    members: dict[object, set[Id]] = defaultdict(set)
    listed = [(path, number, one) for path, here in categories.items() for number, one in here.items()]
    for _, category_id, one in listed:
        if isinstance(one.group, str):
            members[one.group].add(category_id)
    groups: dict[Id, tuple[Path, str]] = {}
    for path, category_id, one in listed:
        if members[one.name] - {category_id}:
            groups.setdefault(category_id, (path, one.name))
    decoder = msgspec.json.Decoder(_Use)
    for path, content in contents.items() if groups else ():
        content["annotations"] = items = _items(content, "annotations", path)
        for item in items:
            use = _parsed(item, decoder, path)
            used = _plain_id(use.category_id) if isinstance(use, _Use) else None
            if used is not None:
                groups.pop(used, None)
    return groups


def _agree_on_categories(lists: Mapping[Path, Mapping[Id, str]]) -> dict[Id, str]:
    """The K class names of all files' categories by category id, in the order of the ids, texts behind numbers.

    Ids alone tell categories apart: those of equal names stay two classes, "name" and "name#ID". Raises InputError when
    two files give an id different names, or a name different ids.
    """
    names: dict[Id, tuple[str, Path]] = {}
    ids_of_names: dict[str, tuple[set[Id], Path]] = {}
    for path, here in lists.items():
        ids_here: dict[str, set[Id]] = defaultdict(set)
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
                listed, others = (", ".join(map(shorten, sorted(some, key=_order)[:5])) for some in (ids, other_ids))
                raise InputError(
                    f"{path}: category {shorten(name)} has id {listed}, but in {other} id {others}; "
                    "give all splits the same categories"
                )
    if not names:
        raise InputError(f"{next(iter(lists))}: categories is empty; a dataset needs at least one class")
    distinct: dict[Id, str] = {}
    for category_id, (name, _) in sorted(names.items(), key=lambda item: _order(item[0])):
        made = name
        while made in distinct.values() or (made != name and made in ids_of_names):
            made = f"{made}#{_shown_id(category_id)}"
        distinct[category_id] = made
    return distinct


def _order(some_id: Id) -> tuple[bool, Id]:
    return isinstance(some_id, str), some_id


def _image_folders(path: Path, split: str, root: Path, log: ReadingLog) -> list[Path]:
    """The existing folders that a json's file names may be relative to, the most telling first."""
    home = path.parent
    is_apart = home.resolve().name.lower() == "annotations"
    names = list(dict.fromkeys([_word(path), split, *(["valid"] if split == "val" else []), f"{split}2017"]))
    ways = [*(("images", name) for name in names), *((name,) for name in names), ("images",), ("data",)]
    folders: list[Path] = []
    for base in (home, home / ".." if home.name in ("", "..") else home.parent):
        if base != home and home == root and not is_apart:
            break  # the user named this folder, so what lies beside it is none of the dataset
        if base == home or is_apart or root.is_dir():
            folders += filter(None, [log.folders.find(base, way) for way in ways])
            folders.append(base)
        else:  # the folder above a lone json may be the whole disk, so nothing is searched there
            folders += [base.joinpath(*way) for way in ways]
    log.dependencies.add_candidate(home)
    return log.folders.existing(folders)


def _read_split(
    path: Path, content: Content, class_ids: Mapping[Id | None, int], folders: list[Path], builder: SplitBuilder
) -> RecordTable:
    """The records of a split from its json; folders: those that the images may lie in."""
    log = builder.log
    images = _place_images(_items(content, "images", path), path, folders, log)
    annotations = _items(content, "annotations", path)
    del content
    boxes, masks = _read_annotations(annotations, path, images, class_ids, builder)
    images.place_of.clear()
    for place, image in images.first.items():
        file = Path(place)
        if not log.bad_labels(images.faults.get(place, ()), file):
            continue
        entries = [image, *images.more.get(place, ())]
        sizes = {(one.width, one.height): f"{path}: image id {_shown_id(one.id)} ({file.name})" for one in entries}
        header = None
        for stated_wh, origin in (sizes | masks.get(place, {})).items():
            header = builder.header(file, stated_wh, origin)
            if header is None:
                break
        if header is not None:
            builder.add(file, header, boxes.pop(place, b""))
    return builder.table()


def _place_images(items: list[Any], path: Path, folders: Sequence[Path], log: ReadingLog) -> _Images:
    """The files of a json's images; the log is told of those that have none."""
    images, placed, faulty = list[_Image](), _Images(), list[tuple[_Image, tuple[str, str]]]()
    decoder = msgspec.json.Decoder(_Image)
    items.reverse()  # taken from the end, so that their memory is freed
    for index in range(len(items)):
        image, origin = _parsed(items.pop(), decoder, path), f"{path}: images[{index}]"
        image_id = _plain_id(image.id) if isinstance(image, _Image) else None
        if not isinstance(image, _Image):
            log.bad(origin, f"must be an object with a number or text as id ({shorten(image)})")
        elif image_id is None:
            faulty.append((image, (origin, f"must be an object with a number or text as id ({shorten(image.id)})")))
        elif (reason := _image_fault(image)) is not None:
            faulty.append((image, (f"{path}: image id {_shown_id(image_id)}", reason)))
            image.id = image_id
        else:
            image.id = image_id
            images.append(image)
    images.sort(key=lambda image: PurePosixPath(image.file_name).parts)
    moved: dict[str, tuple[str, ...]] = {}
    for image in images:
        _place_image(image, placed, moved, path, folders, log)
    for image, (origin, reason) in faulty:
        # Its labels are not read, so no other entry of its file or id can be complete.
        name = image.file_name if isinstance(image.file_name, str) and "\0" not in image.file_name else ""
        file, image_id = _find_image(name, folders, log)[0] if name else None, _plain_id(image.id)
        spoilt = {str(file), "" if image_id is None else placed.place_of.setdefault(image_id, "")} & placed.first.keys()
        for place in sorted(spoilt):
            placed.faults[place].append((origin, reason, False))
        if not spoilt:
            log.bad(origin, reason, file)
    return placed


def _image_fault(image: _Image) -> str | None:
    """What is wrong with an entry whose id is good, if anything is; its size becomes whole numbers."""
    name, size = image.file_name, (_plain_count(image.width), _plain_count(image.height))
    if not isinstance(name, str) or "\0" in name or not _names_image(name):
        return f"file_name must name an image ({shorten(name)})"
    if size[0] is None or size[1] is None:
        return f"width and height must be whole numbers ({shorten([image.width, image.height])})"
    image.width, image.height = size
    return None


def _names_image(name: str) -> bool:
    return is_image_name(name.replace("\\", "/").rpartition("/")[2]) or is_image_name("".join(plain_parts(name)[-1:]))


def _place_image(
    image: _Image,
    placed: _Images,
    moved: dict[str, tuple[str, ...]],
    path: Path,
    folders: Sequence[Path],
    log: ReadingLog,
) -> None:
    """Add an entry; moved: of the files that were found under another name than their first entry has, that name."""
    origin, name = f"{path}: image id {_shown_id(image.id)}", image.file_name
    image.file_name = None  # many of them take space, and the file's path tells more
    file, is_moved = _find_image(name, folders, log)
    place = "" if file is None else str(file)
    if file is None:
        searched = ", ".join(map(str, folders))
        log.bad(origin, f"the image does not exist ({shorten(name)}; looked in {searched})")
    if is_moved:
        log.counted("relocated", origin, "images were found under another path or in another letter case")
    first = placed.first.setdefault(place, image) if place else image
    if first is image and is_moved:
        moved[place] = plain_parts(name)
    other, reason = placed.place_of.setdefault(image.id, place), None
    if other != place:
        before = shorten(Path(other).name) if other else "an image that cannot be used"
        reason = f"the id stands for {before} and {shorten(name)}; give each its own, and its boxes with it"
    elif first is not image:
        if (is_moved or place in moved) and moved.get(place) != plain_parts(name):
            reason = f"{shorten(name)} and another name of an image both lead to {place}"
        else:
            what = "images stand there again, under another id or name: the boxes of all entries are read"
            log.counted("repeated-image", origin, what)
            placed.more[place].append(image)
    for spoilt in filter(None, (other, place) if reason else ()):
        placed.faults[spoilt].append((f"{origin} ({Path(spoilt).name})", str(reason), False))


def _find_image(name: str, folders: Sequence[Path], log: ReadingLog) -> tuple[Path | None, bool]:
    """The file of a name, and whether that name had to be changed: to another letter case, or to the end of a path of
    another system.
    """
    written = name
    for written in (name, name.replace("\\", "/")) if "\\" in name else (name,):
        for folder in folders:
            if log.folders.has(place := folder / written):
                return _without_dots(place) if ".." in written else place, False
    parts = plain_parts(name)
    is_of_this_folder = PurePosixPath(written).parts == parts and not parts[0].endswith(":")
    for start in range(1 if is_of_this_folder else len(parts)):
        for folder in folders:
            found = log.folders.find(folder, parts[start:])
            if found is not None:
                return found, True
    return None, False


def _without_dots(path: Path) -> Path:
    """A path without "..", where it then leads to the same file: two names of a file must not make two images."""
    plain = Path(os.path.normpath(path))
    return plain if exists(plain) and plain.samefile(path) else path


def _read_annotations(
    items: list[Any], path: Path, images: _Images, class_ids: Mapping[Id | None, int], builder: SplitBuilder
) -> tuple[dict[str, bytearray], dict[str, dict[tuple[int, int], str]]]:
    """By path of an image its boxes, packed one behind another, and the sizes that masks state, with their origins.

    A bad annotation becomes a fault of its image; what belongs to no image is only told to the log.
    """
    log = builder.log
    boxes: dict[str, bytearray] = defaultdict(bytearray)
    masks: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    decoder, outlines = msgspec.json.Decoder(_Annotation), msgspec.json.Decoder(_Outline)
    usual_head_id = builder.head_id(f"{path}: annotation id ")
    items.reverse()  # taken from the end, so that memory of the items is freed as the rows grow
    for index in range(len(items)):
        item = items.pop()
        one = _parsed(item, decoder, path)
        if not isinstance(one, _Annotation):
            log.bad(f"{path}: annotations[{index}]", f"must be an object ({shorten(one)})")
            continue
        place = images.place_of.get(_plain_id(one.image_id))
        if place is None:
            log.bad(_origin(path, one.id, index), f"no image has this image_id ({shorten(one.image_id)})")
            continue
        if not place:
            continue
        class_id, corners = class_ids.get(_plain_id(one.category_id), NO_CLASS), _corners(one.bbox)
        reason = _fault(one, log.scores == "as-weights")
        if reason is None and (not one.bbox or (not isinstance(corners, str) and 0 in one.bbox[2:])):
            outline, origin = _parsed(item, outlines, path).segmentation, _origin(path, one.id, index)
            if outline not in (None, [], {}, [[]]):
                corners, size = _box_of_outline(outline)
                log.counted("shape-as-box", origin, "masks without a bbox, read as the boxes around them")
                masks[place].setdefault(size, origin)
        if reason is not None or isinstance(corners, str):
            images.faults[place].append((_origin(path, one.id, index), reason or str(corners), False))
            continue
        if class_id == NO_CLASS:
            reason = f"no category has this category_id ({shorten(one.category_id)})"
            images.faults[place].append((_origin(path, one.id, index), reason, True))
        if one.score is not None and log.scores == "ignore":
            what = f"annotations with a score, which is not used; {SCORES_HINT}"
            log.counted("ignored-score", _origin(path, one.id, index), what)
        number, head_id = _plain_id(one.id), usual_head_id
        if not (isinstance(number, int) and 0 <= number < _LARGEST_ID):
            number, head_id = NO_NUMBER, builder.head_id(_origin(path, one.id, index))
        area = math.nan if one.area is None else float(one.area)
        weight = 1.0 if one.score is None or log.scores == "ignore" else float(one.score)
        is_ignored = bool(one.iscrowd) or class_id == NO_CLASS
        boxes[place] += pack_box(class_id, corners, head_id, number, is_ignored, area, weight)
    return boxes, masks


def _fault(one: _Annotation, is_weighted: bool) -> str | None:
    """What is wrong with an annotation beside its box and category, if anything is."""
    if one.iscrowd not in (0, 1, None):
        return f"iscrowd must be 0 or 1 ({shorten(one.iscrowd)})"
    if one.area is not None and not (is_finite(one.area) and one.area >= 0):
        return f"area must be a finite number, 0 or more ({shorten(one.area)})"
    return None if one.score is None or not is_weighted else weight_fault(one.score)


def _corners(bbox: Any) -> Box | str:
    """The corners of a bbox, or what is wrong with it."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_finite, bbox)):
        return f"bbox must be 4 finite numbers [x, y, width, height] ({shorten(bbox)})"
    x, y, width, height = map(float, bbox)
    if width < 0 or height < 0:
        return f"bbox has a negative width or height ({shorten(bbox)})"
    return x, y, x + width, y + height


def _box_of_outline(outline: Any) -> tuple[Box | str, tuple[int, int]]:
    """The box around a segmentation, or what is wrong with it, and the size of the image that it states, 0 for none.

    A segmentation is a list of polygons [x, y, x, y, ...], or a mask {"counts": run lengths, "size": [height, width]}.
    """
    if isinstance(outline, dict):
        size = outline.get("size")
        sides = [_plain_count(side) for side in size] if isinstance(size, list) else []
        if len(sides) != 2 or not sides[0] or not sides[1]:
            return f"the size of a mask must be [height, width] ({shorten(size)})", (0, 0)
        height, width = sides[0], sides[1]
        return _box_of_runs(outline.get("counts"), height, width), (width, height)
    polygons = outline if isinstance(outline, list) and isinstance(outline[0], list) else [outline]
    for polygon in (one for one in polygons if one != []):
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_finite, polygon)):
            return f"a polygon must be 3 or more points [x, y, x, y, ...], finite numbers ({shorten(polygon)})", (0, 0)
    numbers = list(map(float, chain.from_iterable(polygons)))
    if not numbers:
        return "the segmentation is empty, and there is no bbox", (0, 0)
    return box_around(zip(numbers[::2], numbers[1::2], strict=True)), (0, 0)


def _box_of_runs(counts: Any, height: int, width: int) -> Box | str:
    """The box around the pixels of a mask, or what is wrong with it: the lengths of runs of pixels outside and inside
    in turn, down the first column, then the next.
    """
    runs = [_plain_count(run) for run in counts] if isinstance(counts, list) else _unpacked(counts)
    total = -1 if runs is None or None in runs else sum(run or 0 for run in runs)
    if runs is None or total != height * width:
        return f"the counts of a mask must be run lengths that add up to {height} x {width} ({shorten(counts)})"
    ends = list(accumulate(run or 0 for run in runs))
    top, left, bottom, right = around_runs(zip(ends[::2], ends[1::2], strict=False), height) or (0.0,) * 4
    return left, top, right, bottom


def _unpacked(text: Any) -> list[int | None] | None:
    """The run lengths of a text of pycocotools: five bits a character, the lowest first, the sixth says that more
    follow, and from the fourth run on the difference to the run before the last.

    Ours, because the library's decoder reads and writes beyond its arrays where the text is damaged.
    """
    if not isinstance(text, str) or not all("0" <= character <= "o" for character in text):
        return None
    runs, value, bits = list[int | None](), 0, 0
    for character in text:
        code = ord(character) - ord("0")
        value, bits = value | (code & 31) << bits, bits + 5
        if bits > _LONGEST_RUN_BITS:
            return None
        if not code & 32:
            value -= (code & 16) << (bits - 4)
            value += (runs[-2] or 0) if len(runs) > 2 else 0
            if value < 0:
                return None
            runs.append(value)
            value = bits = 0
    return None if bits else runs


def _plain_id(value: Any) -> Id | None:
    """An id as it is compared, 1, 1.0, "1" and "1.0" being one; None for what is no id."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        return value if whole is None else int(whole[1])
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _plain_count(value: Any) -> int | None:
    """A whole number from 0 up, in any notation; 0 for null, None for anything else."""
    if value is None:
        return 0
    count = int(value) if isinstance(value, float) and value.is_integer() else value
    return count if type(count) is int and count >= 0 else None


def _origin(path: Path, annotation_id: Any, index: int) -> str:
    plain = _plain_id(annotation_id)
    return f"{path}: annotations[{index}]" if plain is None else f"{path}: annotation id {_shown_id(plain)}"


def _shown_id(some_id: Id) -> str:
    """An id as shown in a message: as it stands if it is short and printable."""
    text = str(some_id)
    return text if text.isprintable() and len(text) <= 40 else shorten(some_id)
