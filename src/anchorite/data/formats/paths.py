"""Paths of a dataset: what its folders hold, what its splits are called, and where it ends."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from anchorite.data.formats.log import ReadingLog
from anchorite.data.headers import IMAGE_SUFFIXES
from anchorite.data.index_cache import Dependencies
from anchorite.errors import InputError
from anchorite.reading import printable

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_of(name: str) -> str | None:
    """The split a file or folder name speaks of ("valid" and "val2017" are "val"), or None."""
    return _SPLIT_WORDS.get(re.sub(r"[-_ ]*[0-9]*$", "", name.lower()))


def assign_splits(paths_by_name: Mapping[str, Path], log: ReadingLog) -> dict[str, Path]:
    """Which split each of some files or folders holds, by their names.

    "trainval" is the train split where there is neither train nor val; a single unknown name ("default") is too. Other
    unknown names are left out, and the log says so. Raises InputError when that leaves nothing or is ambiguous.
    """
    named: dict[str, Path] = {}
    unknown: dict[str, Path] = {}
    for name, path in paths_by_name.items():
        split = split_of(name)
        if split is None:
            unknown[name] = path
        elif split in named:
            raise InputError(
                f"{path} and {named[split]} both name the {split} split; move one away, or name the one to use"
            )
        else:
            named[split] = path
    for name, path in unknown.items():
        if name.lower().startswith("trainval"):
            if not {"train", "val"} & set(named):
                named["train"] = path
        elif len(paths_by_name) == 1:
            named["train"] = path
        elif named:
            log.adjusted("ignored-file", str(path), f"{name} is none of train, val, test")
    if not named:
        listed = ", ".join(str(path) for path in unknown.values())
        raise InputError(f"which split is which? ({listed}); name them train, val and test")
    return {split: named[split] for split in SPLITS if split in named}


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image, in any case, and is not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def exists(path: Path) -> bool:
    """Whether a file or folder exists; False, too, for a name that no file system can hold."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class Fence:
    """Keeps reading inside the dataset: a path counts by where it really leads, through links and "..".

    roots: the folders that make up the dataset; allow_outside: the user's leave to follow paths out of them.
    """

    def __init__(self, roots: Iterable[Path], allow_outside: bool = False) -> None:
        self.allow_outside = allow_outside
        self._roots = tuple(_real_path(root) for root in roots)
        self._folders_inside: dict[Path, bool] = {}

    def refusal(self, path: Path) -> str | None:
        """Why `path` may not be read, or None when it may."""
        if self.allow_outside or self._is_inside(path):
            return None
        return (
            f"leads out of the dataset, to {printable(str(_real_path(path)))}; move it inside, or pass --allow-outside "
            "(allow_outside=True) if you trust the dataset"
        )

    def check(self, path: Path) -> Path:
        """`path` itself, or InputError when it may not be read."""
        refusal = self.refusal(path)
        if refusal:
            raise InputError(f"{path}: {refusal}")
        return path

    def _is_inside(self, path: Path) -> bool:
        if path.name in ("", "..") or os.path.islink(path):  # noqa: PTH114 - Path.is_symlink raises for long names
            return self._leads_inside(path)
        folder = path.parent  # a plain file lies where its folder does, and folders are few
        if folder not in self._folders_inside:
            self._folders_inside[folder] = self._leads_inside(folder)
        return self._folders_inside[folder] or self._leads_inside(path)

    def _leads_inside(self, path: Path) -> bool:
        real = _real_path(path)
        return any(real.is_relative_to(root) for root in self._roots)


def without_links(folders: Iterable[Path], root: Path) -> list[Path]:
    """Those of some folders in, above or beside `root` that no link on the way from it leads to."""
    real_root = _real_path(root)
    ways = {folder: os.path.relpath(folder, root) for folder in folders}
    return [folder for folder, way in ways.items() if str(_real_path(folder)) == os.path.normpath(real_root / way)]


def _real_path(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, this takes a circle of links


class Folders:
    """Listings of folders, each read once: a dataset asks for the same few folders a hundred thousand times."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._names: dict[Path, frozenset[str]] = {}
        self._image_stems: dict[Path, dict[str, list[str]]] = {}

    def names(self, folder: Path) -> frozenset[str]:
        """The names in a folder; none when it does not exist or cannot be read."""
        if folder not in self._names:
            self._dependencies.add_folder(folder)
            try:
                self._names[folder] = frozenset(entry.name for entry in folder.iterdir())
            except (OSError, ValueError):
                self._names[folder] = frozenset()
        return self._names[folder]

    def has(self, path: Path) -> bool:
        """Whether a file or folder exists."""
        return path.name in self.names(path.parent)

    def images_by_stem(self, folder: Path) -> dict[str, list[str]]:
        """The image names in a folder by their stem, each list sorted."""
        if folder not in self._image_stems:
            stems: dict[str, list[str]] = {}
            for name in sorted(filter(is_image_name, self.names(folder))):
                stems.setdefault(Path(name).stem, []).append(name)
            self._image_stems[folder] = stems
        return self._image_stems[folder]


def walk_images(folder: Path, fence: Fence, dependencies: Dependencies) -> Iterator[Path]:
    """The images in a folder and below, in no order to rely on; InputError for a linked folder that leads outside.

    Hidden names are passed over: they are thumbnails and droppings of other programs.
    """
    seen = {_real_path(folder)}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        dependencies.add_folder(current)
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{current}: the folder cannot be read: {error.strerror or error}") from error
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()  # only Path takes a circle of links
            if is_folder:
                fence.check(path)
                real = _real_path(path) if entry.is_symlink() else path
                if real not in seen:  # a link may lead back up
                    seen.add(real)
                    waiting.append(path)
            elif is_image_name(entry.name) and (entry.is_symlink() or entry.is_file()):
                yield path
