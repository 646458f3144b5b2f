"""Writing a `DatasetIndex` as a dataset of its own in any format, images copied byte for byte.

It is written into a hidden folder first, read back and compared, and only then moved to its place.

Legend: N boxes of an image, K classes.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import chain, compress, count
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml

from anchorite.choices import WrittenFormat
from anchorite.data.dataset import NO_CLASS, ONE_SOURCE, DatasetIndex, LabelSource, Record, RecordTable, Split
from anchorite.data.formats import open_dataset
from anchorite.data.formats.common import is_image_name
from anchorite.data.headers import open_image
from anchorite.data.index_cache import check_space, refuse_dataset_folder
from anchorite.data.shards.format import MANIFEST, MAX_SIDES, leads_into_shard, write_manifest, write_shard_files
from anchorite.data.shards.split import ShardedSplit, label_bytes
from anchorite.data.store import Progress
from anchorite.errors import InputError, StorageError
from anchorite.files import StrPath

SHARD_BYTES = 128_000_000
SOURCES_FILE = "merged.yaml"
_CHANGES_FILE = "changes.txt"
_LONGEST_FOLDER = 100
_SEED = 0  # of the order of shards, and of what is sampled from them
# Of the image's side: YOLO's numbers are rounded, COCO's second corner is a sum.
_TOLERANCES = {"yolo": 1e-6, "coco": 1e-14, "voc": 0.0}
# Folders that mean something to a reader, or that readers skip.
_SPECIAL_FOLDERS = frozenset({"images", "jpegimages", "labels", "annotations", "..", "__MACOSX"})
_MAX_NAME_BYTES = 255
_RELATIVE_TOLERANCE = 1e-10

PlacedRecord = tuple[Record, PurePosixPath]  # and where its image goes in the split's image folder, as in "sub/a.jpg"
PlacedSplits = Mapping[str, Sequence[PlacedRecord]]


def write_dataset(
    dataset: DatasetIndex,
    out: StrPath,
    format: WrittenFormat,
    *,
    extra: str = "",
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write a dataset into `out`, a new or empty folder: labels from the index, images as byte copies.

    Labels of several sources (a merged dataset), of which one does not know everything, become a folder for each and a
    merged.yaml; in shards, each image keeps its source. Only what the index holds is written: classes, boxes, ignored
    regions, weights but for VOC, and areas in COCO and shards. extra: text for a file changes.txt beside the data.
    progress is called with (images done, images in all). shard_bytes: how large a shard may be. Returns, in words, what
    the format cannot hold and which images got other names. The result is read back before it appears: it opens without
    an adjustment and has the same splits, classes, boxes, regions and weights. Raises InputError when `out` is taken or
    lies in the dataset, StorageError when it cannot be written; `out` is then as it was.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already, and nothing is ever overwritten; name a new or an empty folder")
    refuse_dataset_folder(out, dataset.splits.values(), dataset.root)
    was_there, num_images, done = out.exists(), sum(map(len, dataset.splits.values())), count(1)

    def copied() -> None:
        if progress is not None:
            progress(next(done), num_images)

    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = chain.from_iterable(records.paths() for records in dataset.splits.values())
        files = {path.parent if leads_into_shard(path) else path for path in paths}
        check_space(out, sum(file.stat().st_size for file in files), "the images")
        with TemporaryDirectory(prefix=".unfinished-", dir=out) as folder:
            stage, notes = Path(folder), list[str]()
            if format == "shards":
                difference = _write_shards(dataset, stage, shard_bytes, copied)
            elif parts := _by_source(dataset):
                notes, difference = _write_sources(dataset, parts, stage, format, copied)
            else:
                notes, difference = _write_one(dataset, stage, format, copied)
            if difference is not None:
                raise StorageError(
                    f"{out}: the copy reads back otherwise than it was written ({difference}); it was removed"
                )
            if extra or notes:
                text = "\n".join([extra.rstrip("\n"), *notes]).lstrip("\n") + "\n"
                (stage / _CHANGES_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
            for path in sorted(stage.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):  # the list last
                path.rename(out / path.name)
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise StorageError(f"{out}: the copy was not made: {reason}. The dataset itself is untouched") from error
    finally:
        if not was_there:
            with suppress(OSError):  # it is not empty, as it should be
                out.rmdir()
    return notes


def _write_one(
    dataset: DatasetIndex, stage: Path, format: WrittenFormat, copied: Callable[[], None]
) -> tuple[list[str], str | None]:
    """Write images and labels; what is to be told, and what differs when they are read back, if anything does."""
    splits = {
        split: [(as_held(record, format, len(dataset.class_names)), file) for record, file in records]
        for split, records in place_records(dataset.splits).items()
    }
    renamed = _copy_images(splits, stage, format, copied)
    {"yolo": _write_yolo, "coco": _write_coco, "voc": _write_voc}[format](stage, splits, dataset.class_names)
    return [*_losses(dataset, format), *renamed], _difference(dataset, splits, stage, format)


def _by_source(dataset: DatasetIndex) -> dict[LabelSource, DatasetIndex]:
    """Of each source of labels its images, and the classes that it covers or has regions of; nothing where all know
    everything, so that they are as good as one."""
    sources = list(dict.fromkeys(chain.from_iterable(split.sources() for split in dataset.splits.values())))
    if all(one.covered is None and one.background_weight == 1 for one in sources):
        return {}
    names, tables = dataset.class_names, {name: split.table() for name, split in dataset.splits.items()}
    parts = {}
    for source in sources:
        splits: dict[str, RecordTable] = {}
        kept = np.array(source.covered or (True,) * len(names))
        for split, table in tables.items():
            source_ids = [number for number, one in enumerate(table.label_sources) if one == source]
            rows = np.flatnonzero(np.isin(table.images["source_id"], source_ids))
            if len(rows):
                splits[split] = table.select(rows)
                class_ids = splits[split].boxes["class_id"]
                kept[class_ids[class_ids != NO_CLASS]] = True
        kept |= not kept.any()  # of background alone: a data set has a class
        new_ids = np.where(kept, np.cumsum(kept) - 1, NO_CLASS).tolist()
        if splits:
            renumbered = {split: table.renumbered(new_ids) for split, table in splits.items()}
            parts[source] = replace(dataset, class_names=tuple(compress(names, kept)), splits=renumbered)
    return parts


def _write_sources(
    dataset: DatasetIndex,
    parts: Mapping[LabelSource, DatasetIndex],
    stage: Path,
    format: WrittenFormat,
    copied: Callable[[], None],
) -> tuple[list[str], str | None]:
    """A folder for each source, and a YAML of them beside these; returns as `_write_one`."""
    notes, entries, names = list[str](), list[dict[str, Any]](), dataset.class_names
    written: dict[str, tuple[LabelSource, DatasetIndex]] = {}
    for source, part in parts.items():
        plain = re.sub(r"[^\w.-]+", "-", source.name)[:_LONGEST_FOLDER].strip(".-") or "source"
        taken = {SOURCES_FILE, _CHANGES_FILE, *map(str.casefold, written)}
        folders = chain([plain], (f"{plain}_{n}" for n in count(2)))
        folder = next(name for name in folders if name.casefold() not in taken)
        written[folder] = source, part
        told, difference = _write_one(part, stage / folder, format, copied)
        notes += [f"{folder}: {note}" for note in told]
        if difference is not None:
            return notes, difference
        covers = "all" if source.covered is None else list(compress(names, source.covered))
        entries.append({"data": folder, "covers": covers, "background_weight": source.background_weight})
    config = {"sources": entries, "names": list(names)}
    _write_text(stage / SOURCES_FILE, yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=1 << 30))
    copy = open_dataset(stage, "merged")
    found = {source.name: (source, part) for source, part in _by_source(copy).items()}
    if copy.class_names != names or found.keys() != written.keys():
        return notes, f"{SOURCES_FILE}: classes {copy.class_names} of {list(found)}"
    for folder, pair in written.items():
        facts, others = (
            (source.covered, source.background_weight, {name: len(split) for name, split in part.splits.items()})
            for source, part in (pair, found[folder])
        )
        if facts != others:
            return notes, f"{SOURCES_FILE}: {folder}: {others}"
    return notes, None


def _image_folder(out: Path, format: WrittenFormat, split: str) -> Path:
    return out / "JPEGImages" if format == "voc" else out / "images" / split  # in VOC all splits share a folder


def _copy_images(splits: PlacedSplits, stage: Path, format: WrittenFormat, copied: Callable[[], None]) -> list[str]:
    """Copy all images; which of them got other names, in words."""
    renamed = []
    for split, records in splits.items():
        folder = _image_folder(stage, format, split)
        folder.mkdir(parents=True, exist_ok=True)
        for record, file in records:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(_image_file(record.path))
            if file.name != record.path.name:
                renamed.append(f"renamed  {split}  {record.path} is {file} here")
            copied()
    return renamed


def _difference(dataset: DatasetIndex, splits: PlacedSplits, stage: Path, format: WrittenFormat) -> str | None:
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
            boxes, tolerance = record.boxes_xyxy, _TOLERANCES[format] * max(record.width, record.height)
            if (
                (back := found.get(folder / file)) is None
                or boxes.shape != back.boxes_xyxy.shape
                or not all(
                    np.array_equal(getattr(record, name), getattr(back, name))
                    for name in ("class_ids", "ignored", "weights")
                )
                or not (np.abs(boxes - back.boxes_xyxy) <= tolerance).all()  # so that NaN differs
            ):
                return os.fspath(record.path)
    return None


# Labels, of records as a format can hold them.


def as_held(record: Record, format: WrittenFormat, num_classes: int) -> Record:
    """A record as a format can hold it: in YOLO no ignored region has a class, in VOC each has one and no box has a
    weight. A region without a class stands once for each class in VOC. No ignored region is there twice.
    """
    if not record.ignored.any() and (record.weights == 1).all():
        return record
    rows = np.arange(len(record.class_ids))
    if format == "voc":
        rows = np.repeat(rows, np.where(record.class_ids == NO_CLASS, num_classes, 1))
    numbers, class_ids, ignored = np.arange(len(rows)), record.class_ids[rows], record.ignored[rows]
    if format == "voc":
        class_ids = np.where(class_ids == NO_CLASS, numbers - np.searchsorted(rows, rows), class_ids)
    elif format == "yolo":
        class_ids = np.where(ignored, NO_CLASS, class_ids)
    keys = np.column_stack([class_ids, ignored, record.boxes_xyxy[rows]])
    stays = ~ignored | np.isin(numbers, np.unique(keys, axis=0, return_index=True)[1])
    rows = rows[stays]
    return replace(
        record,
        boxes_xyxy=record.boxes_xyxy[rows],
        class_ids=class_ids[stays],
        ignored=record.ignored[rows],
        areas=record.areas[rows],
        origins=tuple(record.origins[row] for row in rows.tolist()),
        weights=np.ones(len(rows), np.float32) if format == "voc" else record.weights[rows],
    )


def _losses(dataset: DatasetIndex, format: WrittenFormat) -> list[str]:
    """In words, what a format cannot hold."""
    tables = [split.table() for split in dataset.splits.values()]
    notes = []
    if format == "yolo":
        ignored = chain.from_iterable(table.boxes["class_id"][table.boxes["ignored"]].tolist() for table in tables)
        if number := sum(class_id != NO_CLASS for class_id in ignored):
            notes.append(
                f"{number} crowd or difficult boxes are regions for any class here: YOLO has none of one class"
            )
    if format == "voc":
        sides = [table.boxes["xyxy"][:, 2:] - table.boxes["xyxy"][:, :2] for table in tables]
        areas = [np.isclose(t.boxes["area"], s[:, 0] * s[:, 1], rtol=1e-6) for t, s in zip(tables, sides, strict=True)]
        if number := sum(int((~one).sum()) for one in areas):
            notes.append(f"{number} annotated areas left out: VOC has boxes alone")
        if number := sum(split.num_weighted() for split in dataset.splits.values()):
            notes.append(f"{number} weights left out: VOC has none, so these objects count like all others")
    return notes


def _ignored_name(class_names: Collection[str]) -> str:
    """A name for the class of ignored regions that no other class has."""
    names = chain(["ignored"], (f"ignored_{number}" for number in count(2)))
    return next(name for name in names if name not in class_names)


def _own_words(splits: PlacedSplits, class_names: Sequence[str]) -> dict[str, Any]:
    """What a copy says of itself: the class whose boxes are regions, and that scores are weights, if there are any."""
    records = [record for some in splits.values() for record, _ in some]
    words: dict[str, Any] = {}
    if any((record.class_ids == NO_CLASS).any() for record in records):
        words["ignore_classes"] = [_ignored_name(class_names)]
    if any((record.weights != 1).any() for record in records):
        words["scores"] = "as-weights"
    return words


def _write_yolo(out: Path, splits: PlacedSplits, class_names: Sequence[str]) -> None:
    """A txt file an image, empty for background, and data.yaml, which is written last."""
    words = _own_words(splits, class_names)
    for split, records in splits.items():
        for record, file in records:
            x1, y1, x2, y2 = record.boxes_xyxy.T
            sides = [(x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height]
            sides += [(x2 - x1) / record.width, (y2 - y1) / record.height]
            numbers = np.where(record.class_ids == NO_CLASS, len(class_names), record.class_ids).tolist()
            lines = [
                " ".join([str(number), *map(shortest_close, row), *([] if weight == 1 else [exact(weight)])]) + "\n"
                for number, row, weight in zip(numbers, np.stack(sides, axis=1).tolist(), record.weights, strict=True)
            ]
            _write_text(out / "labels" / split / file.with_suffix(".txt"), "".join(lines))
    names = {"names": [*class_names, *words.get("ignore_classes", ())]}
    config = {split: f"images/{split}" for split in splits} | names | words
    _write_text(out / "data.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=1 << 30))


def _write_coco(out: Path, splits: PlacedSplits, class_names: Sequence[str]) -> None:
    """annotations/instances_SPLIT.json. Categories get the ids 1 to K in class order."""
    words = _own_words(splits, class_names)
    names = [*class_names, *words.get("ignore_classes", ())]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    for split, records in splits.items():
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for number, (record, file) in enumerate(records, start=1):
            images.append({"id": number, "file_name": str(file), "width": record.width, "height": record.height})
            numbers = np.where(record.class_ids == NO_CLASS, len(class_names), record.class_ids)
            columns = (
                numbers.tolist(),
                record.boxes_xyxy.tolist(),
                record.areas.tolist(),
                record.ignored,
                record.weights,
            )
            for class_id, (x1, y1, x2, y2), area, ignored, weight in zip(*columns, strict=True):
                sides = x1, y1, side_between(x1, x2), side_between(y1, y2), area
                *bbox, area = (int(side) if side.is_integer() else side for side in sides)
                box = {"id": len(boxes) + 1, "image_id": number, "category_id": class_id + 1, "bbox": bbox}
                score = {} if weight == 1 else {"score": float(exact(weight))}
                boxes.append({**box, "area": area, "iscrowd": int(ignored), **score})
        lists = {"images": images, "annotations": boxes, "categories": categories}
        parts = [f'"{key}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]" for key, items in lists.items()]
        parts[:0] = [f'"info": {json.dumps({"anchorite": words})}'] if words else []
        _write_text(out / "annotations" / f"instances_{split}.json", "{" + ",\n".join(parts) + "}\n")


def _write_voc(out: Path, splits: PlacedSplits, class_names: Sequence[str]) -> None:
    """Annotations, classes.txt and ImageSets/Main/SPLIT.txt.

    Raises InputError for a class name that a list of lines cannot hold.
    """
    for name in class_names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"the class name {name!r} cannot stand in a VOC dataset; take off its outer spaces")
    (out / "Annotations").mkdir()
    _write_text(out / "classes.txt", "".join(f"{name}\n" for name in class_names))
    for split, records in splits.items():
        listed = []
        for record, file in records:
            size = f"<width>{record.width}</width><height>{record.height}</height><depth>3</depth>"
            lines = ["<annotation>", f"\t<filename>{escape(file.name)}</filename>", f"\t<size>{size}</size>"]
            for class_id, box, ignored in zip(record.class_ids, record.boxes_xyxy, record.ignored, strict=True):
                corners = zip(("xmin", "ymin", "xmax", "ymax"), map(exact, box), strict=True)
                lines += [
                    "\t<object>",
                    f"\t\t<name>{escape(class_names[class_id])}</name>",
                    f"\t\t<difficult>{int(ignored)}</difficult>",
                    "\t\t<bndbox>" + "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners) + "</bndbox>",
                    "\t</object>",
                ]
            text = "\n".join([*lines, "</annotation>"]) + "\n"
            _write_text(out / "Annotations" / file.with_suffix(".xml"), text)
            stem = file.with_suffix("")  # the "a.jpg" of a.jpg.png would be taken for an image
            listed.append(f"{file if is_image_name(stem.name) else stem}\n")
        _write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(listed))


def _write_shards(dataset: DatasetIndex, folder: Path, most_bytes: int, copied: Callable[[], None]) -> str | None:
    """Tar files of labels and byte copies of images, and the list of them: see `anchorite.data.shards`.

    A training split is shuffled first, so that each shard is a random part of it. A shard holds a sample at least,
    however large. Returns what differs when it is read back, if anything does.
    """
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    tables, splits = {}, {}
    for split, records in dataset.splits.items():
        tables[split] = table = records.table()
        if split == "train" and not records.is_shuffled:
            tables[split] = table = table.select(np.random.default_rng(_SEED).permutation(len(table)))
        shards = write_shard_files(split, _samples(table, root, copied), folder, most_bytes)
        splits[split] = _facts(table, len(dataset.class_names), shards)
    write_manifest(folder / MANIFEST, {"class_names": list(dataset.class_names), "splits": splits})
    copy = open_dataset(folder, "shards")
    for split, table in tables.items():
        written = copy.splits[split]
        assert isinstance(written, ShardedSplit)
        for record, (found, _) in zip(table, written.samples(), strict=True):
            if record != replace(found, path=record.path):  # the image has the CRC-32 of the one that was read
                return str(found.path)
    return None


def _samples(table: RecordTable, root: Path, copied: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    """The two files of each sample: its label and its image."""
    for record, source in zip(table, table.images["source_id"].tolist(), strict=True):
        yield label_bytes(record, os.path.relpath(record.path, root), source), _image_file(record.path)
        copied()


def _image_file(path: Path) -> bytes:
    """The bytes of an image's file, out of a shard, too."""
    try:
        with open_image(path) as file:
            return file.read()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _facts(table: RecordTable, num_classes: int, shards: Sequence[object]) -> dict[str, object]:
    """What the list says of a split: counts, and an even sample of its boxes' sides (Vitter's algorithm R)."""
    boxes, rng, is_ignored = table.boxes, random.Random(_SEED), table.boxes["ignored"]
    longer = np.maximum(table.images["width"], table.images["height"])[table.image_of_box()]
    sides = ((boxes["xyxy"][:, 2:] - boxes["xyxy"][:, :2]) / longer[:, None])[~is_ignored]
    chosen = sides[:MAX_SIDES].tolist()
    for number in range(MAX_SIDES, len(sides)):
        if (place := rng.randrange(number + 1)) < MAX_SIDES:
            chosen[place] = sides[number].tolist()
    ignored_ids = boxes["class_id"][is_ignored]
    sources = [
        {**asdict(one), "covered": one.covered and list(one.covered), "images": images}
        for one, images in zip(table.label_sources, table.images_by_source().tolist(), strict=True)
    ]
    return {
        "background": table.num_background(),
        "class_counts": table.class_counts(num_classes).tolist(),
        "ignored_counts": np.bincount(ignored_ids[ignored_ids != NO_CLASS], minlength=num_classes).tolist(),
        "ignored_without_class": int((ignored_ids == NO_CLASS).sum()),
        "weighted": table.num_weighted(),
        "mean_weight": table.mean_weight(),
        "sources": [] if table.label_sources == (ONE_SOURCE,) else sources,
        "sides": chosen,
        "shards": shards,
    }


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# Names of the copied images.


