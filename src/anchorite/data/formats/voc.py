"""Pascal VOC datasets: one xml an image.

Corners are taken as they stand, without the historical shift by one: xmax = width is legal, and so is a box from 0.
`difficult` marks what is ignored. Without a list of class names the classes are the sorted names of all splits.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.geometry import RawBox, build_record, read_image_header, sizes_agree
from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import Fence, Folders, exists, without_links
from anchorite.data.formats.text import is_class_name, plain_number
from anchorite.data.formats.voc_layout import VocItem, VocLayout, read_class_list
from anchorite.data.formats.xml_tree import XmlElement, read_xml
from anchorite.data.records import RecordTable, TableBuilder
from anchorite.errors import InputError
from anchorite.reading import shorten

# What remains of a message when the path is taken off its front.
_LINE_AND_REASON = re.compile(r"(:[0-9]+)?(?:: )?(.*)", re.DOTALL)


class _Object(NamedTuple):
    class_name: str
    box_xyxy: tuple[float, float, float, float]
    is_difficult: bool
    origin: str


class _Annotation(NamedTuple):
    item: VocItem
    file_name: str | None
    size_wh: tuple[int, int] | None
    objects: tuple[_Object, ...]


def read_voc(layout: VocLayout, root: Path, log: ReadingLog, allow_outside: bool = False) -> DatasetIndex:
    """Read the xml files of a layout; records in the order of the image set, else of the xml files' paths.

    Raises InputError for bad objects, files and images after all have been read.
    """
    image_folders = [folder for folders in layout.image_folders.values() for folder in folders]
    fence = Fence([root, *without_links(image_folders, root)], allow_outside)
    if layout.class_list:
        log.dependencies.add_file(layout.class_list)
    known_names = read_class_list(layout.class_list) if layout.class_list else None
    annotations: dict[str, list[_Annotation]] = {}
    for split, items in layout.splits.items():
        log.split = split
        annotations[split] = _read_annotations(items, fence, known_names, log)
    class_names = known_names or tuple(
        sorted({thing.class_name for split in annotations.values() for one in split for thing in one.objects})
    )
    folders = Folders(log.dependencies)
    splits: dict[str, RecordTable] = {}
    for split, image_folders_of_split in layout.image_folders.items():
        log.split = split
        splits[split] = _read_images(annotations[split], image_folders_of_split, class_names, folders, fence, log)
    log.split = None
    log.raise_if_bad(root)
    if not class_names:
        raise InputError(f"{root}: no xml names an object, so there are no classes")
    _note_unlabelled(splits, folders, log)
    return DatasetIndex(root, "voc", class_names, splits, log.adjustments)


def _read_annotations(
    items: tuple[VocItem, ...], fence: Fence, known_names: tuple[str, ...] | None, log: ReadingLog
) -> list[_Annotation]:
    annotations: list[_Annotation] = []
    first_origins: dict[Path, str] = {}
    for item in items:
        path = item.xml_path
        if path in first_origins:
            log.adjusted("repeated-image", item.origin, f"{path.stem} is listed already, {first_origins[path]}")
            continue
        first_origins[path] = item.origin
        log.dependencies.add_file(path)
        if not exists(path):
            log.bad(item.origin, f"{path} does not exist; add it, or take the line out")
            continue
        try:
            refusal = fence.refusal(path)
            if refusal:
                raise InputError(refusal)
            annotations.append(_read_annotation(item, known_names, log))
        except InputError as error:
            located = _LINE_AND_REASON.fullmatch(str(error).removeprefix(str(path)))
            assert located is not None
            log.bad(f"{path}{located[1] or ''}", located[2])
    return annotations


def _read_annotation(item: VocItem, known_names: tuple[str, ...] | None, log: ReadingLog) -> _Annotation:
    path = item.xml_path
    document = read_xml(path)
    if document.tag != "annotation":
        raise InputError(f"{path}:{document.line}: the root element is <{document.tag}>, not <annotation>")
    objects: list[_Object] = []
    for element in (child for child in document.children if child.tag == "object"):
        box = element.child("bndbox")
        origin = f"{path}:{(box or element).line}"
        try:
            objects.append(_read_object(element, known_names, origin))
        except InputError as error:
            log.bad(origin, str(error))
    return _Annotation(item, document.text_of("filename"), _read_size(document, path), tuple(objects))


def _read_object(element: XmlElement, known_names: tuple[str, ...] | None, origin: str) -> _Object:
    name = element.text_of("name")
    if name is None or not is_class_name(name):
        raise InputError(f"the object has no usable <name> ({shorten(name)})")
    if known_names is not None and name not in known_names:
        raise InputError(f"the class is not in the dataset's list of class names ({shorten(name)})")
    box = element.child("bndbox")
    if box is None:
        raise InputError(f"the object has no <bndbox> ({shorten(name)})")
    corners: list[float] = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = box.text_of(tag)
        number = None if text is None else plain_number(text)
        if number is None:
            raise InputError(f"<{tag}> must be a plain finite number ({'absent' if text is None else shorten(text)})")
        corners.append(number)
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise InputError(f"xmax < xmin or ymax < ymin ({x1:g}, {y1:g}, {x2:g}, {y2:g})")
    difficult = element.text_of("difficult") or "0"
    if difficult not in ("0", "1"):
        raise InputError(f"<difficult> must be 0 or 1 ({shorten(difficult)})")
    return _Object(name, (x1, y1, x2, y2), difficult == "1", origin)


def _read_size(document: XmlElement, path: Path) -> tuple[int, int] | None:
    size = document.child("size")
    if size is None:
        return None
    numbers = [plain_number(size.text_of(tag) or "") for tag in ("width", "height")]
    if any(number is None or number < 0 or number % 1 for number in numbers):
        raise InputError(f"{path}:{size.line}: <size> must hold width and height as whole numbers")
    width, height = (int(number or 0) for number in numbers)
    return width, height


def _read_images(
    annotations: list[_Annotation],
    image_folders: tuple[Path, ...],
    class_names: tuple[str, ...],
    folders: Folders,
    fence: Fence,
    log: ReadingLog,
) -> RecordTable:
    class_ids = {name: index for index, name in enumerate(class_names)}
    records = TableBuilder()
    owners: dict[Path, Path] = {}
    for annotation in annotations:
        path = annotation.item.xml_path
        try:
            image = _find_image(annotation, image_folders, folders)
            if owners.setdefault(image, path) != path:
                raise InputError(f"{image} belongs to {owners[image]} already; keep one of the two")
        except InputError as error:
            log.bad(str(path), str(error))
            continue
        header = read_image_header(image, fence, log)
        if header is None or not sizes_agree(header, annotation.size_wh, str(path), log):
            continue
        boxes = [
            RawBox(class_ids[thing.class_name], thing.box_xyxy, thing.origin, thing.is_difficult)
            for thing in annotation.objects
        ]
        records.append(build_record(image, header, boxes, class_names, log))
    return records.table()


def _find_image(annotation: _Annotation, image_folders: tuple[Path, ...], folders: Folders) -> Path:
    """The image of an xml: the one with the xml's stem, else the one of <filename> (people rename files)."""
    path = annotation.item.xml_path
    named = PureWindowsPath(annotation.file_name or "").name  # splits at both kinds of slashes
    places = [folder / annotation.item.subfolder for folder in image_folders]
    for place in places:
        candidates = folders.images_by_stem(place).get(path.stem, [])
        if named in candidates:
            return place / named
        if len(candidates) > 1:
            raise InputError(f"two images could be meant ({', '.join(candidates)}); set <filename>")
        if candidates:
            return place / candidates[0]
    stem = PurePosixPath(named).stem
    if not folders.has(path.with_name(f"{stem}.xml")):  # an image with an xml of its own is not this one's
        for place in places:
            if named in folders.images_by_stem(place).get(stem, []):
                return place / named
    looked = ", ".join(str(place) for place in places)
    raise InputError(f"no image named {path.stem} or {shorten(named)}; looked in {looked}")


def _note_unlabelled(splits: dict[str, RecordTable], folders: Folders, log: ReadingLog) -> None:
    """Say which images of the folders used have no xml: they are left out, for nobody looked whether they are empty."""
    used = {path for records in splits.values() for path in records.paths()}
    for folder in sorted({path.parent for path in used}):
        names = {name for names in folders.images_by_stem(folder).values() for name in names}
        unlabelled = sorted(name for name in names if folder / name not in used)
        if unlabelled:
            listed = ", ".join(unlabelled[:5]) + (", ..." if len(unlabelled) > 5 else "")
            detail = f"{len(unlabelled)} images in no split, or without xml: {listed}"
            log.adjusted("ignored-file", str(folder), detail, files=tuple(folder / name for name in unlabelled))
