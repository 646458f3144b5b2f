"""Records, an image and its labels each, and splits, which are sequences of records whatever keeps them.

`RecordTable` keeps the records of a split as columns: a few flat arrays, of which a `Record` is a view made when it is
asked for. A box takes 61 bytes and an image about 40 beside its name, where a `Record` of its own takes a kilobyte.

Legend: R records, N boxes of an image or of all of them, T of those that are trained on, K classes.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)
_NO_NUMBER = -1
_FINGERPRINT_BLOCK = 65_536  # records whose labels are laid out at a time


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
    """The records of a split and what is asked of all of them at once, wherever they are kept.

    An abstract class because `typing.Protocol` cannot extend `Sequence`. is_shuffled: the records are in random order
    already, and reading them in another order is slow.
    """

    is_shuffled = False

    @abstractmethod
    def table(self) -> RecordTable:
        """The same records in memory."""

    @abstractmethod
    def without(self, paths: Collection[Path]) -> Split:
        """The split without the records of these images."""

    @abstractmethod
    def num_boxes(self) -> int:
        """Boxes of all records, crowds and difficult ones too."""

    @abstractmethod
    def num_background(self) -> int:
        """Images without a box."""

    @abstractmethod
    def class_counts(self, num_classes: int, with_ignored: bool = False) -> NDArray[np.int64]:
        """(K,) number of boxes of each class that are trained on, or of all."""

    @abstractmethod
    def box_sides(self, image_size: int) -> NDArray[np.float64]:
        """(T, 2) widths and heights of the boxes that are trained on (of shards: of up to 20 000 of them), in pixels
        of a letterboxed network input whose longer side is `image_size`.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the records in their order."""

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> RecordTable:
        """The records at these indices, in this order."""
        return self.table().select(indices)

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order."""
        return self.table().paths()

    def sizes_hw(self) -> Iterator[tuple[int, int]]:
        """Height and width of every image, in order."""
        return self.table().sizes_hw()

    def labels(self) -> FlatLabels:
        """The labels of all records."""
        return self.table().labels()

    def forget_cache(self) -> None:
        """Remove the cached index that the records came from, so that the dataset is read again the next time."""


def as_split(records: Sequence[Record]) -> Split:
    """The same records as a `Split`: they themselves if they are one, else a `RecordTable` of them."""
    if isinstance(records, Split):
        return records
    builder = TableBuilder()
    for record in records:
        builder.append(record)
    return builder.table()


@dataclass(frozen=True, slots=True)
class StringArray:
    """Strings in two flat arrays: data, their bytes (uint8), and starts, where each begins and the last one ends.

    Any string that Python can hold: surrogates stand for the bytes of file names that are not text.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> StringArray:
        """These strings."""
        builder = StringArrayBuilder()
        for text in texts:
            builder.append(text)
        return builder.strings()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.starts[index] : self.starts[index + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


class StringArrayBuilder:
    """Gathers the strings of a `StringArray` one by one."""

    def __init__(self) -> None:
        self._data, self._starts = bytearray(), array("q", [0])

    def append(self, text: str) -> int:
        """Add a string; its index."""
        self._data += text.encode("utf-8", "surrogatepass")
        self._starts.append(len(self._data))
        return len(self._starts) - 2

    def strings(self) -> StringArray:
        """All of them; nothing may be added afterwards."""
        return StringArray(as_array(self._data, np.uint8), as_array(self._starts, np.int64))


def as_array(buffer: bytearray | array[int] | array[float], kind: type[Scalar]) -> NDArray[Scalar]:
    """A read-only array over a buffer, which can no longer grow then."""
    flat = np.frombuffer(buffer, kind)
    flat.flags.writeable = False
    return flat


@dataclass(frozen=True, slots=True)
class Columns:
    """R records with N boxes: record r has the boxes box_starts[r] to box_starts[r + 1].

    folders: distinct folders of images, of which folder_ids (R,) int32 chooses; names: R file names; widths, heights
    (R,) int32. boxes_xyxy (N, 4), class_ids, ignored, areas (N,): as in `Record`. An origin is the text
    heads[head_ids[n]] and the number numbers[n] (head_ids (N,) int32, numbers (N,) int64, -1 for none).
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

    def origin(self, box: int) -> str:
        """The "file:line" of a box."""
        head, number = self.heads[self.head_ids[box]], int(self.numbers[box])
        return head if number == _NO_NUMBER else f"{head}{number}{']' if head.endswith('[') else ''}"


