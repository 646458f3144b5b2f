"""COCO datasets: one json a split, with images, annotations and categories.

Boxes are [x, y, width, height] in pixels; iscrowd marks what is ignored. A json has no lines worth naming, so an origin
reads "file: annotation id N". A file is parsed by msgspec into its unparsed items and these one by one, so that what
`segmentation` holds never becomes Python objects: on a file of 72 MB (250 000 annotations) that takes 2.7 s and 107 MB,
the `json` module 3.4 s and 427 MB, ijson 7.3 s and 10 MB.

Legend: K classes, N boxes.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.common import (
    Fence,
    Folders,
    RawBox,
    ReadingLog,
    assign_splits,
    build_record,
    is_class_name,
    is_image_name,
    plain_boxes,
    read_image_header,
    sizes_agree,
    split_of,
    without_links,
)
from anchorite.data.headers import ImageHeader
from anchorite.data.index_cache import Dependencies
from anchorite.data.records import Record, RecordTable, TableBuilder, as_array
from anchorite.errors import InputError
from anchorite.reading import read_json, read_limited, shorten

ROBOFLOW_NAME = "_annotations.coco.json"
_LARGEST_ID = 10**18  # of those that int64 holds
_LARGEST_SIDE = 2**31 - 1
_BLOCK = 16_384  # images whose boxes are clipped together
_BOM = b"\xef\xbb\xbf"
_UNSET = msgspec.Raw()

ImageId = int | str


class CocoFile(NamedTuple):
    """One json and the split it holds."""

    split: str
    path: Path


class _Content(msgspec.Struct):
    """The members of a json, not parsed yet; `_UNSET` where it has none of that name."""

    images: msgspec.Raw = _UNSET
    annotations: msgspec.Raw = _UNSET
    categories: msgspec.Raw = _UNSET


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


def find_coco(folder: Path, log: ReadingLog, fence: Fence) -> tuple[CocoFile, ...]:
    """The jsons of a folder: annotations/instances_*.json, a json in each split's folder, or json files named by split.

    None is found unless its path says that it is COCO, or its content does. Raises InputError when one that is found
    is a link that leads out of the fence.
    """
    files = _find_files(folder, log, fence)
    for file in files:
        fence.check(file.path)
    return files


def _find_files(folder: Path, log: ReadingLog, fence: Fence) -> tuple[CocoFile, ...]:
    instances = [path for base in (folder / "annotations", folder) for path in sorted(base.glob("instances_*.json"))]
    if instances:
        return _by_split({path.stem.removeprefix("instances_"): path for path in instances}, log)
    if (folder / ROBOFLOW_NAME).is_file():
        return single_coco(folder / ROBOFLOW_NAME)
    children = [child for child in sorted(folder.iterdir()) if split_of(child.name)]
    exported = {child.name: child / ROBOFLOW_NAME for child in children if (child / ROBOFLOW_NAME).is_file()}
    if exported:
        return _by_split(exported, log)
    for base in (folder / "annotations", folder):
        faults: dict[Path, InputError] = {}
        jsons = {path.stem: path for path in _loose_jsons(base, fence) if _looks_like_coco(path, faults)}
        if jsons:
            # A split must not get lost because its json is cut short; other jsons may be anything.
            jsons |= {path.stem: path for path in faults if split_of(path.stem)}
            return _by_split(dict(sorted(jsons.items())), log)
    return ()


def broken_jsons(folder: Path, fence: Fence) -> list[InputError]:
    """What is wrong with each json of a folder in which no dataset was found, if it cannot be read at all."""
    faults: dict[Path, InputError] = {}
    for base in (folder / "annotations", folder):
        for path in _loose_jsons(base, fence):
            _looks_like_coco(path, faults)
    return list(faults.values())


def _loose_jsons(folder: Path, fence: Fence) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if not fence.refusal(path)]


def single_coco(path: Path) -> tuple[CocoFile, ...]:
    """The dataset of one json: its split by its own name, else by its folder's, else "train"."""
    split = split_of(path.stem.removeprefix("instances_")) or split_of(path.absolute().parent.name) or "train"
    return (CocoFile(split, path),)


