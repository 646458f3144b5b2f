"""What all label formats share: the log of a reading, numbers and names, paths, and from boxes to a table of records.

A format is a module that finds the images of each split and their boxes, and gives both to a `SplitBuilder`:

    builder = SplitBuilder(split, class_names, fence, log)
    for each image of the split:
        header = builder.header(path)         # None where the image is bad, which the log then says
        if header is not None:
            builder.add(path, header, boxes)  # of `pack_box`, one behind another
    table = builder.table()

One policy for every format: a box that reaches outside the image is clipped; one left without area is dropped and its
image kept; of exact duplicates (class, crowd flag and coordinates) the first stays; sub-pixel boxes stay. Each of these
is recorded. Numbers are plain ASCII: Python's own int() and float() take `1_0`, full-width digits and `nan`; a label
file that holds these is broken.
"""

from __future__ import annotations

import math
import os
import re
import sys
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from functools import cache
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from anchorite.choices import ScoresUse
from anchorite.data.dataset import (
    BOX_ROW,
    Adjustment,
    AdjustmentKind,
    Box,
    Record,
    RecordTable,
    Split,
    TableBuilder,
)
from anchorite.data.headers import IMAGE_SUFFIXES, OTHER_IMAGE_KINDS, ImageHeader, read_header
from anchorite.data.images import value_range
from anchorite.data.index_cache import Dependencies
from anchorite.errors import InputError
from anchorite.reading import printable, shorten

MAX_LISTED = 20
_LONGEST_ORIGIN = 5000  # a path has up to 4096 letters
_BLOCK = 4096  # images that the policy is applied to at a time
# Clipping always happens, but is only reported beyond this: six decimals of a normalised number are worth up to
# 0.01 px in a large image, and a list full of rounding hides the boxes that are wrong.
REPORTED_CLIP_PX = 0.1
_MOST_SAMPLED = 32  # 16-bit images of a split that are decoded to see what range they use
_FEWEST_LEVELS = 64  # of 256: a camera of 14 bits leaves so many
SCORES_HINT = "--scores as-weights makes it what the object counts in training"
Fault = tuple[str, str, bool]  # where a label is bad, why, and whether the place of the object is known all the same
ClassesAndSplits = tuple[tuple[str, ...], Mapping[str, Split]]  # what the `read` of a format returns


