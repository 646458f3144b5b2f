"""Pascal VOC datasets: one xml an image.

Corners are taken as they stand, without the historical shift by one: xmax = width is legal, and so is a box from 0.
`difficult` marks what is ignored. Without a list of class names the classes are the sorted names of all splits.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree import ElementTree

from anchorite.data.dataset import NO_CLASS, Box, RecordTable, pack_box
from anchorite.data.formats.common import (
    ClassesAndSplits,
    Fault,
    Fence,
    ReadingLog,
    SplitBuilder,
    assign_splits,
    distinct_class_names,
    exists,
    files_with_suffix,
    is_class_name,
    is_image_name,
    plain_number,
    split_of,
    without_links,
)
from anchorite.errors import InputError
from anchorite.reading import decode_utf8, read_limited, read_xml, shorten

LOOKED_FOR = (
    "VOC: ImageSets/Main/<split>.txt with Annotations, or folders train, val, test or Annotations holding *.xml"
)
SUFFIXES = ()
_MAX_LIST_BYTES = 64_000_000
_XML_FOLDER = "Annotations"  # as the names of all folders, in any letter case
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_CLASS_LISTS = ("classes.txt", "class_names.txt", "labels.txt")
# What remains of a message when the path is taken off its front.
_LINE_AND_REASON = re.compile(r"(:[0-9]+)?(?:: )?(.*)", re.DOTALL)


Item = tuple[Path, str, str]  # the xml of an image, "file:line" of a list that names it or the xml, subfolder of both
Layout = tuple[dict[str, list[Item]], dict[str, list[Path]], Path | None]


def find(folder: Path, log: ReadingLog, fence: Fence) -> Layout | None:
    """The layout of a folder, or of the folder `voc` in it; None when neither holds VOC annotations.

    A layout: the items of each split, the folders that can hold their images, and the list of class names if there is
    one. Raises InputError when a list in it is a link that leads out of the fence.
    """
    for base in (folder, log.folders.find(folder, ["voc"])):
        if base is not None and base.is_dir() and not fence.refusal(base):
            layout = _with_image_sets(base, log, fence) or _plain_folders(base, log, fence)
            if layout is not None:
                return layout
    return None


def _with_image_sets(base: Path, log: ReadingLog, fence: Fence) -> Layout | None:
    xml_folder, list_folder = log.folders.find(base, [_XML_FOLDER]), log.folders.find(base, ["ImageSets", "Main"])
    lists = {path.stem: path for path in files_with_suffix(list_folder, ".txt")} if list_folder else {}
    # VOC itself adds lists like cat_train.txt, one a class, which repeat the images of the split with a flag; so does
    # CVAT, whose only split may be "default".
    for stem in list(lists):
        _, underscore, last_word = stem.rpartition("_")
        if underscore and (split_of(last_word) is not None or last_word in ("trainval", *lists)):
            del lists[stem]
    if xml_folder is None or not lists:
        return None
    splits: dict[str, list[Item]] = {}
    for split, path in assign_splits(lists, log).items():
        log.dependencies.add_file(path)
        items = splits[split] = []
        for number, line in enumerate(read_lines(fence.check(path)), start=1):
            name = PurePosixPath(line.strip().strip('"').replace("\\", "/"))
            if "\0" in line:
                raise InputError(f"{path}:{number}: the line contains NUL bytes; the file is damaged")
            if name.name:
                xml = f"{name.stem if is_image_name(name.name) else name.name}.xml"
                found = log.folders.find(xml_folder, [*name.parent.parts, xml])
                items.append((found or xml_folder / name.parent / xml, f"{path}:{number}", str(name.parent)))
    image_folders = [*(log.folders.find(base, [name]) for name in _IMAGE_FOLDERS), xml_folder]
    near = log.folders.existing(filter(None, image_folders))
    return splits, dict.fromkeys(splits, near), _class_list([base], fence, log)


def _plain_folders(base: Path, log: ReadingLog, fence: Fence) -> Layout | None:
    for home in filter(None, (base, log.folders.find(base, [_XML_FOLDER]))):
        named: dict[str, Path] = {}
        for child in sorted(child for child in home.iterdir() if split_of(child.name) and child.is_dir()):
            for folder in filter(None, (child, log.folders.find(child, [_XML_FOLDER]))):
                if files_with_suffix(folder, ".xml"):
                    named.setdefault(child.name, folder)
        if not named and not files_with_suffix(home, ".xml"):
            continue
        folders = assign_splits(named, log) if named else {split_of(home.absolute().name) or "train": home}
        splits = {
            split: [(path, str(path), "") for path in files_with_suffix(xmls, ".xml")]
            for split, xmls in folders.items()
        }
        near = {split: _near_folders(xmls, split, base, log) for split, xmls in folders.items()}
        return splits, near, _class_list([base, base / ".."], fence, log)
    return None


def _near_folders(xml_folder: Path, split: str, base: Path, log: ReadingLog) -> list[Path]:
    """Where images of a folder of xml files may be: with them, beside them, or in a tree of the same splits."""
    names = [name for name in (xml_folder.name, xml_folder.parent.name, split) if split_of(name) == split]
    inside = [[images, name] for images in _IMAGE_FOLDERS for name in names] + [[images] for images in _IMAGE_FOLDERS]
    folders: list[Path | None] = [xml_folder, *(log.folders.find(xml_folder, [name]) for name in _IMAGE_FOLDERS)]
    for above in xml_folder.parents[: len(xml_folder.relative_to(base).parts)]:
        folders += [log.folders.find(above, way) for way in (*inside, *([name] for name in names), [])]
    # What else lies above the dataset is none of it, so nothing is searched there.
    return log.folders.existing([*filter(None, folders), *((base / "..").joinpath(*way) for way in inside)])


def _class_list(folders: Iterable[Path], fence: Fence, log: ReadingLog) -> Path | None:
    """The first list of class names; one above the dataset is taken too, but none through a link that leads out."""
    for path in (folder / name for folder in folders for name in _CLASS_LISTS):
        log.dependencies.add_candidate(path)
        if path.is_file():
            return fence.check(path) if path.is_symlink() else path
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text."""
    return decode_utf8(read_limited(path, _MAX_LIST_BYTES), path).splitlines()


