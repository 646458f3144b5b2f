"""What a COCO json lists, as columns: its images and annotations, each looked at once as it goes by.

Legend: M annotations, I images that can be used.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data.formats.geometry import RawBox
from anchorite.data.formats.json_stream import LEAST_BYTES, stream_json
from anchorite.data.formats.paths import is_image_name
from anchorite.data.records import as_array
from anchorite.errors import InputError
from anchorite.reading import shorten

ImageId = int | str
BY_ID, _BY_INDEX, _IN_WORDS = 0, 1, 2  # what names an annotation: its whole number, its place in the list, or a text
NONE = -1
_LARGEST_ID = 10**18  # of those that int64 holds


class ImageEntry(NamedTuple):
    """An image as listed, which can be used as far as the json goes; size_wh: as it claims, 0 where it does not."""

    image_id: ImageId
    file_name: str
    size_wh: tuple[int, int]


class CocoLists:
    """The images, annotations and categories of one json. categories: the list, or what stands there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: Any = None
        self.images = _Images(path)
        self.annotations = Annotations(path)
        self._instead: dict[str, Any] = dict.fromkeys(("images", "annotations", "categories"))

    @classmethod
    def read(cls, path: Path, least_bytes: int = LEAST_BYTES) -> CocoLists:
        """Those of a file; InputError as file:line:column where it is no JSON object."""
        lists = cls(path)
        for key, value, items in stream_json(path, least_bytes):
            if key in lists._instead:
                lists._take(key, value, items)
        return lists

    def _take(self, key: str, value: Any, items: list[Any] | None) -> None:
        if not items:  # a list begins, or something else stands there; of a key that stands twice the last counts
            self._instead[key] = value if items is None else self
            if key == "images":
                self.images = _Images(self.path)
            elif key == "annotations":
                self.annotations = Annotations(self.path)
            else:
                self.categories = value if items is None else []
        elif key == "images":
            self.images.extend(items)
        elif key == "annotations":
            self.annotations.extend(items)
        else:
            self.categories.extend(items)

    def need(self, key: str) -> None:
        """InputError when there is no list under a key."""
        if self._instead[key] is not self:
            raise InputError(f"{self.path}: {key} must be a list; got {shorten(self._instead[key])}")


class _Images:
    """entries: the usable images by id; known_ids: of all that have one; bad: what is wrong with the others."""

    def __init__(self, path: Path) -> None:
        self.entries: dict[ImageId, ImageEntry] = {}
        self.known_ids: set[ImageId] = set()
        self.bad: list[tuple[str, str]] = []
        self._path, self._num_seen = path, 0
        self._ids_by_name: dict[str, ImageId] = {}

    def extend(self, items: list[Any]) -> None:
        """Look at the next images."""
        for image in items:
            if not (isinstance(image, dict) and is_id(image.get("id"))):
                where = f"{self._path}: images[{self._num_seen}]"
                self.bad.append((where, f"must be an object with a number or text as id ({shorten(image)})"))
            else:
                self.known_ids.add(image["id"])
                fault = self._add(image)
                if fault is not None:
                    self.bad.append((f"{self._path}: image id {shown_id(image['id'])}", fault))
            self._num_seen += 1

    def _add(self, image: dict[str, Any]) -> str | None:
        """Take an image up, or say why not."""
        image_id, name = image["id"], image.get("file_name")
        if not isinstance(name, str) or not is_image_name(PurePosixPath(name).name) or "\0" in name:
            return f"file_name must name an image ({shorten(name)})"
        if image_id in self.entries:
            return f"the id stands twice, for {shorten(self.entries[image_id].file_name)} and {shorten(name)}"
        if name in self._ids_by_name:
            return f"{shorten(name)} is listed already, as image id {shown_id(self._ids_by_name[name])}"
        size_wh = _claimed_size(image)
        if size_wh is None:
            return f"width and height must be whole numbers ({shorten([image.get('width'), image.get('height')])})"
        self.entries[image_id] = ImageEntry(image_id, name, size_wh)
        self._ids_by_name[name] = image_id
        return None