def _by_split(paths_by_name: Mapping[str, Path], log: ReadingLog) -> tuple[CocoFile, ...]:
    return tuple(CocoFile(split, path) for split, path in assign_splits(paths_by_name, log).items())


def _looks_like_coco(path: Path, faults: dict[Path, InputError]) -> bool:
    """Whether a json holds images and annotations; what keeps it from being read is added to `faults`."""
    try:
        content = _read_content(path)
    except InputError as error:
        faults[path] = error
        return False
    return _UNSET not in (content.images, content.annotations)


def read_coco(files: Sequence[CocoFile], root: Path, log: ReadingLog, allow_outside: bool = False) -> DatasetIndex:
    """Read the jsons of a dataset; records in the order of their file names.

    Raises InputError at once for a json or categories that cannot be read, and for bad annotations and images after all
    have been read.
    """
    for file in files:
        log.dependencies.add_file(file.path)
    contents = {file.path: _read_content(file.path) for file in files}
    class_names, class_ids = _agree_on_categories({path: one.categories for path, one in contents.items()})
    folders = Folders(log.dependencies)
    splits: dict[str, RecordTable] = {}
    for file in files:
        log.split = file.split
        candidates = _image_folders(file, root, log.dependencies)
        home = file.path.parent
        fence = Fence([root if root.is_dir() else home, *without_links(candidates, home)], allow_outside)
        reader = _SplitReader(file.path, candidates, fence, folders, log)
        splits[file.split] = reader.read(contents.pop(file.path), class_names, class_ids)
    log.split = None
    log.raise_if_bad(root)
    return DatasetIndex(root, "coco", class_names, splits, log.adjustments)


