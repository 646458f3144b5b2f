"""COCO datasets: one json a split, with images, annotations and categories.

Boxes are [x, y, width, height] in pixels; iscrowd marks what is ignored. A json has no lines worth naming, so an origin
reads "file: annotation id N". Legend: K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.coco_boxes import by_image
from anchorite.data.formats.coco_config import Categories, CocoFile, agree_on_categories
from anchorite.data.formats.coco_lists import CocoLists, ImageEntry, shown_id
from anchorite.data.formats.geometry import build_record, read_image_header, sizes_agree
from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import Fence, Folders, without_links
from anchorite.data.headers import ImageHeader
from anchorite.data.index_cache import Dependencies
from anchorite.data.records import Record, RecordTable, TableBuilder
from anchorite.reading import shorten


def read_coco(files: Sequence[CocoFile], root: Path, log: ReadingLog, allow_outside: bool = False) -> DatasetIndex:
    """Read the jsons of a dataset; records in the order of their file names.

    Raises InputError at once for a json or categories that cannot be read, and for bad annotations and images after all
    have been read.
    """
    for file in files:
        log.dependencies.add_file(file.path)
    contents = {file.path: CocoLists.read(file.path) for file in files}
    categories = agree_on_categories({path: {"categories": lists.categories} for path, lists in contents.items()})
    folders = Folders(log.dependencies)
    splits: dict[str, RecordTable] = {}
    for file in files:
        log.split = file.split
        places = _image_places(file, root, log.dependencies)
        home = file.path.parent
        fence = Fence([root if root.is_dir() else home, *without_links(places, home)], allow_outside)
        lists = contents.pop(file.path)  # the largest thing in memory goes as soon as it is read
        splits[file.split] = _read_split(lists, categories, _ImageFinder(places, fence, folders), log)
    log.split = None
    log.raise_if_bad(root)
    return DatasetIndex(root, "coco", categories.names, splits, log.adjustments)


def _image_places(file: CocoFile, root: Path, dependencies: Dependencies) -> list[Path]:
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
    for place in (home, *places):
        dependencies.add_candidate(place)
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


def _read_split(lists: CocoLists, categories: Categories, finder: _ImageFinder, log: ReadingLog) -> RecordTable:
    lists.need("images")
    for origin, fault in lists.images.bad:
        log.bad(origin, fault)
    lists.need("annotations")
    for origin, fault in lists.annotations.without_image(lists.images.known_ids):
        log.bad(origin, fault)
    entries = sorted(lists.images.entries.values(), key=lambda entry: PurePosixPath(entry.file_name).parts)
    annotations = by_image(lists.annotations, entries, categories.class_ids)
    head = f"{lists.path}: annotation id "
    records = TableBuilder()
    for first, block in annotations.blocks():
        bounds = itertools.pairwise(block.starts.tolist())
        for place, (is_plain, (start, stop)) in enumerate(zip(block.is_plain.tolist(), bounds, strict=True), first):
            boxes = [] if is_plain else annotations.raw_boxes(place, log)
            image = _find_image(lists.path, entries[place], finder, log)
            if image is None:
                continue
            if not is_plain:
                records.append(build_record(*image, boxes, categories.names, log))
                continue
            path, header = image
            record = Record(
                path=path,
                width=header.width,
                height=header.height,
                boxes_xyxy=block.boxes_xyxy[start:stop],
                class_ids=block.class_ids[start:stop],
                ignored=block.ignored[start:stop],
                areas=block.areas[start:stop],
                origins=(),
            )
            records.append(record, head, block.numbers[start:stop])
    return records.table()


def _find_image(
    path: Path, entry: ImageEntry, finder: _ImageFinder, log: ReadingLog
) -> tuple[Path, ImageHeader] | None:
    """An image's path and header, where it is there and of the size that the json claims; else the log says why not."""
    image_path = finder.find(entry.file_name)
    origin = f"{path}: image id {shown_id(entry.image_id)}"
    if image_path is None:
        looked = ", ".join(str(place) for place in finder.places)
        log.bad(origin, f"the image does not exist ({shorten(entry.file_name)}; looked in {looked})")
        return None
    header = read_image_header(image_path, finder.fence, log)
    if header is None or not sizes_agree(header, entry.size_wh, f"{origin} ({image_path.name})", log):
        return None
    return image_path, header
