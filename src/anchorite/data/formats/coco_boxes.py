"""The annotations of a COCO json in the order of their images, most of them looked at many together.

Legend: I images, B of them in a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data.formats.coco_lists import BY_ID, NONE, Annotations, ImageEntry
from anchorite.data.formats.geometry import RawBox, plain_boxes
from anchorite.data.formats.log import ReadingLog
from anchorite.data.records import as_array

_LARGEST_SIDE = 2**31 - 1
_BLOCK = 16_384  # images that are looked at together


def by_image(annotations: Annotations, entries: list[ImageEntry], class_ids: dict[int, int]) -> SortedAnnotations:
    """The annotations of these images, image after image in their order, each one's as they stand in the file."""
    place_of = {entry.image_id: place for place, entry in enumerate(entries)}
    places = np.array(
        [place_of.get(image_id, len(entries)) for image_id in annotations.images] + [len(entries)], np.int64
    )
    keys = places[as_array(annotations.image_numbers, np.int32)].astype(np.int32)
    order = np.argsort(keys, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=len(entries) + 1))])[: len(entries) + 1]
    classes = np.array([class_ids.get(category, NONE) for category in annotations.categories] + [NONE], np.int64)
    return SortedAnnotations(annotations, order[: starts[-1]], starts, classes, entries)


class SortedAnnotations:
    """The annotations of I images, image after image; see `by_image`."""

    def __init__(
        self,
        annotations: Annotations,
        order: NDArray[np.int64],
        starts: NDArray[np.int64],
        classes: NDArray[np.int64],
        entries: list[ImageEntry],
    ) -> None:
        self._all, self._order, self._starts, self._classes = annotations, order, starts, classes
        self._class_ids = classes[as_array(annotations.category_numbers, np.int32)]
        self._boxes = as_array(annotations.boxes, np.float64).reshape(-1, 4)
        self._areas, self._crowds = as_array(annotations.areas, np.float64), as_array(annotations.crowds, np.bool_)
        self._numbers, self._naming = as_array(annotations.numbers, np.int64), as_array(annotations.naming, np.uint8)
        self._is_bad = np.zeros(len(annotations), np.bool_)
        self._is_bad[list(annotations.bad)] = True
        sizes_wh = [[min(side, _LARGEST_SIDE) for side in entry.size_wh] for entry in entries]
        self._sizes_wh = np.array(sizes_wh, np.float64).reshape(-1, 2)

    def blocks(self) -> Iterator[tuple[int, PlainBoxes]]:
        """The images block by block: which one a block begins with, and the boxes of all those that are plain."""
        for first in range(0, len(self._starts) - 1, _BLOCK):
            starts = self._starts[first : first + _BLOCK + 1]
            rows = self._order[starts[0] : starts[-1]]
            counts = np.diff(starts)
            class_ids, crowds = self._class_ids[rows], self._crowds[rows]
            sizes_wh = self._sizes_wh[first : first + _BLOCK]
            boxes, is_plain = plain_boxes(self._boxes[rows], class_ids, crowds, counts, sizes_wh)
            is_amiss = self._is_bad[rows] | (class_ids == NONE) | (self._naming[rows] != BY_ID)
            is_plain &= np.bincount(np.repeat(np.arange(len(counts)), counts)[is_amiss], minlength=len(counts)) == 0
            sides = boxes[:, 2:] - boxes[:, :2]
            areas = self._areas[rows]
            areas = np.where(np.isnan(areas), sides[:, 0] * sides[:, 1], areas)
            numbers = self._numbers[rows]
            yield first, PlainBoxes(starts - starts[0], is_plain, boxes, class_ids, crowds, areas, numbers)

    def raw_boxes(self, place: int, log: ReadingLog) -> list[RawBox]:
        """The annotations of an image that nothing is wrong with; of the others the log hears."""
        boxes: list[RawBox] = []
        for index in self._order[self._starts[place] : self._starts[place + 1]].tolist():
            fault = self._all.fault(index, self._classes)
            if fault is None:
                boxes.append(self._all.raw_box(index, self._classes))
            else:
                log.bad(self._all.origin(index), fault)
        return boxes


class PlainBoxes(NamedTuple):
    """The boxes of a block of B images, as they are in an image of the size that the json claims.

    is_plain (B,) bool: images of whose annotations there is nothing to be told; what the arrays have for others is not
    to be used. starts (B + 1,): where each image's boxes begin. numbers: the annotations' ids.
    """

    starts: NDArray[np.int64]
    is_plain: NDArray[np.bool_]
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    numbers: NDArray[np.int64]