def place_records(splits: Mapping[str, Split]) -> dict[str, list[PlacedRecord]]:
    """Where each image goes. No two images of a dataset share folder and stem, for one label file serves one image.

    An image keeps its name, and its folder below the one that all images of the split share, unless a reader could
    not find it there again: then the folder is left out, characters are replaced by "_", or a number is put behind.
    """
    taken: set[str] = set()
    placed: dict[str, list[PlacedRecord]] = {split: [] for split in splits}
    for split, records in splits.items():
        folders = {folder: os.path.abspath(folder) for folder in {path.parent for path in records.paths()}}  # noqa: PTH100
        shared = os.path.commonpath(folders.values()) if folders else ""
        targets = {}
        for folder, absolute in folders.items():
            parts = Path(os.path.relpath(absolute, shared)).parts
            is_plain = all(part == _safe_name(part) and not part.startswith(".") for part in parts)
            is_plain &= _SPECIAL_FOLDERS.isdisjoint(part.lower() for part in parts)
            targets[folder] = PurePosixPath(*parts) if is_plain else PurePosixPath()
        for record in records:
            stem, dot, suffix = _safe_name(record.path.name).rpartition(".")
            for ending in chain([f"{dot}{suffix}"], (f"_{number}{dot}{suffix}" for number in count(2))):
                short_stem = stem.encode()[: _MAX_NAME_BYTES - len(ending.encode())].decode(errors="ignore")
                file = targets[record.path.parent] / f"{short_stem}{ending}"
                key = str(file.with_suffix("")).casefold()  # file systems may not tell A from a
                if key not in taken:
                    break
            taken.add(key)
            placed[split].append((record, file))
    return placed


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


def _shortest(value: float, is_good: Callable[[float], bool], fewest_digits: int = 0) -> float:
    for digits in range(fewest_digits, 17):
        rounded = round(value, digits)
        if rounded > 0 and is_good(rounded):
            return rounded
    return value