class ReadingLog:
    """Collects the bad rows and the adjustments of one dataset.

    With `skip_bad`, whatever is bad becomes an Adjustment("skipped-bad"), and the reader leaves the whole image out: an
    object that was not understood must not be learned as background. Where all that is bad in an image are objects of
    which at least the place is known, it stays, with ignored regions there: Adjustment("ignored-region"). Without
    `skip_bad` it is counted, and `raise_if_bad` ends the reading.

    `split` is the one being read, as the readers set it. `dependencies`: the files and folders that were read;
    `folders`: the listings of folders. `ignored_classes`: by name the classes that are ignored and who says so;
    `scores`: what these are taken for; to both a reader adds what the dataset itself says.
    """

    def __init__(self, skip_bad: bool, ignored_classes: Mapping[str, str], scores: ScoresUse) -> None:
        self.skip_bad, self.scores = skip_bad, scores
        self.ignored_classes = dict(ignored_classes)
        self.split: str | None = None
        self.num_bad = 0
        self.dependencies = Dependencies()
        self.folders = Folders(self.dependencies)
        self._listed: list[str] = []
        self._told: set[tuple[Path | str, ...]] = set()  # folders, what was done to files in them, and their names
        self._moment = 0
        self._adjustments: list[tuple[int, Adjustment]] = []
        self._counts: dict[tuple[str | None, AdjustmentKind, str], tuple[int, str, int]] = {}

    @property
    def adjustments(self) -> tuple[Adjustment, ...]:
        """The adjustments so far, in reading order."""
        counted = [
            (moment, Adjustment(kind, origin, f"{number} {what}", split))
            for (split, kind, what), (moment, origin, number) in self._counts.items()
        ]
        return tuple(adjustment for _, adjustment in sorted(self._adjustments + counted, key=itemgetter(0)))

    def moment(self) -> int:
        """The present place in the reading order, for an adjustment that is only known later."""
        self._moment += 2
        return self._moment - 1

    def adjusted(self, kind: AdjustmentKind, origin: str, detail: str, moment: int | None = None, **known: Any) -> None:
        """Record what was done to a label that is well-formed but not usable; `known`: more fields of Adjustment."""
        origin, detail = printable(origin, _LONGEST_ORIGIN), printable(detail)
        adjustment = Adjustment(kind, origin, detail, split=self.split, **known)
        self._adjustments.append((self._moment if moment is None else moment, adjustment))

    def counted(self, kind: AdjustmentKind, origin: str, what: str, number: int = 1) -> None:
        """Count what many labels of a split have in common: one Adjustment says how many, and where the first is.

        what: behind the number, as in "polygons, read as the boxes around them".
        """
        moment, first, before = self._counts.get((self.split, kind, what), (self._moment, origin, 0))
        self._counts[self.split, kind, what] = moment, printable(first, _LONGEST_ORIGIN), before + number

    def adjusted_files(self, kind: AdjustmentKind, folder: Path, names: Iterable[str], what: str) -> None:
        """Record, once, what was done to some files of a folder, if there are any."""
        names = sorted(names)
        if names and (folder, what, *names) not in self._told:
            self._told.add((folder, what, *names))
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            files = tuple(folder / name for name in names)
            self.adjusted(kind, str(folder), f"{len(names)} {what}: {listed}", files=files)

    def bad(self, origin: str, reason: str, image: Path | None = None, is_region: bool = False) -> None:
        """Record a malformed row, annotation or image; the caller then leaves out the image that it belongs to.

        is_region: no, it has put an ignored region there.
        """
        if self.skip_bad:
            self.adjusted("ignored-region" if is_region else "skipped-bad", origin, reason, image=image)
            return
        self.num_bad += 1
        if len(self._listed) < MAX_LISTED:
            self._listed.append(f"{printable(origin, _LONGEST_ORIGIN)}: {printable(reason)}")

    def bad_labels(self, faults: Sequence[Fault], image: Path) -> bool:
        """Record what is bad in the labels of an image, and whether the image stays nevertheless (as far as it goes:
        without skip_bad the dataset is refused later)."""
        stays = all(is_placed for *_, is_placed in faults)
        for origin, reason, _ in faults:
            self.bad(origin, reason, image, stays)
        return stays

    def raise_if_bad(self, root: Path) -> None:
        """Raise one InputError with the first 20 bad rows and their total count, if there is any."""
        if not self.num_bad:
            return
        shown = f", the first {MAX_LISTED}" if self.num_bad > MAX_LISTED else ""
        noun = "error" if self.num_bad == 1 else "errors"
        raise InputError(
            f"{root}: {self.num_bad} {noun} in the labels{shown}:\n"
            + "\n".join(f"  {line}" for line in self._listed)
            + "\nCorrect them, or pass --skip-bad (skip_bad=True) to leave these out and count them"
        )


_INTEGER = re.compile(r"[0-9]{1,18}")
# Only one way to match each text, so that a megabyte of digits costs no more than reading it.
_LARGEST_WHOLE = 1 << 53  # of floats
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def plain_integer(text: str) -> int | None:
    """A whole number written in ASCII digits alone, or None."""
    return int(text) if _INTEGER.fullmatch(text) else None


