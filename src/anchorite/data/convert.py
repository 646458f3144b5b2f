"""Writing a `DatasetIndex` as a dataset of its own in any format, images copied byte for byte.

It is written into a hidden folder first, read back and compared, and only then moved to its place.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import FormatName, open_dataset
from anchorite.data.formats.common import is_image_name
from anchorite.data.headers import copy_image, image_bytes
from anchorite.data.records import Record, Split
from anchorite.data.shards.format import MANIFEST
from anchorite.data.shards.write import SHARD_BYTES, write_shards
from anchorite.data.store import Progress
from anchorite.errors import InputError, StorageError

_STAGE = ".unfinished"
# Of the image's side: YOLO's numbers are rounded, COCO's second corner is a sum.
_TOLERANCES = {"yolo": 1e-6, "coco": 1e-14, "voc": 0.0}
# Folders that mean something to a reader, or that readers skip.
_SPECIAL_FOLDERS = frozenset({"images", "labels", "annotations", "..", "__MACOSX"})
_MAX_NAME_BYTES = 255
_RELATIVE_TOLERANCE = 1e-10


# A record and where its image goes, counted from the split's image folder, as in "sub/a.jpg".
PlacedRecord = tuple[Record, PurePosixPath]
PlacedSplits = Mapping[str, Sequence[PlacedRecord]]


def refuse_inside_dataset(folder: Path, dataset: DatasetIndex) -> None:
    """Raise InputError when `folder` is, or lies in, the dataset's folder or one that holds images of it."""
    target = folder.resolve()
    homes = {path.parent for split in dataset.splits.values() for path in split.paths()}
    homes |= {dataset.root} if dataset.root.is_dir() else set()
    for home in sorted({home.resolve() for home in homes}):
        if target.is_relative_to(home):
            raise InputError(
                f"{folder}: lies in the dataset ({home}), which is never written to; name a folder elsewhere"
            )


