"""Pascal VOC datasets: one xml an image.

Corners are taken as they stand, without the historical shift by one: xmax = width is legal, and so is a box from 0.
`difficult` marks what is ignored. Without a list of class names the classes are the sorted names of all splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from xml.parsers import expat

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.common import (
    SPLITS,
    Fence,
    Folders,
    RawBox,
    ReadingLog,
    assign_splits,
    build_record,
    exists,
    is_class_name,
    is_image_name,
    plain_number,
    read_image_header,
    sizes_agree,
    split_of,
    without_links,
)
from anchorite.data.records import RecordTable, TableBuilder
from anchorite.errors import InputError
from anchorite.reading import decode_utf8, read_limited, shorten

_MAX_BYTES = 16_000_000
_MAX_DEPTH = 32
_MAX_ELEMENTS = 500_000


@dataclass(slots=True)
class XmlElement:
    """An element: its tag, the line it begins in, the text directly in it and the elements in it."""

    tag: str
    line: int
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, tag: str) -> XmlElement | None:
        """The first child of that tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def text_of(self, tag: str) -> str | None:
        """The text of the first child of that tag without surrounding space, or None when there is no such child."""
        child = self.child(tag)
        return None if child is None else child.text.strip()


def read_xml(path: Path) -> XmlElement:
    """The root element of an XML file.

    Raises InputError naming file and line for malformed XML, a DOCTYPE (and with it every entity), deep nesting
    and more elements than any annotation needs.
    """
    data = read_limited(path, _MAX_BYTES)
    parser = expat.ParserCreate()
    top = XmlElement("", 0)
    open_elements: list[tuple[XmlElement, list[str]]] = [(top, [])]
    num_elements = 0

    def start(tag: str, _: dict[str, str]) -> None:
        nonlocal num_elements
        num_elements += 1
        if len(open_elements) > _MAX_DEPTH:
            raise InputError(f"{path}:{parser.CurrentLineNumber}: nested deeper than {_MAX_DEPTH} levels")
        if num_elements > _MAX_ELEMENTS:
            raise InputError(f"{path}:{parser.CurrentLineNumber}: more than {_MAX_ELEMENTS} elements")
        element = XmlElement(tag, parser.CurrentLineNumber)
        open_elements[-1][0].children.append(element)
        open_elements.append((element, []))

    def end(_: str) -> None:
        element, texts = open_elements.pop()
        element.text = "".join(texts)  # once: a text may come in a million pieces

    def characters(text: str) -> None:
        open_elements[-1][1].append(text)

    def refuse_doctype(*_: object) -> None:
        raise InputError(f"{path}:{parser.CurrentLineNumber}: a DOCTYPE is not read; remove it")

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"{path}:{error.lineno}: not valid XML: {expat.ErrorString(error.code)}") from error
    except (ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as XML: {shorten(str(error))}") from error  # an encoding expat lacks
    return top.children[0]


_MAX_LIST_BYTES = 64_000_000
_XML_FOLDERS = ("Annotations", "annotations")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_CLASS_LISTS = ("classes.txt", "class_names.txt", "labels.txt")


class VocItem(NamedTuple):
    """One annotated image: its xml, where that is named ("file:line" of a list, else the xml), and the subfolder of
    both xml and image."""

    xml_path: Path
    origin: str
    subfolder: str = ""


class VocLayout(NamedTuple):
    """The items of each split, the folders that can hold their images, and the list of class names if there is one."""

    splits: dict[str, tuple[VocItem, ...]]
    image_folders: dict[str, tuple[Path, ...]]
    class_list: Path | None


def find_voc(folder: Path, log: ReadingLog, fence: Fence) -> VocLayout | None:
    """The layout of a folder, or of the folder `voc` in it; None when neither holds VOC annotations.

    Raises InputError when a list in it is a link that leads out of the fence.
    """
    for base in (folder, folder / "voc"):
        if base.is_dir() and not fence.refusal(base):
            layout = _with_image_sets(base, log, fence) or _plain_folders(base, log, fence)
            if layout is not None:
                return layout
    return None


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class names, one a line; InputError as file:line for a name that stands twice or holds a control character."""
    lines: dict[str, int] = {}
    for number, line in enumerate(decode_utf8(read_limited(path, _MAX_LIST_BYTES), path).splitlines(), start=1):
        name = line.strip()
        if name in lines:
            raise InputError(f"{path}:{number}: the class name {shorten(name)} stands twice (line {lines[name]})")
        if name and not is_class_name(name):
            raise InputError(f"{path}:{number}: {shorten(name)} cannot name a class; give it a word")
        if name:
            lines[name] = number
    if not lines:
        raise InputError(f"{path}: holds no class names; add them, one a line, or remove the file")
    return tuple(lines)


def _with_image_sets(base: Path, log: ReadingLog, fence: Fence) -> VocLayout | None:
    xml_folder = next((base / name for name in _XML_FOLDERS if (base / name).is_dir()), None)
    lists = {path.stem: path for path in sorted((base / "ImageSets" / "Main").glob("*.txt"))}
    # VOC itself adds lists like cat_train.txt, one a class, which repeat the images of the split with a flag.
    lists = {stem: path for stem, path in lists.items() if "_" not in stem or split_of(stem.rsplit("_", 1)[1]) is None}
    lists = {stem: path for stem, path in lists.items() if not stem.endswith("_trainval")}
    if xml_folder is None or not lists:
        return None
    chosen = assign_splits(lists, log)
    for path in chosen.values():
        log.dependencies.add_file(path)
    splits = {split: _listed_items(fence.check(path), xml_folder) for split, path in chosen.items()}
    image_folders = _existing([base / name for name in _IMAGE_FOLDERS] + [xml_folder], log)
    return VocLayout(splits, dict.fromkeys(splits, image_folders), _class_list([base], fence, log))


def _listed_items(path: Path, xml_folder: Path) -> tuple[VocItem, ...]:
    items: list[VocItem] = []
    for number, line in enumerate(decode_utf8(read_limited(path, _MAX_LIST_BYTES), path).splitlines(), start=1):
        origin = f"{path}:{number}"
        name = PurePosixPath(line.strip())
        if "\0" in line:
            raise InputError(f"{origin}: the line contains NUL bytes; the file is damaged")
        if name.name:
            stem = name.stem if is_image_name(name.name) else name.name
            subfolder = str(name.parent)
            items.append(VocItem(xml_folder / subfolder / f"{stem}.xml", origin, subfolder))
    return tuple(items)


def _plain_folders(base: Path, log: ReadingLog, fence: Fence) -> VocLayout | None:
    for home in (base, *(base / name for name in _XML_FOLDERS)):
        if not home.is_dir():
            continue
        named = {child.name: child for child in sorted(home.iterdir()) if split_of(child.name) and child.is_dir()}
        xml_folders = {name: found for name, child in named.items() if (found := _xml_folder(child)) is not None}
        if xml_folders:
            return _layout(assign_splits(xml_folders, log), base, fence, log)
        if any(home.glob("*.xml")):
            return _layout({split_of(home.absolute().name) or "train": home}, base, fence, log)
    return None


def _xml_folder(folder: Path) -> Path | None:
    """The folder itself, or its Annotations, whichever holds xml files."""
    candidates = [folder, *(folder / name for name in _XML_FOLDERS)]
    return next((candidate for candidate in candidates if any(candidate.glob("*.xml"))), None)


def _layout(xml_folders: dict[str, Path], base: Path, fence: Fence, log: ReadingLog) -> VocLayout:
    splits: dict[str, tuple[VocItem, ...]] = {}
    image_folders: dict[str, tuple[Path, ...]] = {}
    for split in (split for split in SPLITS if split in xml_folders):
        folder = xml_folders[split]
        splits[split] = tuple(VocItem(path, str(path)) for path in sorted(folder.glob("*.xml")))
        image_folders[split] = _existing(_near_folders(folder, split, base), log)
    return VocLayout(splits, image_folders, _class_list([base, base / ".."], fence, log))


def _near_folders(xml_folder: Path, split: str, base: Path) -> list[Path]:
    """Where images of a folder of xml files may be: with them, beside them, or in a tree of the same splits."""
    folders = [xml_folder, *(xml_folder / name for name in _IMAGE_FOLDERS)]
    names = [xml_folder.name, xml_folder.parent.name, split]
    names = list(dict.fromkeys(name for name in names if split_of(name) == split))
    above = xml_folder
    while True:
        is_outermost = above == base
        above = base / ".." if is_outermost else above.parent
        for images in _IMAGE_FOLDERS:
            folders += [*(above / images / name for name in names), above / images]
        if is_outermost:
            return folders
        folders += [*(above / name for name in names), above]


def _existing(folders: Iterable[Path], log: ReadingLog) -> tuple[Path, ...]:
    distinct = dict.fromkeys(folders)
    for folder in distinct:
        log.dependencies.add_candidate(folder)
    return tuple(folder for folder in distinct if folder.is_dir())


def _class_list(folders: Iterable[Path], fence: Fence, log: ReadingLog) -> Path | None:
    """The first list of class names; one above the dataset is taken too, but none through a link that leads out."""
    for path in (folder / name for folder in folders for name in _CLASS_LISTS):
        log.dependencies.add_candidate(path)
        if path.is_file():
            return fence.check(path) if path.is_symlink() else path
    return None


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