def read(layout: Layout, root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names and splits of a layout; records in the order of the image set, else of the xml files' paths.

    Raises InputError for bad objects, files and images after all have been read.
    """
    items, image_folders, class_list = layout
    fence = Fence([root, *without_links(chain(*image_folders.values()), root)], allow_outside)
    known_names: tuple[str, ...] | None = None
    if class_list is not None:
        log.dependencies.add_file(class_list)
        lines = ((number, line.strip()) for number, line in enumerate(read_lines(class_list), start=1))
        known_names = distinct_class_names((line for line in lines if line[1]), class_list)
        if not known_names:
            raise InputError(f"{class_list}: holds no class names; add them, one a line, or remove the file")
    class_ids = {name: number for number, name in enumerate(known_names or ())}  # without a list names are added
    splits: dict[str, RecordTable] = {}
    for split in items:
        builder = SplitBuilder(split, class_ids, fence, log)
        splits[split] = _read_split(items[split], image_folders[split], known_names, class_ids, builder)
    log.split = None
    log.raise_if_bad(root)
    if not class_ids:
        raise InputError(f"{root}: no xml names an object, so there are no classes")
    class_names = known_names or tuple(sorted(class_ids))
    numbers = [class_names.index(name) for name in class_ids]
    splits = {split: records.renumbered(numbers) for split, records in splits.items()}
    # Images of the folders used that have no xml are left out, for nobody looked whether they are empty.
    used = {path for records in splits.values() for path in records.paths()}
    used |= {one.image for one in log.adjustments if one.image is not None}  # left out for a reason of their own
    for folder in sorted({path.parent for path in used}):
        names = filter(is_image_name, log.folders.names(folder))
        unlabelled = [name for name in names if folder / name not in used]
        log.adjusted_files("ignored-file", folder, unlabelled, "images in no split, or without xml")
    return class_names, splits


def _read_split(
    items: Iterable[Item],
    folders: Sequence[Path],
    known_names: Collection[str] | None,
    class_ids: dict[str, int],
    builder: SplitBuilder,
) -> RecordTable:
    """The records of a split, whose images lie in one of some folders."""
    log = builder.log
    first_origins: dict[Path, str] = {}
    found: dict[Path, list[tuple[Path, tuple[int, int], bytes | None]]] = {}  # by image: xml, stated size and boxes
    for path, listed_at, subfolder in items:
        if path in first_origins:
            log.adjusted("repeated-image", listed_at, f"{path.stem} is listed already, {first_origins[path]}")
            continue
        first_origins[path] = listed_at
        log.dependencies.add_file(path)
        if not exists(path):
            log.bad(listed_at, f"{path} does not exist; add it, or take the line out")
            continue
        image: Path | None = None
        stated_wh, boxes, places = (0, 0), None, [folder / subfolder for folder in folders]
        try:
            document = read_xml(builder.fence.check(path))
            if document.tag != "annotation":
                line = document.get("line")
                raise InputError(f"{path}:{line}: the root element is <{document.tag}>, not <annotation>")
            image = _find_image(path, places, _text(document, "filename"), log)
            stated_wh, objects = _stated_size(document, path), _read_objects(document, path, image, known_names, log)
            head_id = builder.head_id(f"{path}:")
            boxes = (
                None
                if objects is None
                else b"".join(
                    pack_box(
                        NO_CLASS if name is None else class_ids.setdefault(name, len(class_ids)),
                        corners,
                        head_id,
                        line,
                        is_ignored,
                    )
                    for name, corners, line, is_ignored in objects
                )
            )
        except InputError as error:
            located = _LINE_AND_REASON.fullmatch(str(error).removeprefix(str(path)))
            assert located is not None
            if image is None:
                with suppress(InputError):
                    image = _find_image(path, places, None, log)
            log.bad(f"{path}{located[1] or ''}", located[2], image)
        if image is not None:
            found.setdefault(image, []).append((path, stated_wh, boxes))
    for image, labels in found.items():
        path, stated_wh, boxes = labels[0]
        for other, *_ in labels[1:]:
            for one, another in ((path, other), (other, path)):
                log.bad(str(one), f"{image} belongs to {another}, too; keep one of the two", image)
        if len(labels) == 1 and boxes is not None:
            header = builder.header(image, stated_wh, str(path))
            if header is not None:
                builder.add(image, header, boxes)
    return builder.table()


def _read_objects(
    document: ElementTree.Element, path: Path, image: Path, known_names: Collection[str] | None, log: ReadingLog
) -> list[tuple[str | None, Box, int, bool]] | None:
    """Class name, corners, line, and whether it is ignored, of each object; None where what the log is told of goes
    with its image."""
    objects: list[tuple[str | None, Box, int, bool]] = []
    faults: list[Fault] = []
    for element in document.findall("object"):
        box = element.find("bndbox")
        line = int((element if box is None else box).attrib["line"])
        name, difficult = _text(element, "name"), (_text(element, "difficult") or "0").lower()
        texts = {tag: None if box is None else _text(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax")}
        x1, y1, x2, y2 = (plain_number(text or "") for text in texts.values())
        is_difficult = {"false": 0, "true": 1}.get(difficult, plain_number(difficult))
        fault = ""
        if name is None or not is_class_name(name):
            fault, name = f"the object has no usable <name> ({shorten(name)})", None
        elif known_names is not None and name not in known_names:
            fault, name = f"the class is not in the dataset's list of class names ({shorten(name)})", None
        if box is None:
            wrong = f"the object has no <bndbox> ({shorten(name)})"
        elif x1 is None or y1 is None or x2 is None or y2 is None:
            tag, text = next((tag, text) for tag, text in texts.items() if plain_number(text or "") is None)
            wrong = f"<{tag}> must be a plain finite number ({'absent' if text is None else shorten(text)})"
        elif x2 < x1 or y2 < y1:
            wrong = f"xmax < xmin or ymax < ymin ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        elif is_difficult not in (0, 1):
            wrong = f"<difficult> must be 0 or 1 ({shorten(difficult)})"
        else:
            wrong = ""
            objects.append((name, (x1, y1, x2, y2), line, is_difficult == 1 or name is None))
        if fault or wrong:
            faults.append((f"{path}:{line}", fault or wrong, not wrong))
    return objects if log.bad_labels(faults, image) else None


def _stated_size(document: ElementTree.Element, path: Path) -> tuple[int, int]:
    """Width and height of the image as the xml has them, 0 where it has none."""
    size = document.find("size")
    if size is None:
        return 0, 0
    width, height = (plain_number(_text(size, tag) or "0") for tag in ("width", "height"))
    if width is None or height is None or min(width, height) < 0 or width % 1 or height % 1:
        raise InputError(f"{path}:{size.get('line')}: <size> must hold width and height as whole numbers")
    return int(width), int(height)


def _text(element: ElementTree.Element, tag: str) -> str | None:
    """The text of the first child of that tag without surrounding space, or None when there is no such child."""
    text = element.findtext(tag)
    return None if text is None else text.strip()


def _find_image(path: Path, places: Sequence[Path], filename: str | None, log: ReadingLog) -> Path:
    """The image of an xml: the one with the xml's stem, else the one of <filename> (people rename files); what is
    written so before what differs in letter case.
    """
    listings = log.folders
    named = PureWindowsPath(filename or "").name  # splits at both kinds of slashes

    def is_free(image: str) -> bool:
        """Whether it has no xml of its own."""
        return not listings.has(path.with_name(f"{PurePosixPath(image).stem}.xml"))

    for is_as_written in (True, False):
        for place in places:
            candidates = listings.images_of_stem(place, path.stem)
            if is_as_written:
                candidates = [name for name in candidates if PurePosixPath(name).stem == path.stem]
            else:
                candidates = list(filter(is_free, candidates))
            if named in candidates:
                return place / named
            if len(candidates) > 1:
                raise InputError(f"{path}: two images could be meant ({', '.join(candidates)}); set <filename>")
            if candidates:
                return place / candidates[0]
        for place in places if is_image_name(named) else ():
            found = listings.find(place, [named])
            if found is not None and is_free(found.name) and (found.name == named or not is_as_written):
                return found
    looked = ", ".join(map(str, places))
    raise InputError(f"{path}: no image named {path.stem} or {shorten(named)}; looked in {looked}")