def write_dataset(
    dataset: DatasetIndex,
    out: Path,
    format: FormatName,
    *,
    extra: str = "",
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write a dataset into `out`, a new or empty folder: labels from the index, images as byte copies.

    Only what the index holds is written: classes, boxes, crowd or difficult flags, and areas in COCO and shards. extra:
    text for a file changes.txt beside the data. progress is called with (images done, images in all). shard_bytes: how
    large a shard may be. Returns, in words, what the format cannot hold and which images got other names. The result is
    read back before it appears: it opens without an adjustment and has the same splits, classes and boxes. Raises
    InputError when `out` is taken or lies in the dataset, StorageError when it cannot be written; `out` is then as it
    was.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already, and nothing is ever overwritten; name a new or an empty folder")
    refuse_inside_dataset(out, dataset)
    was_there, stage, done = out.exists(), out / _STAGE, count(1)
    num_images = sum(map(len, dataset.splits.values()))

    def copied() -> None:
        if progress is not None:
            progress(next(done), num_images)

    try:
        stage.mkdir(parents=True)
        _check_space(dataset, out)
        if format == "shards":
            notes, difference = list[str](), write_shards(dataset, stage, shard_bytes, copied)
        else:
            splits = place_records(dataset.splits)
            renamed = _copy_images(splits, stage, format, copied)
            write_labels = {"yolo": _write_yolo, "coco": _write_coco, "voc": _write_voc}[format]
            notes = [*write_labels(stage, splits, dataset.class_names), *renamed]
            difference = _difference(dataset, splits, stage, format)
        if difference is not None:
            raise StorageError(
                f"{out}: the copy reads back otherwise than it was written ({difference}); it was removed"
            )
        if extra or notes:
            text = "\n".join([extra.rstrip("\n"), *notes]).lstrip("\n") + "\n"
            (stage / "changes.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        for path in sorted(stage.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):  # the list comes last
            path.rename(out / path.name)
        stage.rmdir()
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if isinstance(error, OSError):
            reason = f"{error.filename or out}: {error.strerror or error}"
            raise StorageError(f"{out}: the copy was not made: {reason}. The dataset itself is untouched") from error
        raise
    return notes


def _check_space(dataset: DatasetIndex, out: Path) -> None:
    wanted = sum(image_bytes(path) for records in dataset.splits.values() for path in records.paths())
    free = shutil.disk_usage(out).free
    if wanted > free:
        raise StorageError(
            f"{out}: the images take {wanted / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there; nothing was "
            "written. Free some space or name another folder"
        )


def _image_folder(out: Path, format: FormatName, split: str) -> Path:
    return out / "JPEGImages" if format == "voc" else out / "images" / split  # in VOC all splits share a folder


def _copy_images(splits: PlacedSplits, stage: Path, format: FormatName, copied: Callable[[], None]) -> list[str]:
    """Copy all images; which of them got other names, in words."""
    renamed = []
    for split, records in splits.items():
        folder = _image_folder(stage, format, split)
        folder.mkdir(parents=True, exist_ok=True)
        for record, file in records:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            copy_image(record.path, folder / file)
            if file.name != record.path.name:
                renamed.append(f"renamed  {split}  {record.path} is {file} here")
            copied()
    return renamed


def _difference(dataset: DatasetIndex, splits: PlacedSplits, stage: Path, format: FormatName) -> str | None:
    """How the copy, read as a user would, differs from what was to be written; None when it does not."""
    copy = open_dataset(stage, format)
    if copy.adjustments:
        return f"{copy.adjustments[0].kind}: {copy.adjustments[0].origin}"
    if copy.class_names != dataset.class_names:
        return f"classes {copy.class_names}"
    for split, records in splits.items():
        found, folder = {record.path: record for record in copy.splits[split]}, _image_folder(stage, format, split)
        if len(found) != len(records):
            return f"{len(found)} images in {split}"
        for record, file in records:
            back = found.get(folder / file)
            if back is None or not _is_same(record, back, format):
                return os.fspath(record.path)
    return None


def _is_same(record: Record, copy: Record, format: FormatName) -> bool:
    written = ~record.ignored if format == "yolo" else np.ones_like(record.ignored)
    boxes, tolerance = record.boxes_xyxy[written], _TOLERANCES[format] * max(record.width, record.height)
    return (
        boxes.shape == copy.boxes_xyxy.shape
        and np.array_equal(record.class_ids[written], copy.class_ids)
        and np.array_equal(record.ignored[written], copy.ignored)
        and bool((np.abs(boxes - copy.boxes_xyxy) <= tolerance).all())
    )


# Labels. Each writer returns, in words, what its format cannot hold.


def _write_yolo(out: Path, splits: PlacedSplits, class_names: Sequence[str]) -> list[str]:
    """A txt file an image, empty for background, and data.yaml, which is written last."""
    num_ignored = 0
    for split, records in splits.items():
        for record, file in records:
            x1, y1, x2, y2 = record.boxes_xyxy[~record.ignored].T
            sides = [(x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height]
            sides += [(x2 - x1) / record.width, (y2 - y1) / record.height]
            rows = zip(record.class_ids[~record.ignored], np.stack(sides, axis=1).tolist(), strict=True)
            lines = [f"{class_id} {' '.join(map(shortest_close, numbers))}\n" for class_id, numbers in rows]
            _write_text(out / "labels" / split / file.with_suffix(".txt"), "".join(lines))
            num_ignored += int(record.ignored.sum())
    config = {split: f"images/{split}" for split in splits} | {"names": list(class_names)}
    _write_text(out / "data.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=1 << 30))
    return [f"{num_ignored} crowd or difficult boxes left out: YOLO cannot mark them"] if num_ignored else []


def _write_coco(out: Path, splits: PlacedSplits, class_names: Sequence[str]) -> list[str]:
    """annotations/instances_SPLIT.json. Categories get the ids 1 to K in class order."""
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    for split, records in splits.items():
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for number, (record, file) in enumerate(records, start=1):
            images.append({"id": number, "file_name": str(file), "width": record.width, "height": record.height})
            columns = record.class_ids.tolist(), record.boxes_xyxy.tolist(), record.areas.tolist(), record.ignored
            for class_id, (x1, y1, x2, y2), area, ignored in zip(*columns, strict=True):
                bbox = [_whole_if_possible(side) for side in (x1, y1, side_between(x1, x2), side_between(y1, y2))]
                box = {"id": len(boxes) + 1, "image_id": number, "category_id": class_id + 1, "bbox": bbox}
                boxes.append({**box, "area": _whole_if_possible(area), "iscrowd": int(ignored)})
        lists = {"images": images, "annotations": boxes, "categories": categories}
        parts = [f'"{key}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]" for key, items in lists.items()]
        _write_text(out / "annotations" / f"instances_{split}.json", "{" + ",\n".join(parts) + "}\n")
    return []


def _write_voc(out: Path, splits: PlacedSplits, class_names: Sequence[str]) -> list[str]:
    """Annotations, classes.txt and ImageSets/Main/SPLIT.txt.

    Raises InputError for a class name that a list of lines cannot hold.
    """
    for name in class_names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"the class name {name!r} cannot stand in a VOC dataset; take off its outer spaces")
    (out / "Annotations").mkdir()
    _write_text(out / "classes.txt", "".join(f"{name}\n" for name in class_names))
    num_areas = 0
    for split, records in splits.items():
        listed = []
        for record, file in records:
            _write_text(out / "Annotations" / file.with_suffix(".xml"), _voc_xml(record, file.name, class_names))
            sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
            num_areas += int((~np.isclose(record.areas, sides[:, 0] * sides[:, 1], rtol=1e-6)).sum())
            stem = file.with_suffix("")  # the "a.jpg" of a.jpg.png would be taken for an image
            listed.append(f"{file if is_image_name(stem.name) else stem}\n")
        _write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(listed))
    return [f"{num_areas} annotated areas left out: VOC has boxes alone"] if num_areas else []


def _voc_xml(record: Record, file_name: str, class_names: Sequence[str]) -> str:
    size = f"<width>{record.width}</width><height>{record.height}</height><depth>3</depth>"
    lines = ["<annotation>", f"\t<filename>{escape(file_name)}</filename>", f"\t<size>{size}</size>"]
    for class_id, box, ignored in zip(record.class_ids, record.boxes_xyxy, record.ignored, strict=True):
        corners = zip(("xmin", "ymin", "xmax", "ymax"), map(exact, box), strict=True)
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(class_names[class_id])}</name>",
            f"\t\t<difficult>{int(ignored)}</difficult>",
            "\t\t<bndbox>" + "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners) + "</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>"]) + "\n"


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# Names of the copied images.


def place_records(splits: Mapping[str, Split]) -> dict[str, tuple[PlacedRecord, ...]]:
    """Where each image goes. No two images of a dataset share folder and stem, for one label file serves one image.

    An image keeps its name, and its folder below the one that all images of the split share, unless a reader could
    not find it there again: then the folder is left out, characters are replaced by "_", or a number is put behind.
    """
    taken: set[str] = set()
    return {split: tuple(_place(records, taken)) for split, records in splits.items()}


def _place(records: Split, taken: set[str]) -> Iterator[PlacedRecord]:
    folders = {folder: os.path.abspath(folder) for folder in {path.parent for path in records.paths()}}  # noqa: PTH100
    shared = os.path.commonpath(folders.values()) if folders else ""
    targets = {folder: _safe_folder(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
    for record in records:
        folder, name = targets[record.path.parent], _safe_name(record.path.name)
        stem, dot, suffix = name.rpartition(".")
        for number in count(1):
            if number > 1:
                ending = f"_{number}{dot}{suffix}"
                name = stem.encode()[: _MAX_NAME_BYTES - len(ending.encode())].decode(errors="ignore") + ending
            file = folder / name
            key = str(folder / file.stem).casefold()  # file systems may not tell A from a
            if key not in taken:
                break
        taken.add(key)
        yield record, file


def _safe_folder(relative: str) -> PurePosixPath:
    parts = PurePosixPath(Path(relative).as_posix()).parts
    is_plain = all(
        part.lower() not in _SPECIAL_FOLDERS and part == _safe_name(part) and not part.startswith(".") for part in parts
    )
    return PurePosixPath(*parts) if is_plain else PurePosixPath()


def _safe_name(name: str) -> str:
    """A name without outer spaces, line separators, control characters or bytes that are not text."""
    spelled = "".join(char if char.isprintable() and char not in '\\"' else "_" for char in name)
    stem, dot, suffix = spelled.rpartition(".")
    stem = re.sub(r"^\s+|\s+$", lambda spaces: "_" * len(spaces[0]), stem)
    return f"{stem}{dot}{suffix.strip()}" if stem else spelled.strip()


# Numbers as label files should show them: the shortest spelling that still means the same.


def shortest_close(value: float) -> str:
    """A plain decimal within 1e-10 of `value`, of six decimals where they suffice: undoes rounding errors."""
    return exact(_shortest(value, lambda rounded: abs(rounded - value) <= _RELATIVE_TOLERANCE * abs(value), 6))


def exact(value: float) -> str:
    """A plain decimal that reads back as the very same number."""
    return np.format_float_positional(value, trim="-")


def side_between(low: float, high: float) -> float:
    """The side s, as short as can be, for which low + s is exactly `high` in floating point.

    Where `high` came of such a sum there is one; for a few other pairs there is none, and the sum is off by rounding.
    """
    side = high - low
    for candidate in (side, math.nextafter(side, 0), math.nextafter(side, math.inf)):
        if low + candidate == high:
            return _shortest(candidate, lambda rounded: low + rounded == high)
    return side


def _whole_if_possible(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _shortest(value: float, is_good: Callable[[float], bool], fewest_digits: int = 0) -> float:
    for digits in range(fewest_digits, 17):
        rounded = round(value, digits)
        if rounded > 0 and is_good(rounded):
            return rounded
    return value
