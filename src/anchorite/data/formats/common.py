"""What all label formats share: the log of a reading, numbers and names, paths, and from boxes to a `Record`.

One policy for every format: a box that reaches outside the image is clipped; one left without area is dropped and its
image kept; of exact duplicates (class, crowd flag and coordinates) the first stays; sub-pixel boxes stay. Each of these
is recorded. Numbers are plain ASCII: Python's own int() and float() take `1_0`, full-width digits and `nan`; a label
file that holds these is broken.

Legend: N boxes of an image, B images.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from anchorite.data.dataset import Adjustment, AdjustmentKind
from anchorite.data.headers import IMAGE_SUFFIXES, ImageHeader, read_header
from anchorite.data.index_cache import Dependencies
from anchorite.data.records import Record
from anchorite.errors import InputError
from anchorite.reading import printable

MAX_LISTED = 20
_LONGEST_ORIGIN = 5000  # a path has up to 4096 letters


class ReadingLog:
    """Collects the bad rows and the adjustments of one dataset.

    With `skip_bad`, whatever is bad is left out and becomes an Adjustment("skipped-bad"); otherwise it is counted, and
    `raise_if_bad` ends the reading. `split` is the one being read, as the readers set it. `dependencies`: the
    files and folders that were read.
    """

    def __init__(self, skip_bad: bool) -> None:
        self.skip_bad = skip_bad
        self.split: str | None = None
        self.num_bad = 0
        self.dependencies = Dependencies()
        self._listed: list[str] = []
        self._adjustments: list[Adjustment] = []

    @property
    def adjustments(self) -> tuple[Adjustment, ...]:
        """The adjustments so far, in reading order."""
        return tuple(self._adjustments)

    def adjusted(self, kind: AdjustmentKind, origin: str, detail: str, **known: Any) -> None:
        """Record what was done to a label that is well-formed but not usable; `known`: more fields of Adjustment."""
        origin, detail = printable(origin, _LONGEST_ORIGIN), printable(detail)
        self._adjustments.append(Adjustment(kind, origin, detail, split=self.split, **known))

    def bad(self, origin: str, reason: str, image: Path | None = None) -> None:
        """Record a malformed row, annotation or image, which the caller then leaves out."""
        if self.skip_bad:
            self.adjusted("skipped-bad", origin, reason, image=image)
            return
        self.num_bad += 1
        if len(self._listed) < MAX_LISTED:
            self._listed.append(f"{printable(origin, _LONGEST_ORIGIN)}: {printable(reason)}")

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
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def plain_integer(text: str) -> int | None:
    """A whole number written in ASCII digits alone, or None."""
    return int(text) if _INTEGER.fullmatch(text) else None


def plain_number(text: str) -> float | None:
    """A finite decimal number written in plain ASCII, or None."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def is_class_name(name: object) -> bool:
    """Whether this can name a class: a text that is not blank and holds no control character or half a character."""
    return isinstance(name, str) and bool(name.strip()) and not any(category(c) in ("Cc", "Cs") for c in name)


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


# Clipping always happens, but is only reported beyond this: six decimals of a normalised number are worth up to
# 0.01 px in a large image, and a list full of rounding hides the boxes that are wrong.
REPORTED_CLIP_PX = 0.1


class RawBox(NamedTuple):
    """A well-formed label before the policy: corners in pixels as displayed, area in pixels or None for the box's."""

    class_id: int
    box_xyxy: tuple[float, float, float, float]
    origin: str
    ignored: bool = False
    area: float | None = None