def plain_number(text: str) -> float | None:
    """A finite decimal number written in plain ASCII, or None."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def whole_number(text: str) -> int | None:
    """A whole number without a sign in any plain notation, as in 7, 7.0 and 7e0, or None."""
    number = plain_integer(text)
    value = plain_number(text) if number is None and text[:1] not in ("+", "-") else None
    if value is not None and value.is_integer() and value < _LARGEST_WHOLE:
        with suppress(ArithmeticError):  # an exponent of twenty digits
            return int(value) if Decimal(text) == int(value) else None  # 0.99999999999999999999 is 1.0 to floats
    return number


def is_class_name(name: object) -> bool:
    """Whether this can name a class: a text that is not blank and holds no control character or half a character."""
    return isinstance(name, str) and bool(name.strip()) and not any(category(c) in ("Cc", "Cs") for c in name)


def distinct_class_names(lines: Iterable[tuple[int, str]], path: Path) -> tuple[str, ...]:
    """The class names in some lines of a file; InputError as file:line for a name that is none or stands twice."""
    first_lines: dict[str, int] = {}
    for line, name in lines:
        if not is_class_name(name):
            raise InputError(f"{path}:{line}: {shorten(name)} cannot name a class; give it a word")
        if name in first_lines:
            raise InputError(
                f"{path}:{line}: the class name {shorten(name)} stands twice (line {first_lines[name]}); rename one"
            )
        first_lines[name] = line
    return tuple(first_lines)


_SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLITS = tuple(_SPLIT_WORDS)


def split_of(name: str) -> str | None:
    """The split a file or folder name speaks of ("valid" and "val2017" are "val"), or None."""
    word = re.sub(r"[-_ ]*[0-9]*$", "", name.lower())
    return next((split for split, words in _SPLIT_WORDS.items() if word in words), None)


def split_in(name: str) -> str | None:
    """The split that words of a file name speak of, as in "train_labels", or None where there is none or several."""
    found = set(filter(None, map(split_of, re.split(r"[^A-Za-z0-9]+", name))))
    return found.pop() if len(found) == 1 else None


def assign_splits(paths_by_name: Mapping[str, Path], log: ReadingLog) -> dict[str, Path]:
    """Which split each of some files or folders holds, by their names.

    "trainval" is the train split where there is neither train nor val; a single unknown name ("default") is too. Other
    unknown names are left out, and the log says so. Raises InputError when that leaves nothing or is ambiguous.
    """
    named: dict[str, Path] = {}
    unknown: dict[str, Path] = {}
    for name, path in paths_by_name.items():
        split = split_of(name) or split_in(name)
        if split in named:
            raise InputError(
                f"{path} and {named[split]} both name the {split} split; move one away, or name the one to use"
            )
        (unknown if split is None else named)[split or name] = path
    for name, path in unknown.items():
        is_both = name.lower().startswith("trainval")
        if len(paths_by_name) == 1 or (is_both and not {"train", "val"} & set(named)):
            named["train"] = path
        elif named and not is_both:
            log.adjusted("ignored-file", str(path), f"{name} is none of train, val, test")
    if not named:
        listed = ", ".join(str(path) for path in unknown.values())
        raise InputError(f"which split is which? ({listed}); name them train, val and test")
    return {split: named[split] for split in SPLITS if split in named}


def files_with_suffix(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder, sorted, whose names end so in any case; no hidden ones, which other programs leave there
    (`._a.xml` of macOS). None where there is no such folder.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 - names are compared before paths are made
    return [folder / name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but no hidden ones; none where it cannot be listed."""
    try:
        with os.scandir(folder) as listing:
            shown = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError:
        return []
    # Only Path takes a circle of links.
    return sorted(folder / one.name for one in shown if (Path(one).is_dir() if one.is_symlink() else one.is_dir()))


def is_finite(value: object) -> bool:
    """Whether a value of a JSON is a number, and neither NaN nor too large for a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def weight_fault(score: object) -> str | None:
    """Why a score cannot be the weight of an object, or None where it can."""
    is_weight = is_finite(score) and 0 <= score <= 1  # type: ignore[operator]
    return None if is_weight else f"the score must be a number in 0..1 to be a weight ({shorten(score)})"


def box_around(points_xy: Iterable[Sequence[float]]) -> Box:
    """The smallest box that holds some points, of which there is at least one."""
    xs, ys = zip(*((point[0], point[1]) for point in points_xy), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image, in any case, and is not hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")  # noqa: PTH122


def is_text_name(name: str) -> bool:
    """Whether a file name ends in .txt, in any case, and is not hidden."""
    return name.lower().endswith(".txt") and not name.startswith(".")


def other_image_kind(name: str) -> str:
    """What images of this suffix are called where they are of a kind that is not read, else nothing."""
    return "" if name.startswith(".") else OTHER_IMAGE_KINDS.get(os.path.splitext(name)[1].lower(), "")  # noqa: PTH122


def exists(path: Path) -> bool:
    """Whether a file or folder exists; False, too, for a name that no file system can hold."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for such names