def _read_content(path: Path) -> _Content:
    """The lists of a json; InputError as file:line:column where it is no JSON object."""
    data = read_limited(path, sys.maxsize).removeprefix(_BOM)
    try:
        return msgspec.json.decode(data, type=_Content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = read_json(path)  # raises in its own words, or takes what Python alone takes, such as NaN
        return _Content(**{key: _raw(content[key]) for key in _Content.__struct_fields__ if key in content})


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _items(raw: msgspec.Raw, key: str, path: Path) -> list[msgspec.Raw]:
    """The unparsed items of a list; InputError when it is none."""
    try:
        return msgspec.json.decode(raw, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        value = None if raw == _UNSET else _loaded(raw, path)
        if not isinstance(value, list):
            raise InputError(f"{path}: {key} must be a list; got {shorten(value)}") from None
        return list(map(_raw, value))


def _parsed(raw: msgspec.Raw, decoder: msgspec.json.Decoder[Any], path: Path) -> Any:
    """An item as a struct; as it is where it is no object."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # the latter from strings that are not UTF-8
        item = _loaded(raw, path)
        fields = decoder.type.__struct_fields__
        return decoder.type(**{name: item[name] for name in fields if name in item}) if isinstance(item, dict) else item


def _loaded(raw: msgspec.Raw, path: Path) -> Any:
    """An item as Python's parser reads it."""
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError):
        read_json(path)  # raises in its own words: not UTF-8, a number of thousands of digits
        raise


def _agree_on_categories(lists: Mapping[Path, msgspec.Raw]) -> tuple[tuple[str, ...], dict[int, int]]:
    """The K names of the union of all files' categories in the order of their ids, and category id to class number.

    Ids alone tell categories apart: those of equal names stay two classes, "name" and "name#ID". Raises InputError when
    two files give an id different names, or a name different ids.
    """
    names: dict[int, str] = {}
    first_file: dict[int, Path] = {}
    ids_of_names: dict[str, tuple[set[int], Path]] = {}
    for path, raw in lists.items():
        ids_here: dict[str, set[int]] = {}
        for category_id, name in _read_categories(raw, path).items():
            if names.setdefault(category_id, name) != name:
                raise InputError(
                    f"{path}: category {shorten(category_id)} is {shorten(name)}, but in {first_file[category_id]} "
                    f"it is {shorten(names[category_id])}; give all splits the same categories"
                )
            first_file.setdefault(category_id, path)
            ids_here.setdefault(name, set()).add(category_id)
        for name, ids in ids_here.items():
            other_ids, other = ids_of_names.setdefault(name, (ids, path))
            if other_ids != ids:
                raise InputError(
                    f"{path}: category {shorten(name)} has id {_listed(ids)}, but in {other} id {_listed(other_ids)}; "
                    "give all splits the same categories"
                )
    if not names:
        raise InputError(f"{next(iter(lists))}: categories is empty; a dataset needs at least one class")
    taken, distinct = set(names.values()), list[str]()
    for category_id in sorted(names):
        name = names[category_id]
        while name in distinct or (name != names[category_id] and name in taken):
            name = f"{name}#{category_id}"
        distinct.append(name)
    return tuple(distinct), {category_id: number for number, category_id in enumerate(sorted(names))}


def _read_categories(raw: msgspec.Raw, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, item in enumerate(_items(raw, "categories", path)):
        category, where = _loaded(item, path), f"{path}: categories[{index}]"
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


def _listed(ids: set[int]) -> str:
    return ", ".join(shorten(category_id) for category_id in sorted(ids)[:5])


def _image_folders(file: CocoFile, root: Path, dependencies: Dependencies) -> list[Path]:
    """The existing folders that a json's file names may be relative to, the most telling first."""
    home = file.path.parent
    is_apart = home.resolve().name.lower() == "annotations"
    word = file.path.stem.removeprefix("instances_")
    names = list(dict.fromkeys([word, file.split, *(["valid"] if file.split == "val" else []), f"{file.split}2017"]))
    folders: list[Path] = []
    for base in (home, home / ".." if home.name in ("", "..") else home.parent):
        if base != home and home == root and not is_apart:
            break  # the user named this folder, so what lies beside it is none of the dataset
        folders += [base / folder / name for folder in ("images", "") for name in names] + [base / "images"]
        if base == home or is_apart or root.is_dir():  # the folder above a lone json may be the whole disk
            folders.append(base)
    for folder in (home, *folders):
        dependencies.add_candidate(folder)
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


class _ImageEntry(NamedTuple):
    """An image as listed, which can be used as far as the json goes; size_wh: as it claims, 0 where it does not."""

    image_id: ImageId
    file_name: str
    size_wh: tuple[int, int]


class _Boxes:
    """The good annotations as columns, N of them, and the bad ones by the position of their image.

    image (N,): position of the image. number (N,): the annotation's id, or -1 where `origins` has its origin.
    """

    def __init__(self) -> None:
        self.image, self.class_id, self.number = array("i"), array("q"), array("q")
        self.xyxy, self.area, self.crowd = array("d"), array("d"), bytearray()
        self.origins: dict[int, str] = {}
        self.bad: dict[int, list[tuple[str, str]]] = {}


class _SplitReader:
    """Reads one json, whose image names are relative to one of some folders."""

    def __init__(self, path: Path, image_folders: list[Path], fence: Fence, folders: Folders, log: ReadingLog) -> None:
        self._path, self._log = path, log
        self._image_folders, self._fence, self._folders = image_folders, fence, folders

    def read(self, content: _Content, class_names: tuple[str, ...], class_ids: dict[int, int]) -> RecordTable:
        """The records of the split."""
        entries, known_ids = self._read_images(_items(content.images, "images", self._path))
        annotations = _items(content.annotations, "annotations", self._path)
        del content
        boxes = self._read_annotations(annotations, entries, known_ids, class_ids)
        head = f"{self._path}: annotation id "
        records = TableBuilder()
        for position, is_plain, rows, block in _by_image(boxes, entries):
            for origin, fault in boxes.bad.get(position, ()):
                self._log.bad(origin, fault)
            image = self._find_image(entries[position])
            if image is None:
                continue
            path, header = image
            if is_plain:
                values = (block.xyxy[rows], block.class_id[rows], block.crowd[rows], block.area[rows])
                records.append(Record(path, header.width, header.height, *values, ()), head, block.number[rows])
            else:
                raw_boxes = [_raw_box(boxes, row, head) for row in block.order[rows].tolist()]
                records.append(build_record(path, header, raw_boxes, class_names, self._log))
        return records.table()

    def _read_images(self, items: list[msgspec.Raw]) -> tuple[list[_ImageEntry], set[ImageId]]:
        """The usable images in the order of their names, and the ids of all."""
        entries: dict[ImageId, _ImageEntry] = {}
        ids_by_name: dict[str, ImageId] = {}
        known_ids: set[ImageId] = set()
        decoder = msgspec.json.Decoder(_Image)
        for index, item in enumerate(items):
            image = _parsed(item, decoder, self._path)
            if not (isinstance(image, _Image) and _is_id(image.id)):
                value = shorten(json.loads(bytes(item)))
                self._log.bad(
                    f"{self._path}: images[{index}]", f"must be an object with a number or text as id ({value})"
                )
                continue
            known_ids.add(image.id)
            fault = _image_fault(image, entries, ids_by_name)
            if fault is not None:
                self._log.bad(f"{self._path}: image id {_shown_id(image.id)}", fault)
                continue
            entries[image.id] = _ImageEntry(image.id, image.file_name, (image.width, image.height))
            ids_by_name[image.file_name] = image.id
        return sorted(entries.values(), key=lambda entry: PurePosixPath(entry.file_name).parts), known_ids

    def _read_annotations(
        self,
        items: list[msgspec.Raw],
        entries: list[_ImageEntry],
        known_ids: set[ImageId],
        class_ids: dict[int, int],
    ) -> _Boxes:
        """The annotations of some images; of those that belong to no image the log is told."""
        position_of = {entry.image_id: position for position, entry in enumerate(entries)}
        boxes, decoder = _Boxes(), msgspec.json.Decoder(_Annotation)
        items.reverse()  # taken from the end, so that memory of the items is freed as the columns grow
        for index in range(len(items)):
            item = items.pop()
            one = _parsed(item, decoder, self._path)
            if not isinstance(one, _Annotation):
                self._log.bad(f"{self._path}: annotations[{index}]", f"must be an object ({shorten(one)})")
                continue
            if not _is_id(one.image_id) or one.image_id not in known_ids:
                fault = f"no image has this image_id ({shorten(one.image_id)})"
                self._log.bad(f"{self._path}: {_annotation_name(one.id, index)}", fault)
                continue
            position = position_of.get(one.image_id)
            if position is None:
                continue  # of an image that is bad
            reason = _box_fault(one.bbox, one.iscrowd, one.area)
            if type(one.category_id) is not int or one.category_id not in class_ids:
                reason = f"no category has this category_id ({shorten(one.category_id)})"
            if reason is not None:
                origin = f"{self._path}: {_annotation_name(one.id, index)}"
                boxes.bad.setdefault(position, []).append((origin, reason))
                continue
            if type(one.id) is int and 0 <= one.id < _LARGEST_ID:
                boxes.number.append(one.id)
            else:
                boxes.origins[len(boxes.number)] = f"{self._path}: {_annotation_name(one.id, index)}"
                boxes.number.append(-1)
            x, y, width, height = map(float, one.bbox)
            boxes.xyxy.extend((x, y, x + width, y + height))
            boxes.image.append(position)
            boxes.class_id.append(class_ids[one.category_id])
            boxes.crowd.append(bool(one.iscrowd))
            boxes.area.append(math.nan if one.area is None else float(one.area))
        return boxes

    def _find_image(self, entry: _ImageEntry) -> tuple[Path, ImageHeader] | None:
        """An image's path and header, where it exists and has the size that the json claims; else the log says why
        not.
        """
        origin = f"{self._path}: image id {_shown_id(entry.image_id)}"
        paths = (folder / entry.file_name for folder in self._image_folders)
        path = next((path for path in paths if self._folders.has(path)), None)
        if path is None:
            searched = ", ".join(map(str, self._image_folders))
            self._log.bad(origin, f"the image does not exist ({shorten(entry.file_name)}; looked in {searched})")
            return None
        header = read_image_header(path, self._fence, self._log)
        if header is None or not sizes_agree(header, entry.size_wh, f"{origin} ({path.name})", self._log):
            return None
        return path, header


def _image_fault(
    image: _Image, entries: Mapping[ImageId, _ImageEntry], ids_by_name: Mapping[str, ImageId]
) -> str | None:
    """What is wrong with a listed image, if anything is."""
    name, size = image.file_name, (image.width, image.height)
    if not isinstance(name, str) or not is_image_name(PurePosixPath(name).name) or "\0" in name:
        return f"file_name must name an image ({shorten(name)})"
    if image.id in entries:
        return f"the id stands twice, for {shorten(entries[image.id].file_name)} and {shorten(name)}"
    if name in ids_by_name:
        return f"{shorten(name)} is listed already, as image id {_shown_id(ids_by_name[name])}"
    if any(type(side) is not int or side < 0 for side in size):
        return f"width and height must be whole numbers ({shorten(list(size))})"
    return None


def _box_fault(box: Any, crowd: Any, area: Any) -> str | None:
    """What is wrong with the numbers of an annotation, if anything is."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox must be 4 finite numbers [x, y, width, height] ({shorten(box)})"
    if box[2] < 0 or box[3] < 0:
        return f"bbox has a negative width or height ({shorten(box)})"
    if crowd not in (0, 1):
        return f"iscrowd must be 0 or 1 ({shorten(crowd)})"
    if area is not None and not (_is_finite(area) and area >= 0):
        return f"area must be a finite number, 0 or more ({shorten(area)})"
    return None


def _is_finite(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) <= sys.float_info.max


def _is_id(value: Any) -> bool:
    """Whether a JSON value can be an image's id."""
    return type(value) is int or isinstance(value, str)


def _annotation_name(annotation_id: Any, index: int) -> str:
    is_id = isinstance(annotation_id, int | str)
    return f"annotation id {_shown_id(annotation_id)}" if is_id else f"annotations[{index}]"


def _shown_id(some_id: ImageId) -> str:
    """An id as shown in a message: as it stands if it is short and printable."""
    text = str(some_id)
    return text if text.isprintable() and len(text) <= 40 else shorten(some_id)


def _raw_box(boxes: _Boxes, row: int, head: str) -> RawBox:
    x1, y1, x2, y2 = boxes.xyxy[4 * row : 4 * row + 4]
    origin = boxes.origins.get(row) or f"{head}{boxes.number[row]}"
    area = None if math.isnan(boxes.area[row]) else boxes.area[row]
    return RawBox(boxes.class_id[row], (x1, y1, x2, y2), origin, bool(boxes.crowd[row]), area)


class _Block(NamedTuple):
    """The boxes of some images, image after image, clipped to the sizes that the json claims. order: their rows."""

    order: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    class_id: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    number: NDArray[np.int64]


def _by_image(boxes: _Boxes, entries: list[_ImageEntry]) -> Iterator[tuple[int, bool, slice, _Block]]:
    """For each image its position, whether nothing is to be reported of its boxes, and these: a slice of a block."""
    image, class_id = as_array(boxes.image, np.int32), as_array(boxes.class_id, np.int64)
    xyxy, area = as_array(boxes.xyxy, np.float64).reshape(-1, 4), as_array(boxes.area, np.float64)
    crowd, number = as_array(boxes.crowd, np.bool_), as_array(boxes.number, np.int64)
    order = np.argsort(image, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(image, minlength=len(entries)))])
    sizes_wh = np.array([[min(side, _LARGEST_SIDE) for side in entry.size_wh] for entry in entries], np.float64)
    is_reported = np.zeros(len(entries), np.bool_)
    is_reported[[*boxes.bad, *(boxes.image[row] for row in boxes.origins)]] = True
    for first in range(0, len(entries), _BLOCK):
        bounds = starts[first : first + _BLOCK + 1]
        rows = order[bounds[0] : bounds[-1]]
        sizes = sizes_wh[first : first + _BLOCK]
        clipped, is_plain = plain_boxes(xyxy[rows], class_id[rows], crowd[rows], np.diff(bounds), sizes)
        is_plain &= ~is_reported[first : first + _BLOCK]
        sides = clipped[:, 2:] - clipped[:, :2]
        areas = np.where(np.isnan(area[rows]), sides[:, 0] * sides[:, 1], area[rows])
        block = _Block(rows, clipped, class_id[rows], crowd[rows], areas, number[rows])
        ends = (bounds - bounds[0]).tolist()
        for offset, plain in enumerate(is_plain.tolist()):
            yield first + offset, plain, slice(ends[offset], ends[offset + 1]), block
