"""Finding the xml files and images of a Pascal VOC dataset, with ImageSets or as plain folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import SPLITS, Fence, assign_splits, is_image_name, split_of
from anchorite.data.formats.text import is_class_name
from anchorite.errors import InputError
from anchorite.reading import decode_utf8, read_limited, shorten

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