class Annotations:
    """M annotations as columns, and what is wrong with the bad ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: dict[ImageId, int] = {}
        self.categories: dict[int, int] = {}
        self.image_numbers, self.category_numbers = array("i"), array("i")
        self.boxes, self.areas, self.crowds = array("d"), array("d"), bytearray()
        self.naming, self.numbers = bytearray(), array("q")
        self._words: dict[int, str] = {}
        self._no_image: dict[int, str] = {}
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def extend(self, items: list[Any]) -> None:
        """Look at the next annotations."""
        for item in items:
            index = len(self.numbers)
            is_object = isinstance(item, dict)
            annotation: dict[str, Any] = item if is_object else {}
            self._name(index, annotation.get("id"))
            image_id: Any = annotation.get("image_id")
            category_id: Any = annotation.get("category_id")
            if not is_object:
                self._no_image[index] = f"must be an object ({shorten(item)})"
            elif not is_id(image_id):
                self._no_image[index] = f"no image has this image_id ({shorten(image_id)})"
            number = NONE if index in self._no_image else self.images.setdefault(image_id, len(self.images))
            self.image_numbers.append(number)
            if number == NONE or type(category_id) is not int:
                self.category_numbers.append(NONE)
                self.bad[index] = f"no category has this category_id ({shorten(category_id)})"
            else:
                self.category_numbers.append(self.categories.setdefault(category_id, len(self.categories)))
            box: Any = annotation.get("bbox")
            crowd, area = annotation.get("iscrowd", 0), annotation.get("area")
            fault = None if number == NONE else box_fault(box, crowd, area)
            if fault is not None or number == NONE:
                self.bad.setdefault(index, fault or "")
                box, crowd, area = (0.0, 0.0, 0.0, 0.0), 0, None
            x, y, width, height = map(float, box)
            self.boxes.extend((x, y, x + width, y + height))
            self.crowds.append(bool(crowd))
            self.areas.append(math.nan if area is None else float(area))

    def _name(self, index: int, annotation_id: Any) -> None:
        """Note the words of the annotation's origin."""
        if type(annotation_id) is int and 0 <= annotation_id < _LARGEST_ID:
            self.naming.append(BY_ID)
            self.numbers.append(annotation_id)
            return
        self.numbers.append(index)
        if isinstance(annotation_id, int | str):
            self.naming.append(_IN_WORDS)
            self._words[index] = f"annotation id {shown_id(annotation_id)}"
        else:
            self.naming.append(_BY_INDEX)

    def origin(self, index: int) -> str:
        """The origin of an annotation."""
        number = self.numbers[index]
        if self.naming[index] == BY_ID:
            return f"{self.path}: annotation id {number}"
        return f"{self.path}: {self._words.get(index, f'annotations[{number}]')}"

    def without_image(self, known_ids: set[ImageId]) -> Iterator[tuple[str, str]]:
        """Origin and fault of each annotation that belongs to none of the images, in their order."""
        ids = list(self.images)
        is_unknown = np.array([image_id not in known_ids for image_id in ids] + [False], np.bool_)
        chosen = np.flatnonzero(is_unknown[as_array(self.image_numbers, np.int32)])
        for index in sorted({*chosen.tolist(), *self._no_image}):
            fault = self._no_image.get(index)
            if fault is None:
                fault = f"no image has this image_id ({shorten(ids[self.image_numbers[index]])})"
            yield self.origin(index), fault

    def fault(self, index: int, classes: NDArray[np.int64]) -> str | None:
        """What is wrong with an annotation, if anything is."""
        number = self.category_numbers[index]
        if number != NONE and classes[number] == NONE:
            category_id = list(self.categories)[number]
            return f"no category has this category_id ({shorten(category_id)})"
        return self.bad.get(index)

    def raw_box(self, index: int, classes: NDArray[np.int64]) -> RawBox:
        """An annotation with which nothing is wrong."""
        x1, y1, x2, y2 = self.boxes[4 * index : 4 * index + 4]
        area = self.areas[index]
        return RawBox(
            class_id=int(classes[self.category_numbers[index]]),
            box_xyxy=(x1, y1, x2, y2),
            origin=self.origin(index),
            ignored=bool(self.crowds[index]),
            area=None if math.isnan(area) else area,
        )


def box_fault(box: Any, crowd: Any, area: Any) -> str | None:
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
    if type(value) is not int:
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number beyond the range of floats
        return False


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an image's id."""
    return type(value) is int or isinstance(value, str)


def shown_id(some_id: ImageId) -> str:
    """An id as shown in a message: as it stands if it is short and printable."""
    text = str(some_id)
    return text if text.isprintable() and len(text) <= 40 else shorten(some_id)


def _claimed_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height as the json states them, 0 where it does not; None when they are no sizes."""
    width, height = image.get("width", 0), image.get("height", 0)
    if type(width) is not int or type(height) is not int or min(width, height) < 0:
        return None
    return width, height