def read_image_header(path: Path, fence: Fence, log: ReadingLog) -> ImageHeader | None:
    """The header of an image inside the fence, or None with the reason in the log."""
    refusal = fence.refusal(path)
    if refusal:
        log.bad(str(path), refusal, path)
        return None
    try:
        return read_header(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        log.bad(str(path), reason, path)
        return None


def sizes_agree(header: ImageHeader, claimed_wh: tuple[int, int] | None, origin: str, log: ReadingLog) -> bool:
    """Whether a label file's image size is the displayed one; the log says why not.

    Pixel coordinates mean nothing when the size is another: they belong to a resized, cut or turned image. A size of
    None or 0 is "not stated" and agrees.
    """
    if claimed_wh is None or 0 in claimed_wh or claimed_wh == (header.width, header.height):
        return True
    claimed = f"{claimed_wh[0]}x{claimed_wh[1]}"
    actual = f"{header.width}x{header.height}"
    if header.is_turned and claimed_wh == (header.stored_width, header.stored_height):
        log.bad(
            origin,
            f"the labels say {claimed}, the image is shown as {actual} after its EXIF orientation "
            f"({header.orientation}): the boxes were drawn on the image lying on its side; label the upright image, "
            "or remove the orientation from the file",
        )
    else:
        log.bad(
            origin,
            f"the labels say the image is {claimed}, the file is {actual}; restore the image that was labelled, or "
            "scale the boxes and correct the size",
        )
    return False


def plain_boxes(
    boxes_xyxy: NDArray[np.float64],
    class_ids: NDArray[np.int64],
    ignored: NDArray[np.bool_],
    counts: NDArray[np.int64],
    sizes_wh: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The boxes of many images clipped as `build_record` does, and for which images that is all it would do.

    boxes_xyxy (N, 4), class_ids, ignored (N,): image after image; counts, sizes_wh (B,), (B, 2): of B images. The
    second array, (B,) bool, is False where the log would hear of a box, maybe where not, and where a size is 0.
    """
    images = np.repeat(np.arange(len(counts)), counts)
    limits = np.concatenate([sizes_wh, sizes_wh], axis=1)[images]
    positive = np.where(boxes_xyxy < 0.0, 0.0, boxes_xyxy)
    clipped = np.where(positive > limits, limits, positive)
    is_told = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    is_told |= np.abs(clipped - boxes_xyxy).max(axis=1, initial=0.0) > REPORTED_CLIP_PX
    is_told |= _may_repeat(clipped, class_ids, ignored, images)
    is_plain = np.asarray((sizes_wh > 0).all(axis=1), np.bool_)
    is_plain[images[is_told]] = False
    return clipped, is_plain


def _may_repeat(
    boxes_xyxy: NDArray[np.float64], class_ids: NDArray[np.int64], ignored: NDArray[np.bool_], images: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(N,) bool, true for every box that repeats one of its image, and by a chance of 2**-64 a pair for others."""
    hashes = (images * 2 + ignored).astype(np.uint64)
    numbers = (boxes_xyxy + 0.0).view(np.uint64)  # -0.0 and 0.0 are the same place
    for column in (class_ids.astype(np.uint64), *numbers.T):
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    order = np.argsort(hashes, kind="stable")
    is_same = hashes[order[1:]] == hashes[order[:-1]]
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:][is_same]] = True
    return repeated


def build_record(
    path: Path, header: ImageHeader, boxes: Sequence[RawBox], class_names: Sequence[str], log: ReadingLog
) -> Record:
    """The Record of one image after the policy of this module; what the policy did goes to the log."""
    kept: list[RawBox] = []
    seen: dict[tuple[object, ...], str] = {}
    for box in boxes:
        name = class_names[box.class_id]
        box_xyxy = _clip(box.box_xyxy, header.width, header.height)
        known = {"image": path, "class_name": name, "box_xyxy": box.box_xyxy}
        if box_xyxy[2] <= box_xyxy[0] or box_xyxy[3] <= box_xyxy[1]:
            log.adjusted(
                "dropped-empty",
                box.origin,
                f"{name} {_show(box.box_xyxy)} has no area within {header.width}x{header.height}",
                **known,
            )
            continue
        key = (box.class_id, box.ignored, *box_xyxy)
        if key in seen:
            log.adjusted("dropped-duplicate", box.origin, f"{name} {_show(box.box_xyxy)} repeats {seen[key]}", **known)
            continue
        seen[key] = box.origin
        if max(abs(a - b) for a, b in zip(box_xyxy, box.box_xyxy, strict=True)) > REPORTED_CLIP_PX:
            detail = f"{name} {_show(box.box_xyxy)} -> {_show(box_xyxy)} in {path.name}"
            log.adjusted("clipped", box.origin, detail, **known)
        kept.append(box._replace(box_xyxy=box_xyxy))
    return _as_record(path, header, kept)


def _as_record(path: Path, header: ImageHeader, boxes: Sequence[RawBox]) -> Record:
    boxes_xyxy = np.array([box.box_xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    for index, box in enumerate(boxes):
        if box.area is not None:
            areas[index] = box.area
    return Record(
        path=path,
        width=header.width,
        height=header.height,
        boxes_xyxy=boxes_xyxy,
        class_ids=np.array([box.class_id for box in boxes], dtype=np.int64),
        ignored=np.array([box.ignored for box in boxes], dtype=np.bool_),
        areas=areas,
        origins=tuple(box.origin for box in boxes),
    )


def _clip(box_xyxy: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box_xyxy
    return (
        min(max(x1, 0.0), float(width)),
        min(max(y1, 0.0), float(height)),
        min(max(x2, 0.0), float(width)),
        min(max(y2, 0.0), float(height)),
    )


def _show(box_xyxy: tuple[float, float, float, float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box_xyxy) + ")"
