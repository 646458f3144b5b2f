"""Records as columns: a few flat arrays for a whole split, of which a `Record` is a view made when it is asked for.

A box takes 61 bytes and an image about 40 beside its name, in memory or in a mapped file, where a `Record` of its own
takes a kilobyte. Legend: R records, N boxes of all of them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from anchorite.data.record import Record
from anchorite.data.string_array import StringArray, StringArrayBuilder, as_array

# What ends in a number that int() and str() keep as it is, with or without the bracket of "annotations[3]".
_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,17})(\]?)", re.DOTALL)
_NO_NUMBER = -1


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


class RecordTable(Sequence[Record]):
    """The records of a split, or some of them: rows of columns.

    An index gives a `Record` whose arrays are read-only views; a slice and `select` give another table of the same
    columns, which copies no box. file: where the columns are kept, if they are.
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

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> RecordTable:
        """The table of these records, in this order."""
        return RecordTable(self.columns, np.asarray(self.rows, np.int64)[np.asarray(indices, np.int64)], self.file)

    def forget_file(self) -> None:
        """Remove the file the columns are kept in, so that the dataset is read anew the next time."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink()

    def paths(self) -> Iterator[Path]:
        """The paths of the records, in order."""
        return map(self._path, self.rows if isinstance(self.rows, range) else self.rows.tolist())

    def __eq__(self, other: object) -> bool:
        """Whether a table or tuple holds the same records; NaN is equal to itself."""
        if not isinstance(other, RecordTable | tuple) or len(self) != len(other):
            return False
        pairs = zip(self, other, strict=True)
        return all(isinstance(theirs, Record) and same_record(ours, theirs) for ours, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]

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


def same_record(one: Record, other: Record) -> bool:
    """Whether two records are equal in every field, to the bit of every number but for the sign of nought."""
    if (one.path, one.width, one.height) != (other.path, other.width, other.height):
        return False
    arrays = ("boxes_xyxy", "class_ids", "ignored", "areas")
    is_same = all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays)
    return is_same and tuple(one.origins) == tuple(other.origins)


def record_paths(records: Sequence[Record]) -> Iterator[Path]:
    """The paths of some records, in order; of a table without making its records."""
    return records.paths() if isinstance(records, RecordTable) else (record.path for record in records)


def image_sizes_hw(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Height and width of every image, in order; of a table without making its records."""
    if not isinstance(records, RecordTable):
        return ((record.height, record.width) for record in records)
    rows, columns = np.asarray(records.rows, np.int64), records.columns
    return zip(columns.heights[rows].tolist(), columns.widths[rows].tolist(), strict=True)


def records_at(records: Sequence[Record], indices: Sequence[int]) -> RecordTable | tuple[Record, ...]:
    """The records at these indices: a table of a table, else a tuple."""
    return records.select(indices) if isinstance(records, RecordTable) else tuple(records[index] for index in indices)


class TableBuilder:
    """Takes records one by one and keeps only their columns."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._names, self._heads = StringArrayBuilder(), StringArrayBuilder()
        self._folder_ids, self._widths, self._heights = array("i"), array("i"), array("i")
        self._box_starts, self._head_ids, self._numbers = array("q", [0]), array("i"), array("q")
        self._boxes, self._class_ids, self._ignored, self._areas = (bytearray() for _ in range(4))
        self._head, self._head_id = "", _NO_NUMBER  # of the box before

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
                self._add_origin(origin)
        elif len(numbers):
            if head != self._head:
                self._head, self._head_id = head, self._heads.append(head)
            self._head_ids.extend([self._head_id] * len(numbers))
            self._numbers.frombytes(numbers.tobytes())
        self._box_starts.append(len(self._numbers))

    def _add_origin(self, origin: str) -> None:
        rest = origin[len(self._head) :].removesuffix("]" if self._head.endswith("[") else "")
        is_alike = (
            origin.startswith(self._head)
            and len(rest) < 19
            and rest.isdecimal()
            and rest.isascii()
            and (rest[0] != "0" or rest == "0")
            and len(origin) == len(self._head) + len(rest) + self._head.endswith("[")
        )
        if is_alike and self._head:
            number = int(rest)
        else:
            self._head, number = _split_origin(origin)
            self._head_id = self._heads.append(self._head)
        self._head_ids.append(self._head_id)
        self._numbers.append(number)

    def table(self) -> RecordTable:
        """The table of all records; nothing may be added afterwards."""
        return RecordTable(
            Columns(
                folders=StringArrayBuilder.of(self._folders),
                names=self._names.texts(),
                folder_ids=as_array(self._folder_ids, np.int32),
                widths=as_array(self._widths, np.int32),
                heights=as_array(self._heights, np.int32),
                box_starts=as_array(self._box_starts, np.int64),
                boxes_xyxy=as_array(self._boxes, np.float64).reshape(-1, 4),
                class_ids=as_array(self._class_ids, np.int64),
                ignored=as_array(self._ignored, np.bool_),
                areas=as_array(self._areas, np.float64),
                heads=self._heads.texts(),
                head_ids=as_array(self._head_ids, np.int32),
                numbers=as_array(self._numbers, np.int64),
            )
        )


def _split_origin(origin: str) -> tuple[str, int]:
    """An origin as head and number, such that `Columns.origin` gives it back."""
    found = _NUMBERED.fullmatch(origin)
    if found is None or found[1].endswith("[") != bool(found[3]):
        return origin, _NO_NUMBER
    return found[1], int(found[2])
