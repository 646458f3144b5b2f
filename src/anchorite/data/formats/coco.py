"""COCO datasets: one json a split, with images, annotations and categories.

Boxes are [x, y, width, height] in pixels; iscrowd marks what is ignored. A json has no lines worth naming, so an origin
reads "file: annotation id N". Legend: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from anchorite.data.formats.coco_config import (
    Categories,
    CocoFile,
    Json,
    agree_on_categories,
    is_whole,
    json_list,
)
from anchorite.data.formats.geometry import RawBox, build_record, read_image_header, sizes_agree
from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import Fence, Folders, is_image_name, without_links
from anchorite.data.index import DatasetIndex, Record
from anchorite.errors import InputError
from anchorite.reading import read_json, shorten

ImageId = int | str


def read_coco(files: Sequence[CocoFile], root: Path, log: ReadingLog, allow_outside: bool = False) -> DatasetIndex:
    """Read the jsons of a dataset; records in the order of their file names.

    Raises InputError at once for a json or categories that cannot be read, and for bad annotations and images after all
    have been read.
    """
    contents = {file.path: read_json(file.path) for file in files}
    categories = agree_on_categories(contents)
    folders = Folders()
    splits: dict[str, tuple[Record, ...]] = {}
    for file in files:
        log.split = file.split
        places = _image_places(file, root)
        home = file.path.parent
        fence = Fence([root if root.is_dir() else home, *without_links(places, home)], allow_outside)
        content = contents.pop(file.path)  # the largest thing in memory goes as soon as it is read
        splits[file.split] = _read_split(file.path, content, categories, _ImageFinder(places, fence, folders), log)
    log.split = None
    log.raise_if_bad(root)
    return DatasetIndex(root, "coco", categories.names, splits, log.adjustments)


def _image_places(file: CocoFile, root: Path) -> list[Path]:
    """The existing folders that a json's file names may be relative to, the most telling first."""
    home = file.path.parent
    is_apart = home.resolve().name.lower() == "annotations"
    word = file.path.stem.removeprefix("instances_")
    names = list(dict.fromkeys([word, file.split, *(["valid"] if file.split == "val" else []), f"{file.split}2017"]))
    places: list[Path] = []
    for base in (home, home / ".." if home.name in ("", "..") else home.parent):
        if base != home and home == root and not is_apart:
            break  # the user named this folder, so what lies beside it is none of the dataset
        places += [base / folder / name for folder in ("images", "") for name in names] + [base / "images"]
        if base == home or is_apart or root.is_dir():  # the folder above a lone json may be the whole disk
            places.append(base)
    return [place for place in dict.fromkeys(places) if place.is_dir()]


class _ImageFinder:
    """Finds the image of a file name in the places of a json."""

    def __init__(self, places: Sequence[Path], fence: Fence, folders: Folders) -> None:
        self.places = places
        self.fence = fence
        self._folders = folders

    def find(self, file_name: str) -> Path | None:
        for place in self.places:
            if self._folders.has(place / file_name):
                return place / file_name
        return None


def _read_split(
    path: Path, content: Json, categories: Categories, finder: _ImageFinder, log: ReadingLog
) -> tuple[Record, ...]:
    images = _read_images(path, json_list(content, "images", path), log)
    known_ids = {image["id"] for image in json_list(content, "images", path) if _has_id(image)}
    annotations: dict[ImageId, list[tuple[str, Json]]] = {image_id: [] for image_id in images}
    for index, annotation in enumerate(json_list(content, "annotations", path)):
        origin = _origin(path, index, annotation)
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(annotation, dict):
            log.bad(origin, f"must be an object ({shorten(annotation)})")
        elif not isinstance(image_id, int | str) or isinstance(image_id, bool) or image_id not in known_ids:
            log.bad(origin, f"no image has this image_id ({shorten(image_id)})")
        elif image_id in annotations:
            annotations[image_id].append((origin, annotation))
    records: list[Record] = []
    for image_id, image in sorted(images.items(), key=lambda item: PurePosixPath(item[1]["file_name"]).parts):
        boxes = _read_boxes(annotations[image_id], categories, log)
        record = _read_image(path, image, boxes, categories, finder, log)
        if record is not None:
            records.append(record)
    return tuple(records)


