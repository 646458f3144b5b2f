"""A whole dataset written: into a hidden folder first, read back and compared, and only then put in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import FormatName, open_dataset
from anchorite.data.headers import copy_image, image_bytes
from anchorite.data.records import Record
from anchorite.data.shards.manifest import MANIFEST
from anchorite.data.writing import coco, voc, yolo
from anchorite.data.writing.naming import PlacedRecord, place_records
from anchorite.data.writing.shards import SHARD_BYTES, write_shards
from anchorite.errors import InputError, StorageError

Progress = Callable[[int, int], None]

_IMAGE_PATHS = {"yolo": yolo.image_path, "coco": coco.image_path, "voc": voc.image_path}
_LABEL_WRITERS = {"yolo": yolo.write_yolo_labels, "coco": coco.write_coco_labels, "voc": voc.write_voc_labels}
_STAGE = ".unfinished"
# Of the image's side: YOLO's numbers are rounded, COCO's second corner is a sum.
_TOLERANCES = {"yolo": 1e-6, "coco": 1e-14, "voc": 0.0}


def refuse_inside_dataset(folder: Path, dataset: DatasetIndex) -> None:
    """Raise InputError when `folder` is, or lies in, the dataset's folder or one that holds images of it."""
    place = folder.resolve()
    homes = {record.path.parent.resolve() for records in dataset.splits.values() for record in records}
    if dataset.root.is_dir():
        homes.add(dataset.root.resolve())
    for home in sorted(homes):
        if place.is_relative_to(home):
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
    was_there = out.exists()
    stage = out / _STAGE
    try:
        stage.mkdir(parents=True)
        if format == "shards":
            write_shards(dataset, stage, shard_bytes, progress)
            notes = []
        else:
            placed = place_records(dataset.splits)
            _check_space(placed, out)
            notes = _write(dataset, placed, stage, format, progress)
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


def _write(
    dataset: DatasetIndex,
    placed: dict[str, tuple[PlacedRecord, ...]],
    stage: Path,
    format: FormatName,
    progress: Progress | None,
) -> list[str]:
    total, done = sum(len(records) for records in placed.values()), 0
    renamed: list[str] = []
    for split, records in placed.items():
        for one in records:
            target = _IMAGE_PATHS[format](stage, split, one)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_image(one.record.path, target)
            if one.place.name != one.record.path.name:
                renamed.append(f"renamed  {split}  {one.record.path} is {one.place} here")
            done += 1
            if progress is not None:
                progress(done, total)
    lost = _LABEL_WRITERS[format](stage, placed, dataset.class_names)
    difference = _difference(dataset, placed, stage, format)
    if difference is not None:
        raise StorageError(
            f"{stage.parent}: the copy reads back otherwise than it was written ({difference}); it was removed"
        )
    return [*lost, *renamed]


def _check_space(placed: dict[str, tuple[PlacedRecord, ...]], out: Path) -> None:
    wanted = sum(image_bytes(one.record.path) for records in placed.values() for one in records)
    free = shutil.disk_usage(out).free
    if wanted > free:
        raise StorageError(
            f"{out}: the images take {wanted / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there; nothing was "
            "written. Free some space or name another folder"
        )


def _difference(
    dataset: DatasetIndex, placed: dict[str, tuple[PlacedRecord, ...]], stage: Path, format: FormatName
) -> str | None:
    """How the copy, read as a user would, differs from what was to be written; None when it does not."""
    copy = open_dataset(stage, format)
    if copy.adjustments:
        return f"{copy.adjustments[0].kind}: {copy.adjustments[0].origin}"
    if copy.class_names != dataset.class_names:
        return f"classes {copy.class_names}"
    for split, records in placed.items():
        found = {record.path: record for record in copy.splits[split]}
        if len(found) != len(records):
            return f"{len(found)} images in {split}"
        for one in records:
            path = _IMAGE_PATHS[format](stage, split, one)
            if path not in found or not _is_same(one.record, found[path], format):
                return os.fspath(one.record.path)
    return None


def _is_same(record: Record, copy: Record, format: FormatName) -> bool:
    kept = ~record.ignored if format == "yolo" else np.ones_like(record.ignored)
    boxes, tolerance = record.boxes_xyxy[kept], _TOLERANCES[format] * max(record.width, record.height)
    return (
        boxes.shape == copy.boxes_xyxy.shape
        and np.array_equal(record.class_ids[kept], copy.class_ids)
        and np.array_equal(record.ignored[kept], copy.ignored)
        and bool((np.abs(boxes - copy.boxes_xyxy) <= tolerance).all())
    )