class Fence:
    """Keeps reading inside the dataset: a path counts by where it really leads, through links and "..".

    roots: the folders that make up the dataset; allow_outside: the user's leave to follow paths out of them.
    """

    def __init__(self, roots: Iterable[Path], allow_outside: bool = False) -> None:
        self.allow_outside = allow_outside
        self._roots = tuple(_real_path(root) for root in roots)
        self._folder_is_inside = cache(self._leads_inside)

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
        # A plain file lies where its folder does, and folders are few.
        return self._folder_is_inside(path.parent) or self._leads_inside(path)

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
        self._any_case: dict[Path, dict[str, list[str]]] = {}
        self._stems: dict[tuple[Path, bool], dict[str, list[str]]] = {}

    def existing(self, folders: Iterable[Path]) -> list[Path]:
        """Those of some folders that exist, each once."""
        distinct = dict.fromkeys(folders)
        for folder in distinct:
            self._dependencies.add_candidate(folder)
        return [folder for folder in distinct if folder.is_dir()]

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

    def find(self, folder: Path, parts: Iterable[str]) -> Path | None:
        """What is at some parts of a path below a folder: as they are written, else in the only other letter case."""
        found = self.matching(folder, parts)
        return found[0] if len(found) == 1 else None

    def matching(self, folder: Path, parts: Iterable[str]) -> list[Path]:
        """All that is at some parts of a path below a folder: each part as it is written, else in any letter case."""
        found = [folder]
        for part in parts:
            found = [home / name for home in found for name in self._spelled(home, part)]
        return found

    def _spelled(self, folder: Path, name: str) -> list[str]:
        if name in self.names(folder):
            return [name]
        if folder not in self._any_case:
            self._any_case[folder] = _by_folded(self.names(folder))
        return self._any_case[folder].get(name.casefold(), [])

    def ending_like(self, homes: Iterable[Path], parts: Sequence[str], fence: Fence) -> list[Path]:
        """What exists in some folders under the last of these names, as many of them as possible.

        For paths of another computer: `/home/ann/set/images/a.jpg` is the images/a.jpg, else the a.jpg, of a dataset.
        """
        for start in range(len(parts)):
            found = [path for home in homes for path in self.matching(home, parts[start:]) if not fence.refusal(path)]
            if found:
                return list(dict.fromkeys(found))
        return []

    def images_of_stem(self, folder: Path, stem: str) -> list[str]:
        """The image names in a folder that have this stem in any letter case, sorted."""
        return self._of_stem(folder, stem, is_image_name)

    def texts_of_stem(self, folder: Path, stem: str) -> list[str]:
        """The same for names that end in .txt."""
        return self._of_stem(folder, stem, is_text_name)

    def _of_stem(self, folder: Path, stem: str, is_wanted: Callable[[str], bool]) -> list[str]:
        key = folder, is_wanted is is_image_name
        if key not in self._stems:
            self._stems[key] = _by_folded(filter(is_wanted, self.names(folder)), lambda name: os.path.splitext(name)[0])  # noqa: PTH122
        return self._stems[key].get(stem.casefold(), [])


def _by_folded(names: Iterable[str], part: Callable[[str], str] = str) -> dict[str, list[str]]:
    """Names by a part of theirs without difference of letter case, each list sorted."""
    folded: dict[str, list[str]] = {}
    for name in sorted(names):
        folded.setdefault(part(name).casefold(), []).append(name)
    return folded


def walk_images(folder: Path, fence: Fence, log: ReadingLog) -> list[Path]:
    """The images in a folder and below, as `walk_files` finds them; the log is told of those of kinds not read."""
    images, others = list[Path](), defaultdict[Path, list[str]](list)
    for path in walk_files(folder, fence, log, lambda name: is_image_name(name) or bool(other_image_kind(name))):
        if kind := other_image_kind(path.name):
            others[path.parent / kind].append(path.name)
        else:
            images.append(path)
    for place, names in others.items():
        what = f"{place.name} images, which are not read; convert them to JPEG or PNG"
        log.adjusted_files("ignored-file", place.parent, names, what)
    return images


