"""Formats whose label files name their images and classes: from what such a file says to splits.

A reader makes a `LabelledImage` of each entry, with the image's name as it stands there. `read_named` finds the files,
joins all entries of one file, collects the classes and assigns the splits.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from anchorite.data.dataset import NO_CLASS, NO_NUMBER, AdjustmentKind, Box, Split, pack_box
from anchorite.data.formats.common import (
    SCORES_HINT,
    SPLITS,
    ClassesAndSplits,
    Fault,
    Fence,
    ReadingLog,
    SplitBuilder,
    files_with_suffix,
    folders_in,
    is_class_name,
    is_image_name,
    other_image_kind,
    split_in,
    split_of,
    walk_images,
    weight_fault,
)
from anchorite.errors import InputError
from anchorite.reading import shorten

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")


class NamedBox(NamedTuple):
    """An object as a label file has it.

    xyxy: corners in pixels as displayed, or as parts of the image's size (`LabelledImage.is_normalised`). number: of
    the line, element or shape, `NO_NUMBER` where origin says all; origin: "FILE:" or "FILE: shape ", before the number.
    score: as it stands there, None for none. fault: why the class is not known, as far as the reader sees.
    """

    class_name: str
    xyxy: Box
    origin: str
    number: int = NO_NUMBER
    is_ignored: bool = False
    score: object = None
    fault: str = ""


@dataclass
class LabelledImage:
    """An image as a label file describes it.

    name: path, URL or bare name as it stands there; other_names: of the file, where there is none of that name; origin:
    where, as "FILE:LINE"; stated_wh: its size there, 0 where none is stated; split: where the file names one; faults:
    (origin, reason) of each object that cannot be read, for which the image is refused or left out; told: what the log
    counts (kind, origin, words) where the image is kept; left_out: why it is not kept where none of its entries has a
    box, as in "was skipped".
    """

    name: str
    origin: str
    other_names: tuple[str, ...] = ()
    stated_wh: tuple[int, int] = (0, 0)
    split: str | None = None
    is_normalised: bool = False
    boxes: list[NamedBox] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    told: Counter[tuple[AdjustmentKind, str, str]] = field(default_factory=Counter)
    left_out: str = ""

    def add(self, box: NamedBox, shape: str = "") -> None:
        """Add an object; shape: what it is the box around, in the plural, where the file has no box."""
        self.boxes.append(box)
        if shape:
            self.told["shape-as-box", self.origin, f"{shape}, read as the boxes around them"] += 1

    def pass_over(self, shape: str) -> None:
        """Note what outlines no object: an image that has such shapes and no box at all is left out."""
        self.told["ignored-shape", self.origin, f"{shape}, which outline no object"] += 1
        self.left_out = f"has {shape}, but no box"


def read_named(
    entries: Iterable[LabelledImage],
    home: Path,
    root: Path,
    log: ReadingLog,
    allow_outside: bool,
    class_names: Sequence[str] | None = None,
) -> ClassesAndSplits:
    """Class names and splits; records in the order of the images' paths.

    home: the folder in and below which the images lie, in any layout; root: what the user named. class_names: all
    classes in their order; by default the sorted names of all objects. The split of an image is the one its entry
    names, else that of a folder on its path, else "train"; where its entries name two it is in both. Images without an
    entry are left out, for nobody looked whether they are empty; the log says so, and of entries without a file that
    they are bad. Raises InputError where there is no class.
    """
    fence = Fence([home], allow_outside)
    images = walk_images(home, fence, log)
    entries_of, listed = _find_images(list(entries), home, images, log)
    names = {box.class_name for some in entries_of.values() for one in some for box in one.boxes}
    classes = tuple(sorted(filter(is_class_name, names)) if class_names is None else class_names)
    class_ids = {name: number for number, name in enumerate(classes) if is_class_name(name)}
    by_split: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(entries_of, key=lambda path: path.parts):
        stated = {one.split for one in entries_of[path] if one.split}
        for split in stated or {_split_of_path(path, home) or split_of(home.absolute().name) or "train"}:
            by_split[split].append(path)
    splits: dict[str, Split] = {}
    for split in filter(by_split.__contains__, SPLITS):
        builder = SplitBuilder(split, classes, fence, log)
        for path in by_split[split]:
            here = [one for one in entries_of[path] if one.split in (split, None)]
            _add_image(path, here, class_ids, builder)
        splits[split] = builder.table()
    log.split = None
    log.raise_if_bad(root)
    if not classes:
        raise InputError(f"{root}: no object has a class, so there is nothing to learn")
    unused: dict[Path, list[str]] = defaultdict(list)
    for path in images:
        if path not in listed:
            unused[path.parent].append(path.name)
    for folder, others in sorted(unused.items()):
        log.adjusted_files("ignored-file", folder, others, "images that no label file names")
    return classes, splits


def _find_images(
    entries: Sequence[LabelledImage], home: Path, images: Sequence[Path], log: ReadingLog
) -> tuple[dict[Path, list[LabelledImage]], set[Path]]:
    """The entries of each image file, as the files' names and folders decide, and all files that are listed; the log is
    told of entries without a file.

    Exports often lose or add folders: the file of that name whose last folders agree best is taken, of several the one
    whose first folders do, if there is only one such. Of entries with different folders that find the same file, only
    those that agree best keep it, and none where others could be the same image. A bare name never finds an image in
    the folder of another split than its entry's. A name without the suffix of an image is one of a stem.
    """
    stated = chain.from_iterable((one.name, *one.other_names) for one in entries)
    has_stems = any(not is_image_name("".join(plain_parts(name)[-1:])) for name in stated)
    by_name: dict[str, list[tuple[Path, tuple[str, ...]]]] = defaultdict(list)
    for path in images:
        *folders, _ = _parts(path.relative_to(home).as_posix())
        for name in (path.name, path.stem) if has_stems else (path.name,):
            by_name[name.casefold()].append((path, (*folders, name)))
    found: dict[Path, dict[tuple[str, ...], list[LabelledImage]]] = defaultdict(lambda: defaultdict(list))
    for one in entries:
        parts = plain_parts(one.name)
        names = [wanted for wanted in (parts, *map(plain_parts, one.other_names)) if wanted]
        wanted = next((wanted for wanted in names if wanted[-1].casefold() in by_name), ())
        candidates = by_name[wanted[-1].casefold()] if wanted else []
        agreed = [(_num_agreeing(wanted, there), _num_agreeing(wanted[::-1], there[::-1])) for _, there in candidates]
        most = max(agreed, default=None)
        best = [path for (path, _), parts_agreed in zip(candidates, agreed, strict=True) if parts_agreed == most]
        if one.split is not None and most is not None and most[0] == 1:
            best = [path for path in best if _split_of_path(path, home) in (one.split, None)]
        exact = [path for path in best if path.name == wanted[-1]]
        if len(exact or best) == 1:
            found[(exact or best)[0]][parts].append(one)
        elif one.left_out and not one.boxes:
            continue
        elif best:
            places = ", ".join(str(path) for path in best[:3])
            log.bad(one.origin, f"several images could be meant by {shorten(one.name)} ({places}); name the folder too")
        else:
            kind = "" if parts and is_image_name(parts[-1]) else ", and this is no name of an image"
            if parts and other_image_kind(parts[-1]):
                kind = f", and {other_image_kind(parts[-1])} images are not read; convert them to JPEG or PNG"
            log.bad(one.origin, f"the image does not exist ({shorten(one.name)}; looked in and below {home}{kind})")
    result: dict[Path, list[LabelledImage]] = {}
    for path, by_parts in found.items():
        there = _parts(path.relative_to(home).as_posix())
        nearest = max(_num_agreeing(parts, there) for parts in by_parts)
        owners = [parts for parts in by_parts if _num_agreeing(parts, there) == nearest]
        losers = [parts for parts in by_parts if len(owners) > 1 or parts not in owners]
        for parts in losers:
            other = next(name for name in by_parts if name != parts)
            for one in by_parts[parts]:
                reason = f"{path} is the only image of that name, but {shorten('/'.join(other))} is listed, too"
                log.bad(one.origin, f"the image does not exist ({shorten(one.name)}; {reason})", path)
        if not losers or (len(owners) == 1 and all(_num_agreeing(parts, there) < len(parts) for parts in losers)):
            result[path] = by_parts[owners[0]]
    return result, set(found)


def plain_parts(name: str) -> tuple[str, ...]:
    """Folders and name of an image as a label file has it: a path of any system, or a URL, as in
    `/data/local-files/?d=a/b.jpg`.
    """
    name = name.replace("\\", "/")
    if (scheme := _SCHEME.match(name)) or "?d=" in name:
        name = unquote(f"/{name[scheme.end() :]}" if scheme else name)
        name = name.partition("?d=")[2] or name.partition("?")[0]
    return _parts(name)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part not in ("/", "..", "."))


def _num_agreeing(parts: Sequence[str], others: Sequence[str]) -> int:
    """How many parts agree, from the end, in any case."""
    number = 0
    for one, other in zip(reversed(parts), reversed(others), strict=False):
        if one.casefold() != other.casefold():
            break
        number += 1
    return number


def _split_of_path(path: Path, home: Path) -> str | None:
    return next(filter(None, map(split_of, path.relative_to(home).parent.parts)), None)


def label_files(root: Path, fence: Fence, *suffixes: str) -> list[Path]:
    """The file that the user named, or those of a folder and of the folders in it, whose names end so."""
    if root.is_file():
        return [root] if root.name.lower().endswith(suffixes) and not fence.refusal(root) else []
    folders = [root, *folders_in(root)]
    return [path for folder in folders for path in files_with_suffix(folder, *suffixes) if not fence.refusal(path)]


def home_of(root: Path) -> Path:
    """The folder that holds the images of a dataset: that which the user named, or that of the named file."""
    home = root if root.is_dir() else root.parent
    if home is root or home.absolute().name.lower() != "annotations":
        return home
    return home.parent if home.name else home / ".."


def place_of(label_file: Path, root: Path) -> tuple[str, str | None]:
    """The folders between a dataset and a label file, with a slash behind each, and the split that its name or they
    speak of. Before an image's name these folders make it the image that is nearest to the label file.
    """
    folders = label_file.parent.relative_to(root).parts if root.is_dir() else ()
    split = split_in(label_file.stem) or next(filter(None, map(split_of, reversed(folders))), None)
    return "".join(f"{folder}/" for folder in folders), split


def _add_image(path: Path, entries: Sequence[LabelledImage], class_ids: dict[str, int], builder: SplitBuilder) -> None:
    """Add an image with the boxes of all its entries, unless it is left out for what is wrong with one of them."""
    log, boxes, scored = builder.log, bytearray(), list[NamedBox]()
    faults: list[Fault] = [(*fault, False) for one in entries for fault in one.faults]
    sizes = {one.stated_wh: one.origin for one in entries if 0 not in one.stated_wh}
    header = None
    for stated_wh, origin in (sizes or {(0, 0): ""}).items():
        header = builder.header(path, stated_wh, origin)
        if header is None:
            return
    assert header is not None
    for one in entries:
        scales = (header.width, header.height) * 2 if one.is_normalised else (1.0,) * 4
        for box in one.boxes:
            x1, y1, x2, y2 = corners = [value * scale for value, scale in zip(box.xyxy, scales, strict=True)]
            class_id, is_weighted = class_ids.get(box.class_name, NO_CLASS), log.scores == "as-weights"
            faults += _faults_of(box, corners, class_id == NO_CLASS, is_weighted)
            is_ignored, head_id = box.is_ignored or class_id == NO_CLASS, builder.head_id(box.origin)
            weight = float(box.score) if is_weighted and isinstance(box.score, float | int) else 1.0
            boxes += pack_box(class_id, (x1, y1, x2, y2), head_id, box.number, is_ignored, weight=weight)
            scored += [box] if box.score is not None and not is_weighted else []
    unlabelled = next((one for one in entries if one.left_out), None)
    if not log.bad_labels(faults, path):
        return
    if not boxes and unlabelled is not None:
        log.adjusted("ignored-file", unlabelled.origin, f"{path.name} {unlabelled.left_out}", image=path)
        return
    builder.add(path, header, boxes)
    for (kind, origin, what), number in chain.from_iterable(one.told.items() for one in entries):
        log.counted(kind, origin, what, number)
    if scored:
        what = f"boxes with a score, which is not used; {SCORES_HINT}"
        log.counted("ignored-score", _shown(scored[0]), what, len(scored))


def _faults_of(box: NamedBox, corners: Sequence[float], has_no_class: bool, is_weighted: bool) -> Iterator[Fault]:
    """What is wrong with an object, if anything is."""
    fault, is_placed = box.fault, all(map(math.isfinite, corners))
    if not is_placed:
        fault = f"the corners must be finite numbers ({shorten(box.xyxy)})"
    elif is_weighted and box.score is not None and (wrong := weight_fault(box.score)):
        fault, is_placed = wrong, False
    elif has_no_class and not fault:
        what = "is not in the list of class names" if is_class_name(box.class_name) else "cannot name a class"
        fault = f"{shorten(box.class_name)} {what}"
    if fault:
        yield _shown(box), fault, is_placed


def _shown(box: NamedBox) -> str:
    return box.origin if box.number == NO_NUMBER else f"{box.origin}{box.number}"
