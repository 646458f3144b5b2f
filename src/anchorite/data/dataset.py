"""The dataset index, what every label format is read into and the only thing the rest of the package sees: its splits
are sequences of records, an image and its labels each, however they are stored.

`RecordTable` stores the records of a split as columns: a few flat arrays, of which a `Record` is a view created on
access. A box takes 61 bytes and an image about 40 beside its name, where a `Record` of its own takes a kilobyte.

Legend: R records, N boxes of an image or of all of them, T of those that are trained on, K classes.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

NO_NUMBER = -1  # of an origin that is a text alone
_FINGERPRINT_BLOCK = 65_536  # records whose labels are gathered at a time


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image and its labels.

    width, height: size in pixels as displayed (after EXIF orientation). boxes_xyxy: (N, 4) float64 corners in those
    pixels, 0..width and 0..height, already clipped. class_ids: (N,) int64. ignored: (N,) bool, crowd regions and
    difficult objects: no training target, and neither right nor wrong in validation. areas: (N,) float64 in pixels,
    the annotated area where the format has one, else the box's. origins: N strings "file:line" of each label. The
    arrays of a record that was read are read-only. Records are equal when every field is; NaN is equal to itself.
    """

    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    origins: Sequence[str]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        if (self.path, self.width, self.height) != (other.path, other.width, other.height):
            return False
        arrays = ("boxes_xyxy", "class_ids", "ignored", "areas")
        is_same = all(np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True) for name in arrays)
        return is_same and tuple(self.origins) == tuple(other.origins)

    __hash__ = None  # type: ignore[assignment]


class FlatLabels(NamedTuple):
    """The labels of R records with N boxes: counts, widths, heights (R,) and boxes_xyxy (N, 4), class_ids, ignored,
    areas (N,), in the order of the records.
    """

    counts: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]