def walk_files(folder: Path, fence: Fence, log: ReadingLog, is_wanted: Callable[[str], bool]) -> list[Path]:
    """The files in a folder and below with names that are wanted, by their paths; InputError for a linked folder that
    leads outside.

    Hidden names are passed over: they are thumbnails and left-overs of other programs. So are pipes and devices.
    """
    seen, waiting, files = {_real_path(folder)}, [folder], list[Path]()
    while waiting:
        current = waiting.pop()
        log.dependencies.add_folder(current)
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=attrgetter("name"))
        except OSError as error:
            raise InputError(f"{current}: the folder cannot be read: {error.strerror or error}") from error
        for entry in entries:
            path, is_link = current / entry.name, entry.is_symlink()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if path.is_dir() if is_link else entry.is_dir():  # only Path takes a circle of links
                real = _real_path(fence.check(path)) if is_link else path
                if real not in seen:  # a link may lead back up
                    seen.add(real)
                    waiting.append(path)
            elif is_wanted(entry.name) and (is_link or entry.is_file()):
                files.append(path)
    return sorted(files, key=lambda path: path.parts)


class SplitBuilder:
    """Reads the headers of a split's images, and builds its table by applying the policy of this module.

    head_id: as that of a `TableBuilder`, for `pack_box`.
    """

    def __init__(self, split: str, class_names: Collection[str], fence: Fence, log: ReadingLog) -> None:
        self.fence, self.log = fence, log
        self.log.split, self._class_names = split, class_names
        self._records, self._moments = TableBuilder(), array("q")
        self._num_grey, self._deep = 0, list[Path]()
        self.head_id = self._records.head_id

    def header(self, path: Path, stated_wh: tuple[int, int] = (0, 0), origin: str = "") -> ImageHeader | None:
        """The header of an image, or None with the reason in the log.

        stated_wh: the size that the label file states at `origin`, 0 where it does not; it must be the displayed one.
        Pixel coordinates mean nothing when the size is another: they belong to a resized, cut or turned image.
        """
        refusal = self.fence.refusal(path)
        try:
            if refusal:
                raise InputError(refusal)
            header = read_header(path)
        except InputError as error:
            self.log.bad(str(path), str(error).removeprefix(f"{path}: "), path)
            return None
        if 0 in stated_wh or stated_wh == (header.width, header.height):
            return header
        stated, actual = f"{stated_wh[0]}x{stated_wh[1]}", f"{header.width}x{header.height}"
        fault = (
            f"the labels say the image is {stated}, the file is {actual}; restore the image that was labelled, or "
            "scale the boxes and correct the size"
        )
        if header.is_turned and stated_wh == (header.stored_width, header.stored_height):
            fault = (
                f"the labels say {stated}, the image is shown as {actual} after its EXIF orientation "
                f"({header.orientation}): the boxes were drawn on the image lying on its side; label the upright "
                "image, or remove the orientation from the file"
            )
        self.log.bad(origin, fault, path)
        return None

    def add(self, path: Path, header: ImageHeader, boxes: bytes | bytearray | memoryview) -> None:
        """Add an image with its boxes, as `pack_box` gives them one behind another."""
        self._records.add(path, header.width, header.height, boxes)
        self._moments.append(self.log.moment())
        self._num_grey += header.is_grey
        if header.is_deep:
            self._deep.append(path)

    def table(self) -> RecordTable:
        """The records of all images; nothing may be added afterwards."""
        table = self._records.table()
        boxes, images = np.frombuffer(self._records.boxes, BOX_ROW), table.image_of_box()
        is_kept = np.ones(len(boxes), np.bool_)
        for first in range(0, len(table), _BLOCK):  # of images looked at together
            rows = slice(*np.searchsorted(images, [first, first + _BLOCK]).tolist())
            is_kept[rows] = self._apply_policy(table, boxes[rows], images[rows])
        if not is_kept.all():
            rows_of_images = table.images.copy()
            rows_of_images["num_boxes"] = np.bincount(images[is_kept], minlength=len(table))
            table = replace(table, images=rows_of_images, boxes=boxes[is_kept])
        self._tell_of_samples(table)
        return table

    def _tell_of_samples(self, table: RecordTable) -> None:
        """Tell the log where all images are grey, and where few grey levels of 16-bit images survive their decoding."""
        if len(table) and self._num_grey == len(table):
            grey = f"all {len(table)} images are grey: the one channel is repeated to three"
            self.log.adjusted("grey-images", str(table[0].path.parent), grey)
        some = self._deep[:: max(1, -(-len(self._deep) // _MOST_SAMPLED))]
        ranges = [found for found in map(value_range, some) if found is not None]
        if not ranges:
            return
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        num_levels = (high >> 8) - (low >> 8) + 1
        if num_levels <= _FEWEST_LEVELS:
            self.log.adjusted(
                "narrow-range",
                str(some[0].parent),
                f"{len(self._deep)} 16-bit images use {low}..{high} of 0..65535 ({len(some)} were looked at): "
                f"{num_levels} of 256 levels are left when they become 8-bit images. Spread the values over 0..65535, "
                "in all images alike, and save them again",
            )

    def _apply_policy(
        self, table: RecordTable, boxes: NDArray[np.void], images: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Clip boxes (N,) of some images of a table, and say which stay. boxes: the table's own, but writeable."""
        stated_xyxy, sizes = boxes["xyxy"].copy(), table.images[images]
        limits = np.stack([sizes["width"], sizes["height"]] * 2, axis=1)
        boxes_xyxy = np.where(stated_xyxy < 0.0, 0.0, stated_xyxy)
        boxes["xyxy"] = boxes_xyxy = np.where(boxes_xyxy > limits, limits, boxes_xyxy)
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        boxes["weight"][boxes["ignored"]] = 1
        boxes["area"] = np.where(np.isnan(boxes["area"]), sides[:, 0] * sides[:, 1], boxes["area"])
        is_reported = (sides <= 0).any(axis=1) | _may_repeat(boxes_xyxy, images)
        is_reported |= np.abs(boxes_xyxy - stated_xyxy).max(axis=1, initial=0.0) > REPORTED_CLIP_PX
        is_kept = np.ones(len(images), np.bool_)
        for image in np.unique(images[is_reported]).tolist():
            rows = slice(*np.searchsorted(images, [image, image + 1]).tolist())
            is_kept[rows] = self._report(table[image], stated_xyxy[rows].tolist(), self._moments[image])
        return is_kept

    def _report(self, record: Record, stated_xyxy: Iterable[Sequence[float]], moment: int) -> list[bool]:
        """Whether each box of an image, clipped already, stays; the log is told what the policy does to them."""
        class_names, stays = [*self._class_names, "a region"], list[bool]()  # the last is that of `NO_CLASS`
        first_origins: dict[tuple[object, ...], str] = {}
        columns = record.class_ids.tolist(), record.ignored.tolist(), record.boxes_xyxy.tolist(), stated_xyxy
        for origin, class_id, ignored, clipped, stated in zip(record.origins, *columns, strict=True):
            kind: AdjustmentKind | None = None
            name, key = class_names[class_id], (class_id, ignored, *clipped)
            if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                kind, detail = "dropped-empty", f"has no area within {record.width}x{record.height}"
            elif key in first_origins:
                kind, detail = "dropped-duplicate", f"repeats {first_origins[key]}"
            elif max(abs(a - b) for a, b in zip(clipped, stated, strict=True)) > REPORTED_CLIP_PX:
                kind, detail = "clipped", f"-> {_show(clipped)} in {record.path.name}"
            stays.append(kind in (None, "clipped"))
            if stays[-1]:
                first_origins[key] = origin
            if kind is not None:
                detail, known = f"{name} {_show(stated)} {detail}", {"class_name": name, "box_xyxy": tuple(stated)}
                self.log.adjusted(kind, origin, detail, moment, image=record.path, **known)
        return stays


def _may_repeat(boxes_xyxy: NDArray[np.float64], images: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) bool, true for every box that lies where another of its image does, and by chance for others."""
    keys = (boxes_xyxy * [1.0, 3**0.5, 5**0.5, 7**0.5]).sum(axis=1)
    order = np.lexsort((keys, images))
    is_same = (np.diff(keys[order]) == 0) & (np.diff(images[order]) == 0)
    return np.isin(np.arange(len(images)), order[1:][is_same])


def _show(box_xyxy: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box_xyxy) + ")"