class Origins(Sequence[str]):
    """The origins of boxes start..stop, each put together when it is asked for; equal to a tuple of the same texts."""

    __slots__ = ("_boxes", "_columns")

    def __init__(self, columns: Columns, boxes: range) -> None:
        self._columns, self._boxes = columns, boxes

    def __len__(self) -> int:
        return len(self._boxes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Origins: ...
    def __getitem__(self, index: int | slice) -> str | Origins:
        chosen = self._boxes[index]
        return Origins(self._columns, chosen) if isinstance(chosen, range) else self._columns.origin(chosen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins | tuple) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class RecordTable(Split):
    """Records as rows of columns.

    An index gives a `Record` whose arrays are read-only views; a slice and `select` give another table of the same
    columns, which copies no box. file: the cache file that the columns are mapped from, if they are. A table is equal
    to any sequence of equal records.
    """

    def __init__(
        self, columns: Columns, rows: range | NDArray[np.int64] | None = None, file: Path | None = None
    ) -> None:
        self.columns, self.file = columns, file
        self.rows: range | NDArray[np.int64] = range(len(columns.names)) if rows is None else rows

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
        return map(self._record, self.rows if isinstance(self.rows, range) else self.rows.tolist())

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
        return RecordTable(self.columns, np.asarray(self.rows, np.int64)[np.asarray(indices, np.int64)], self.file)

    def without(self, paths: Collection[Path]) -> RecordTable:
        """The table without the records of these images."""
        return self.select([index for index, path in enumerate(self.paths()) if path not in paths])

    def forget_cache(self) -> None:
        """Remove the file that the columns are mapped from."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink()

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order; no record is made."""
        return map(self._path, self.rows if isinstance(self.rows, range) else self.rows.tolist())

    def sizes_hw(self) -> Iterator[tuple[int, int]]:
        """Height and width of every image, in order; no record is made."""
        rows = np.asarray(self.rows, np.int64)
        return zip(self.columns.heights[rows].tolist(), self.columns.widths[rows].tolist(), strict=True)

    def labels(self) -> FlatLabels:
        """The labels of all records: views, where the table is all of its columns or a slice of them."""
        columns, rows = self.columns, self.rows
        boxes: slice | NDArray[np.int64]
        if isinstance(rows, range) and rows.step == 1:
            chosen: slice | NDArray[np.int64] = slice(rows.start, rows.start + len(rows))
            ends = columns.box_starts[rows.start : rows.start + len(rows) + 1]
            counts, boxes = np.diff(ends), slice(int(ends[0]), int(ends[-1]))
        else:
            chosen = np.asarray(rows, np.int64)
            starts = columns.box_starts[chosen]
            counts = columns.box_starts[chosen + 1] - starts
            boxes = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return FlatLabels(
            counts,
            columns.widths[chosen].astype(np.int64),
            columns.heights[chosen].astype(np.int64),
            columns.boxes_xyxy[boxes],
            columns.class_ids[boxes],
            columns.ignored[boxes],
            columns.areas[boxes],
        )

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
        """(T, 2) widths and heights of all boxes that are trained on, in pixels of a letterboxed network input whose
        longer side is `image_size`.
        """
        labels = self.labels()
        scales = np.repeat(image_size / np.maximum(labels.widths, labels.heights), labels.counts)
        sides = (labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2]) * scales[:, None]
        return np.asarray(sides[~labels.ignored], np.float64)

    def fingerprint(self) -> str:
        """SHA-256 over each record's path, size, boxes, class ids and ignored flags, in order.

        A path counts from the folder that all images share. Class names do not enter, class ids do.
        """
        splitting = [os.path.split(path) for path in self.paths()]
        folders = {folder: os.path.abspath(folder) for folder, _ in splitting}  # noqa: PTH100 - keeps links
        shared = os.path.commonpath(folders.values()) if folders else ""
        relative = {folder: os.fsencode(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
        digest = hashlib.sha256()
        for start in range(0, len(self), _FINGERPRINT_BLOCK):
            labels = self[start : start + _FINGERPRINT_BLOCK].labels()
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

    def _path(self, row: int) -> Path:
        columns = self.columns
        return Path(columns.folders[columns.folder_ids[row]], columns.names[row])

    def _record(self, row: int) -> Record:
        columns = self.columns
        start, stop = columns.box_starts[row : row + 2].tolist()
        return Record(
            path=self._path(row),
            width=int(columns.widths[row]),
            height=int(columns.heights[row]),
            boxes_xyxy=columns.boxes_xyxy[start:stop],
            class_ids=columns.class_ids[start:stop],
            ignored=columns.ignored[start:stop],
            areas=columns.areas[start:stop],
            origins=Origins(columns, range(start, stop)),
        )


class TableBuilder:
    """Takes records one by one and keeps only their columns."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._names, self._heads = StringArrayBuilder(), StringArrayBuilder()
        self._folder_ids, self._widths, self._heights = array("i"), array("i"), array("i")
        self._box_starts, self._head_ids, self._numbers = array("q", [0]), array("i"), array("q")
        self._boxes, self._class_ids, self._ignored, self._areas = (bytearray() for _ in range(4))
        self._head: str | None = None  # of the box before
        self._head_id = _NO_NUMBER

    def append(self, record: Record, head: str | None = None, numbers: NDArray[np.int64] | None = None) -> None:
        """Add a record; head, numbers: in place of its origins, which are the head with a number each behind it."""
        folder, name = str(record.path.parent), record.path.name
        self._folder_ids.append(self._folders.setdefault(folder, len(self._folders)))
        self._names.append(name)
        self._widths.append(record.width)
        self._heights.append(record.height)
        self._boxes += np.asarray(record.boxes_xyxy, np.float64).tobytes()
        self._class_ids += np.asarray(record.class_ids, np.int64).tobytes()
        self._ignored += np.asarray(record.ignored, np.bool_).tobytes()
        self._areas += np.asarray(record.areas, np.float64).tobytes()
        if head is None or numbers is None:
            for origin in record.origins:
                own_head, number = _split_origin(origin)
                self._head_ids.append(self._id_of(own_head))
                self._numbers.append(number)
        elif len(numbers):
            self._head_ids.extend([self._id_of(head)] * len(numbers))
            self._numbers.frombytes(numbers.tobytes())
        self._box_starts.append(len(self._numbers))

    def _id_of(self, head: str) -> int:
        if head != self._head:
            self._head, self._head_id = head, self._heads.append(head)
        return self._head_id

    def table(self) -> RecordTable:
        """The table of all records; nothing may be added afterwards."""
        return RecordTable(
            Columns(
                folders=StringArray.of(self._folders),
                names=self._names.strings(),
                folder_ids=as_array(self._folder_ids, np.int32),
                widths=as_array(self._widths, np.int32),
                heights=as_array(self._heights, np.int32),
                box_starts=as_array(self._box_starts, np.int64),
                boxes_xyxy=as_array(self._boxes, np.float64).reshape(-1, 4),
                class_ids=as_array(self._class_ids, np.int64),
                ignored=as_array(self._ignored, np.bool_),
                areas=as_array(self._areas, np.float64),
                heads=self._heads.strings(),
                head_ids=as_array(self._head_ids, np.int32),
                numbers=as_array(self._numbers, np.int64),
            )
        )


def _split_origin(origin: str) -> tuple[str, int]:
    """An origin as head and the number at its end ("a.txt:3", "a.json: annotations[3]"), as `Columns.origin` joins
    them; a number that int() and str() would change stays in the head.
    """
    text = origin.removesuffix("]")
    head = text.rstrip("0123456789")
    digits = text[len(head) :]
    is_plain = 0 < len(digits) < 19 and (digits == "0" or digits[0] != "0")
    if is_plain and head.endswith("[") == (text != origin):
        return head, int(digits)
    return origin, _NO_NUMBER