class Split(Sequence[Record]):
    """The records of a split and what is asked of all of them at once, however they are stored.

    An abstract class because `typing.Protocol` cannot extend `Sequence`. is_shuffled: the records are in random order
    already, and reading them in another order is slow.
    """

    is_shuffled = False

    @abstractmethod
    def table(self) -> RecordTable:
        """The same records in memory."""

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> RecordTable:
        """The records at these indices, in this order."""
        return self.table().select(indices)

    def without(self, paths: Collection[Path]) -> Split:
        """The split without the records of these images."""
        return self.select([index for index, path in enumerate(self.paths()) if path not in paths])

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order."""
        return self.table().paths()

    def sizes_hw(self) -> Iterator[tuple[int, int]]:
        """Height and width of every image, in order."""
        table = self.table()
        columns, rows = table.columns, table.rows
        return zip(columns.heights[rows].tolist(), columns.widths[rows].tolist(), strict=True)

    def labels(self) -> FlatLabels:
        """The labels of all records."""
        return self.table().labels()

    def num_boxes(self) -> int:
        """Boxes of all records, crowds and difficult ones too."""
        return int(self.labels().counts.sum())

    def num_background(self) -> int:
        """Images without a box."""
        return int((self.labels().counts == 0).sum())

    def class_counts(self, num_classes: int, with_ignored: bool = False) -> NDArray[np.int64]:
        """(K,) number of boxes of each class that are trained on, or of all."""
        labels = self.labels()
        class_ids = labels.class_ids if with_ignored else labels.class_ids[~labels.ignored]
        return np.bincount(class_ids, minlength=num_classes)

    def box_sides(self, image_size: int) -> NDArray[np.float64]:
        """(T, 2) widths and heights of the boxes that are trained on (of shards: of up to 20 000 of them), in pixels
        of a letterboxed network input whose longer side is `image_size`.
        """
        labels = self.labels()
        scales = np.repeat(image_size / np.maximum(labels.widths, labels.heights), labels.counts)
        sides = (labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]) * scales[:, None]
        return np.asarray(sides[~labels.ignored], np.float64)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over each record's path, size, boxes, class ids and ignored flags, in order.

        A path counts from the folder that all images share. Class names do not enter, class ids do.
        """
        table = self.table()
        splitting = [os.path.split(path) for path in table.paths()]
        folders = {folder: os.path.abspath(folder) for folder, _ in splitting}  # noqa: PTH100 - keeps links
        shared = os.path.commonpath(folders.values()) if folders else ""
        relative = {folder: os.fsencode(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
        digest = hashlib.sha256()
        for start in range(0, len(table), _FINGERPRINT_BLOCK):
            labels = table[start : start + _FINGERPRINT_BLOCK].labels()
            names = splitting[start : start + _FINGERPRINT_BLOCK]
            paths = [relative[folder] + b"/" + os.fsencode(name) for folder, name in names]
            heads = np.array([[len(path) for path in paths], labels.widths, labels.heights, labels.counts], "<i8").T
            boxes = (np.asarray(labels.boxes_xyxy, "<f8") + 0.0).tobytes()  # -0.0 and 0.0 are the same coordinate
            class_ids, ignored = np.asarray(labels.class_ids, "<i8").tobytes(), labels.ignored.tobytes()
            first = 0
            for path, head, count in zip(paths, heads, labels.counts.tolist(), strict=True):
                last = first + count
                parts = (head.tobytes(), path, boxes[32 * first : 32 * last], class_ids[8 * first : 8 * last])
                digest.update(b"".join((*parts, ignored[first:last])))
                first = last
        return digest.hexdigest()

    def forget_cache(self) -> None:
        """Remove the cached index that the records came from, so that the dataset is read again the next time."""


def as_split(records: Iterable[Record]) -> Split:
    """The same records as a `Split`: they themselves if they are one, else a `RecordTable` of them."""
    if isinstance(records, Split):
        return records
    builder = TableBuilder()
    for record in records:
        builder.append(record)
    return builder.table()


class StringArray(Sequence[str]):
    """Strings in one flat array of bytes: each as UTF-8, which has no byte 255, and that byte behind it.

    Any string that Python can hold: surrogates stand for the bytes of file names that are not text.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self._starts = data, np.concatenate([[0], np.flatnonzero(data == 255) + 1])

    @classmethod
    def of(cls, texts: Iterable[str]) -> StringArray:
        """These strings."""
        data = b"".join([text.encode("utf-8", "surrogatepass") + b"\xff" for text in texts])
        return cls(np.frombuffer(data, np.uint8))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start, end = self._starts[index], self._starts[index + 1]
        return self.data[start : end - 1].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Columns:
    """R records with N boxes: record r has the boxes box_starts[r] to box_starts[r + 1].

    folders: distinct folders of images, of which folder_ids (R,) int32 chooses; names: R file names; widths, heights
    (R,) int32. boxes_xyxy (N, 4), class_ids, ignored, areas (N,): as in `Record`. An origin is the text
    heads[head_ids[n]] and the number numbers[n] (head_ids (N,) int32, numbers (N,) int64, `NO_NUMBER` for none).
    """

    folders: StringArray
    names: StringArray
    folder_ids: NDArray[np.int32]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    box_starts: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    heads: StringArray
    head_ids: NDArray[np.int32]
    numbers: NDArray[np.int64]


class RecordTable(Split):
    """Records as rows of columns.

    An index gives a `Record` whose arrays are read-only views; a slice and `select` give another table of the same
    columns, which copies no box. file: the cache file that the columns are mapped from, if they are. A table is equal
    to any sequence of equal records.
    """

    def __init__(self, columns: Columns, rows: NDArray[np.int64] | None = None, file: Path | None = None) -> None:
        self.columns, self.file = columns, file
        self.rows = np.arange(len(columns.names)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return RecordTable(self.columns, self.rows[index], self.file)
        return self._record(int(self.rows[index]))

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.rows.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def table(self) -> RecordTable:
        """Itself."""
        return self

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> RecordTable:
        """The table of these records, in this order."""
        return RecordTable(self.columns, self.rows[np.asarray(indices, np.int64)], self.file)

    def with_class_numbers(self, numbers: NDArray[np.int64]) -> RecordTable:
        """The table of the same records with the class ids numbers[class_id]."""
        class_ids = numbers[self.columns.class_ids]
        class_ids.flags.writeable = False
        return RecordTable(replace(self.columns, class_ids=class_ids), self.rows, self.file)

    def forget_cache(self) -> None:
        """Remove the file that the columns are mapped from."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink()

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order; no record is made."""
        return map(self._path, self.rows.tolist())

    def labels(self) -> FlatLabels:
        """The labels of all records: views, where the table is all of its columns or consecutive rows of them."""
        columns, rows = self.columns, self.rows
        starts = columns.box_starts[rows]
        counts = columns.box_starts[rows + 1] - starts
        boxes: slice | NDArray[np.int64]
        if len(rows) and (np.diff(rows) == 1).all():
            boxes = slice(int(starts[0]), int(starts[-1] + counts[-1]))
        else:
            boxes = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return FlatLabels(
            counts,
            columns.widths[rows].astype(np.int64),
            columns.heights[rows].astype(np.int64),
            columns.boxes_xyxy[boxes],
            columns.class_ids[boxes],
            columns.ignored[boxes],
            columns.areas[boxes],
        )

    def _path(self, row: int) -> Path:
        columns = self.columns
        return Path(columns.folders[columns.folder_ids[row]], columns.names[row])

    def _record(self, row: int) -> Record:
        columns = self.columns
        boxes = slice(*columns.box_starts[row : row + 2].tolist())
        head_ids = columns.head_ids[boxes].tolist()
        heads = {head_id: columns.heads[head_id] for head_id in set(head_ids)}
        numbers = ["" if number == NO_NUMBER else number for number in columns.numbers[boxes].tolist()]
        return Record(
            path=self._path(row),
            width=int(columns.widths[row]),
            height=int(columns.heights[row]),
            boxes_xyxy=columns.boxes_xyxy[boxes],
            class_ids=columns.class_ids[boxes],
            ignored=columns.ignored[boxes],
            areas=columns.areas[boxes],
            origins=tuple(f"{heads[head_id]}{number}" for head_id, number in zip(head_ids, numbers, strict=True)),
        )


class TableBuilder:
    """Takes records, one by one or many at a time, and stores only their columns."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._names, self._heads = list[str](), list[str]()
        self._columns = {
            "folder_ids": (np.int32, bytearray()),
            "widths": (np.int32, bytearray()),
            "heights": (np.int32, bytearray()),
            "box_starts": (np.int64, bytearray(8)),
            "boxes_xyxy": (np.float64, bytearray()),
            "class_ids": (np.int64, bytearray()),
            "ignored": (np.bool_, bytearray()),
            "areas": (np.float64, bytearray()),
            "head_ids": (np.int32, bytearray()),
            "numbers": (np.int64, bytearray()),
        }

    def append(self, record: Record) -> None:
        """Add a record."""
        self.extend(
            [record.path],
            record.origins,
            widths=[record.width],
            heights=[record.height],
            counts=[len(record.origins)],
            boxes_xyxy=record.boxes_xyxy,
            class_ids=record.class_ids,
            ignored=record.ignored,
            areas=record.areas,
            numbers=np.full(len(record.origins), NO_NUMBER),
        )

    def extend(self, paths: Iterable[Path], heads: Iterable[str], counts: ArrayLike, **columns: ArrayLike) -> None:
        """Add the records of these images, of which each has so many boxes; heads, columns: as in `Columns`."""
        folder_ids, head_ids = list[int](), list[int]()
        for path in paths:
            folder_ids.append(self._folders.setdefault(str(path.parent), len(self._folders)))
            self._names.append(path.name)
        for head in heads:
            if not self._heads or head != self._heads[-1]:
                self._heads.append(head)
            head_ids.append(len(self._heads) - 1)
        num_boxes = len(self._columns["class_ids"][1]) // 8
        box_starts = np.cumsum(counts, dtype=np.int64) + num_boxes
        columns |= {"folder_ids": folder_ids, "head_ids": head_ids, "box_starts": box_starts}
        for name, values in columns.items():
            dtype, buffer = self._columns[name]
            buffer += np.asarray(values, dtype).tobytes()

    def table(self) -> RecordTable:
        """The table of all records; nothing may be added afterwards."""
        arrays: dict[str, NDArray[Any]] = {
            name: np.frombuffer(buffer, dtype) for name, (dtype, buffer) in self._columns.items()
        }
        arrays["boxes_xyxy"] = arrays["boxes_xyxy"].reshape(-1, 4)
        for array in arrays.values():
            array.flags.writeable = False
        folders, names, heads = map(StringArray.of, (self._folders, self._names, self._heads))
        return RecordTable(Columns(folders=folders, names=names, heads=heads, **arrays))


AdjustmentKind = Literal[
    "clipped",
    "dropped-empty",
    "dropped-duplicate",
    "skipped-bad",
    "repeated-image",
    "no-labels",
    "unused-label",
    "ignored-file",
    "ignored-key",
    "relocated",
]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What reading did to a label, file or setting that is well-formed but not usable as it stands.

    Of labels: "clipped" (reached outside the image), "dropped-empty" (no area), "dropped-duplicate", "skipped-bad" (a
    malformed row or unreadable image left out because the user asked for it). Of files: "repeated-image" (listed twice
    in a split, read once), "no-labels" (no image of a split has a label file), "unused-label" (label files without an
    image), "ignored-file" (belongs to no split, or an image without the labels that its format demands). Of settings:
    "ignored-key" (read and not obeyed), "relocated" (a path that was found elsewhere in the dataset).
    origin: "file:line", or the file or folder. detail: the values, readable. Where they are known: split; image;
    class_name and box_xyxy, in pixels as the label file has it; files, where there are several.
    """

    kind: AdjustmentKind
    origin: str
    detail: str
    split: str | None = None
    image: Path | None = None
    class_name: str | None = None
    box_xyxy: tuple[float, float, float, float] | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetIndex:
    """A dataset as read: class names and the records of each split ("train", "val", "test").

    root: the folder (or file) the user named; format: "yolo", "coco", "voc" or "shards"; splits: any sequence of
    records will do for each, it becomes a `Split`; adjustments: see Adjustment; allow_outside: the user permitted paths
    that lead out of the dataset; skip_bad: and to leave out what is bad, which for images that turn out damaged only
    when they are decoded is yet to be done.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    adjustments: tuple[Adjustment, ...] = field(default=())
    allow_outside: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", {name: as_split(records) for name, records in self.splits.items()})

    def split(self, name: str) -> Split:
        """The records of a split; none where the dataset does not have it."""
        return self.splits[name] if name in self.splits else as_split(())


class LeftOut(NamedTuple):
    """A record whose image cannot be decoded, and why."""

    record: Record
    reason: str


def without_images(dataset: DatasetIndex, split: str, left_out: Sequence[LeftOut]) -> DatasetIndex:
    """The dataset without these images of a split; each becomes an Adjustment("skipped-bad")."""
    if not left_out:
        return dataset
    remaining = dataset.splits[split].without({one.record.path for one in left_out})
    skipped = [
        Adjustment("skipped-bad", str(one.record.path), one.reason, split, image=one.record.path) for one in left_out
    ]
    return replace(dataset, splits={**dataset.splits, split: remaining}, adjustments=(*dataset.adjustments, *skipped))


def dataset_fingerprint(dataset: DatasetIndex) -> str:
    """SHA-256, in hexadecimal, over the class names and the fingerprint of every split, both in order.

    A changed label, image size, file name, class name or order changes it. Pixels, file times, the format and the
    place of the dataset do not enter, so it takes about a second for 100 000 images.
    """
    digest = hashlib.sha256()
    fingerprints = [(split, records.fingerprint()) for split, records in dataset.splits.items()]
    for texts in (dataset.class_names, *fingerprints):
        digest.update(len(texts).to_bytes(8, "little"))  # lengths first: no other lists of texts give the same bytes
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