def _has_id(image: object) -> bool:
    if not isinstance(image, dict):
        return False
    return is_whole(image.get("id")) or isinstance(image.get("id"), str)


def _origin(path: Path, index: int, annotation: object) -> str:
    annotation_id = annotation.get("id") if isinstance(annotation, dict) else None
    if isinstance(annotation_id, int | str):
        return f"{path}: annotation id {_shown(annotation_id)}"
    return f"{path}: annotations[{index}]"


def _shown(some_id: ImageId) -> str:
    """An id as shown in a message: as it stands if it is short and printable."""
    text = str(some_id)
    return text if text.isprintable() and len(text) <= 40 else shorten(some_id)


def _read_images(path: Path, items: Iterable[Any], log: ReadingLog) -> dict[ImageId, Json]:
    images: dict[ImageId, Json] = {}
    ids_by_name: dict[str, ImageId] = {}
    for index, image in enumerate(items):
        where = f"{path}: images[{index}]"
        if not _has_id(image):
            log.bad(where, f"must be an object with a number or text as id ({shorten(image)})")
            continue
        image_id, name = image["id"], image.get("file_name")
        where = f"{path}: image id {_shown(image_id)}"
        if not isinstance(name, str) or not is_image_name(PurePosixPath(name).name) or "\0" in name:
            log.bad(where, f"file_name must name an image ({shorten(name)})")
        elif image_id in images:
            log.bad(where, f"the id stands twice, for {shorten(images[image_id]['file_name'])} and {shorten(name)}")
        elif name in ids_by_name:
            log.bad(where, f"{shorten(name)} is listed already, as image id {_shown(ids_by_name[name])}")
        elif _claimed_size(image) is None:
            log.bad(
                where, f"width and height must be whole numbers ({shorten([image.get('width'), image.get('height')])})"
            )
        else:
            images[image_id] = image
            ids_by_name[name] = image_id
    return images


def _claimed_size(image: Json) -> tuple[int, int] | None:
    """Width and height as the json states them, 0 where it does not; None when they are no sizes."""
    width, height = image.get("width", 0), image.get("height", 0)
    if not (is_whole(width) and is_whole(height)) or min(width, height) < 0:
        return None
    return width, height


def _read_image(
    path: Path, image: Json, boxes: list[RawBox], categories: Categories, finder: _ImageFinder, log: ReadingLog
) -> Record | None:
    origin = f"{path}: image id {_shown(image['id'])}"
    image_path = finder.find(image["file_name"])
    if image_path is None:
        looked = ", ".join(str(place) for place in finder.places)
        log.bad(origin, f"the image does not exist ({shorten(image['file_name'])}; looked in {looked})")
        return None
    header = read_image_header(image_path, finder.fence, log)
    if header is None or not sizes_agree(header, _claimed_size(image), f"{origin} ({image_path.name})", log):
        return None
    return build_record(image_path, header, boxes, categories.names, log)


def _read_boxes(annotations: list[tuple[str, Json]], categories: Categories, log: ReadingLog) -> list[RawBox]:
    boxes: list[RawBox] = []
    for origin, annotation in annotations:
        try:
            boxes.append(_read_box(annotation, categories, origin))
        except InputError as error:
            log.bad(origin, str(error))
    return boxes


def _read_box(annotation: Json, categories: Categories, origin: str) -> RawBox:
    category_id = annotation.get("category_id")
    if not is_whole(category_id) or category_id not in categories.class_ids:
        raise InputError(f"no category has this category_id ({shorten(category_id)})")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        raise InputError(f"bbox must be 4 finite numbers [x, y, width, height] ({shorten(box)})")
    x, y, width, height = (float(value) for value in box)
    if width < 0 or height < 0:
        raise InputError(f"bbox has a negative width or height ({shorten(box)})")
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"iscrowd must be 0 or 1 ({shorten(crowd)})")
    area = annotation.get("area")
    if area is not None and not (_is_finite(area) and area >= 0):
        raise InputError(f"area must be a finite number, 0 or more ({shorten(area)})")
    return RawBox(
        class_id=categories.class_ids[category_id],
        box_xyxy=(x, y, x + width, y + height),
        origin=origin,
        ignored=bool(crowd),
        area=None if area is None else float(area),
    )


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number beyond the range of floats
        return False
