"""The dataset index, what every label format is read into and the only thing the rest of the package sees: its splits
are sequences of records, an image and its labels each, however they are stored.

`RecordTable` stores the records of a split as rows of two flat arrays, of which a `Record` is a view created on
access. A box takes 72 bytes and an image 24 beside its name, where a `Record` of its own takes a kilobyte.

Legend: R records, N boxes of an image or of all of them, T of those that are trained on, K classes.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from anchorite.choices import ScoresUse

NO_NUMBER = -1  # of an origin that is a text alone
NO_CLASS = -1  # of an ignored region that may hold objects of any class
# An image of a table: its folder by number, its size as displayed, how many boxes it has, and its source by number.
_IMAGE_FIELDS = "folder_id", "width", "height", "num_boxes", "source_id"
IMAGE_ROW = np.dtype({"names": _IMAGE_FIELDS, "formats": ["i4"] * 5, "itemsize": 24})
# A box of a table, its fields as in `Record`. Its origin is the text of number head_id and behind it its own number.
_BOX_FIELDS = "xyxy", "class_id", "number", "area", "head_id", "ignored", "weight"
BOX_ROW = np.dtype({"names": _BOX_FIELDS, "formats": ["4f8", "i8", "i8", "f8", "i4", "?", "f4"]}, align=True)
Box = tuple[float, float, float, float]
_pack_image, _pack_box = struct.Struct("5i4x").pack, struct.Struct("4dqqdi?3xf4x").pack


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where the labels of an image come from, and what they do not know (docs/objective.md, section 6).

    name: readable, empty for a dataset that has one source. covered: K flags, whether objects of each class are
    labelled; None: all are. background_weight: in 0..1, how much the places without an object count.
    """

    name: str = ""
    covered: tuple[bool, ...] | None = None
    background_weight: float = 1.0


ONE_SOURCE = LabelSource()


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image and its labels.

    width, height: size in pixels as displayed (after EXIF orientation). boxes_xyxy: (N, 4) float64 corners in those
    pixels, 0..width and 0..height, already clipped. class_ids: (N,) int64, of ignored boxes also `NO_CLASS`. ignored:
    (N,) bool, crowd regions, difficult objects and what could not be read: neither target nor background in training,
    and neither right nor wrong in validation. areas: (N,) float64 in pixels, the annotated area where the format has
    one, else the box's. origins: N strings "file:line" of each label. weights: (N,) float32 in 0..1, how much each
    object counts in training; None becomes ones. source: where the labels come from. The arrays of a record that was
    read are read-only. Records are equal when every field is; NaN is equal to itself.
    """

    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    origins: Sequence[str]
    weights: NDArray[np.float32] = None  # type: ignore[assignment]
    source: LabelSource = ONE_SOURCE

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", np.ones(len(self.origins), np.float32))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        facts, others = ((one.path, one.width, one.height, tuple(one.origins), one.source) for one in (self, other))
        arrays = ("boxes_xyxy", "class_ids", "ignored", "areas", "weights")
        return facts == others and all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True) for name in arrays
        )

    __hash__ = None  # type: ignore[assignment]


def path_key(folder: str | Path, name: str) -> bytes:
    """Bytes that are the same for two ways to write the path of one file, unless it is a link itself."""
    return os.fsencode(os.path.realpath(folder)) + b"/" + name.encode("utf-8", "surrogatepass")


class Split(Sequence[Record]):
    """The records of a split and what is asked of all of them at once, however they are stored.

    An abstract class because `typing.Protocol` cannot extend `Sequence`. is_shuffled: the records are in random order
    already, and reading them in another order is slow.
    """

    is_shuffled = False

    @abstractmethod
    def table(self) -> RecordTable:
        """The same records in memory."""

    def renumbered(self, class_ids: Sequence[int]) -> Split:
        """The split with other class ids, of each class the new one; what was of a class that becomes `NO_CLASS` is an
        ignored region."""
        return self.table().renumbered(class_ids)

    def without(self, paths: Collection[Path]) -> Split:
        """The split without the records of these images."""
        return self.table().select([index for index, path in enumerate(self.paths()) if path not in paths])

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order."""
        return self.table().paths()

    def paths_at(self, indices: Iterable[int]) -> list[Path]:
        """The paths of some images."""
        return self.table().paths_at(indices)

    def folders_of_images(self) -> list[Path]:
        """The folders that the images lie in; none where they are no files of their own."""
        return self.table().folders_of_images()

    def path_keys(self) -> Iterator[bytes]:
        """`path_key` of each image, in order, at a fraction of what the paths cost; none for images in shards."""
        return self.table().path_keys()

    def num_boxes(self) -> int:
        """Boxes of all records, crowds and difficult ones too."""
        return len(self.table().boxes)

    def num_ignored(self) -> int:
        """Ignored boxes of all records: crowds, difficult objects, regions that nobody labelled."""
        return int(self.table().boxes["ignored"].sum())

    def num_weighted(self) -> int:
        """Boxes that are trained on and count less than 1."""
        boxes = self.table().boxes
        return int(((boxes["weight"] < 1) & ~boxes["ignored"]).sum())

    def mean_weight(self) -> float:
        """The mean weight of the boxes that `num_weighted` counts; 1 where there is none."""
        if not self.num_weighted():
            return 1.0
        boxes = self.table().boxes
        return float(boxes["weight"][(boxes["weight"] < 1) & ~boxes["ignored"]].mean(dtype=np.float64))

    def sources(self) -> tuple[LabelSource, ...]:
        """The sources of the labels; each record has one of these."""
        return self.table().label_sources

    def images_by_source(self) -> NDArray[np.int64]:
        """(S,) number of images that have their labels from each of `sources`."""
        num_sources = len(self.sources())
        if num_sources == 1:
            return np.array([len(self)], np.int64)
        return np.bincount(self.table().images["source_id"], minlength=num_sources)

    def num_background(self) -> int:
        """Images without a box."""
        return int((self.table().images["num_boxes"] == 0).sum())

    def class_counts(self, num_classes: int, with_ignored: bool = False) -> NDArray[np.int64]:
        """(K,) number of boxes of each class that are trained on, or of all that have a class."""
        boxes = self.table().boxes
        counted = boxes["class_id"] != NO_CLASS if with_ignored else ~boxes["ignored"]
        return np.bincount(boxes["class_id"][counted], minlength=num_classes)

    def box_sides(self, image_size: int) -> NDArray[np.float64]:
        """(T, 2) widths and heights of the boxes that are trained on (of shards: of up to 20 000 of them), in pixels
        of a letterboxed network input whose longer side is `image_size`.
        """
        table = self.table()
        return table.sides_px(image_size)[~table.boxes["ignored"]]

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over each record's path, size, boxes, class ids and ignored flags, in order; and
        over its weights and its source where any differs from the default.

        A path counts from the folder that all images share. Class names do not enter, class ids do.
        """
        table = self.table()
        splitting = [os.path.split(path) for path in table.paths()]
        folders = {folder: os.path.abspath(folder) for folder, _ in splitting}  # noqa: PTH100 - keeps links
        shared = os.path.commonpath(folders.values()) if folders else ""
        relative = {folder: os.fsencode(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
        digest, last = hashlib.sha256(), 0
        boxes_xyxy = np.asarray(table.boxes["xyxy"] + 0.0, "<f8")  # -0.0 and 0.0 are the same coordinate
        class_ids, ignored = np.asarray(table.boxes["class_id"], "<i8"), table.boxes["ignored"]
        images = table.images[["folder_id", "width", "height", "num_boxes"]]
        for (folder, name), (_, *numbers) in zip(splitting, images.tolist(), strict=True):
            path, first, last = relative[folder] + b"/" + os.fsencode(name), last, last + numbers[-1]
            columns = (column[first:last].tobytes() for column in (boxes_xyxy, class_ids, ignored))
            digest.update(b"".join([struct.pack("<4q", len(path), *numbers), path, *columns]))
        # As in the time when labels had neither, so that the fingerprints of such datasets stay.
        if (table.boxes["weight"] != 1).any():
            digest.update(np.asarray(table.boxes["weight"], "<f4").tobytes())
        if table.label_sources != (ONE_SOURCE,):
            facts = [(one.covered, one.background_weight) for one in table.label_sources]
            digest.update(repr(facts).encode() + np.asarray(table.images["source_id"], "<i4").tobytes())
        return digest.hexdigest()


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


@dataclass(eq=False)
class RecordTable(Split):
    """Records as rows of flat arrays, which cannot be written into.

    images: (R,) `IMAGE_ROW`; boxes: (N,) `BOX_ROW`, those of each image behind those of the one before; folders and
    heads: the texts that folder_id and head_id choose of; names: R file names; files: the cache files that these are
    mapped or joined from, if they are; label_sources: what source_id chooses of. An index gives a `Record` of
    read-only views, a slice another table. A table is equal to any sequence of equal records.
    """

    images: NDArray[np.void]
    boxes: NDArray[np.void]
    folders: StringArray
    names: StringArray
    heads: StringArray
    files: tuple[Path, ...] = ()
    label_sources: tuple[LabelSource, ...] = (ONE_SOURCE,)

    def __post_init__(self) -> None:
        self.ends = np.cumsum(self.images["num_boxes"], dtype=np.int64)  # where the boxes of each image end
        for array in (self.images, self.boxes):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self._record(range(len(self))[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

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
        chosen = np.asarray(indices, np.int64)
        images, names = self.images[chosen], StringArray.of(map(self.names.__getitem__, chosen.tolist()))
        counts = images["num_boxes"].astype(np.int64)
        boxes = np.arange(counts.sum()) + np.repeat(self.ends[chosen] - np.cumsum(counts), counts)
        return replace(self, images=images, boxes=self.boxes[boxes], names=names)

    def renumbered(self, class_ids: Sequence[int]) -> RecordTable:
        """The same records with other class ids, as `Split.renumbered`; sources cover what they did."""
        boxes, kept = self.boxes.copy(), [class_id != NO_CLASS for class_id in class_ids]
        boxes["class_id"] = np.array([*class_ids, NO_CLASS])[boxes["class_id"]]  # the last is that of `NO_CLASS` itself
        is_region = boxes["class_id"] == NO_CLASS
        boxes["ignored"] |= is_region
        boxes["weight"][is_region] = 1
        covered = (None if one.covered is None else tuple(compress(one.covered, kept)) for one in self.label_sources)
        sources = (replace(one, covered=some) for one, some in zip(self.label_sources, covered, strict=True))
        return replace(self, boxes=boxes, label_sources=tuple(sources))

    def forget_cache(self) -> None:
        """Remove the files that the table comes from, so that the dataset is read again the next time."""
        for file in self.files:
            with suppress(OSError):
                file.unlink()

    def paths(self) -> Iterator[Path]:
        """The paths of the images, in order; no record is made."""
        return map(self._path, range(len(self)))

    def paths_at(self, indices: Iterable[int]) -> list[Path]:
        """The paths of some images; no record is made."""
        return list(map(self._path, indices))

    def folders_of_images(self) -> list[Path]:
        """The folders that the images lie in."""
        return [Path(self.folders[number]) for number in np.unique(self.images["folder_id"]).tolist()]

    def path_keys(self) -> Iterator[bytes]:
        """`path_key` of each image, in order; neither records nor paths are made."""
        folders = [path_key(folder, "") for folder in self.folders]
        names = self.names.data.tobytes().split(b"\xff")
        return (folders[number] + name for number, name in zip(self.images["folder_id"].tolist(), names, strict=False))

    def image_of_box(self) -> NDArray[np.int64]:
        """(N,) which image each box is of."""
        return np.repeat(np.arange(len(self)), self.images["num_boxes"])

    def sides_px(self, image_size: int) -> NDArray[np.float64]:
        """(N, 2) width and height of each box where the longer side of its image has `image_size` pixels."""
        scales = image_size / np.maximum(self.images["width"], self.images["height"])
        boxes_xyxy = self.boxes["xyxy"]
        return np.asarray((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * scales[self.image_of_box(), None], np.float64)

    def _path(self, row: int) -> Path:
        return Path(self.folders[self.images["folder_id"][row]], self.names[row])

    def _record(self, row: int) -> Record:
        _, width, height, num_boxes, source_id = self.images[row].tolist()
        boxes = self.boxes[self.ends[row] - num_boxes : self.ends[row]]
        head_ids, numbers = boxes["head_id"].tolist(), boxes["number"].tolist()
        heads = {head_id: self.heads[head_id] for head_id in set(head_ids)}
        origins = (
            heads[head_id] if number == NO_NUMBER else f"{heads[head_id]}{number}"
            for head_id, number in zip(head_ids, numbers, strict=True)
        )
        arrays = boxes["xyxy"], boxes["class_id"], boxes["ignored"], boxes["area"]
        source = self.label_sources[source_id]
        return Record(self._path(row), width, height, *arrays, tuple(origins), boxes["weight"], source)


def pack_box(
    class_id: int,
    xyxy: Box,
    head_id: int,
    number: int,
    ignored: bool = False,
    area: float = math.nan,
    weight: float = 1.0,
) -> bytes:
    """The bytes of a `BOX_ROW`, which many boxes are kept in at little cost while a dataset is read.

    xyxy: corners in pixels as displayed. head_id: see `TableBuilder`. number: of its line, or whatever else the format
    tells the labels of a file apart by, or `NO_NUMBER`. area: in pixels, NaN for the box's. weight: in 0..1.
    """
    return _pack_box(*xyxy, class_id, number, area, head_id, ignored, weight)


class TableBuilder:
    """Takes records, one by one, and stores only their rows: bytes of `IMAGE_ROW`s and `BOX_ROW`s."""

    def __init__(self) -> None:
        self.images, self.boxes = bytearray(), bytearray()
        self._folders: dict[str, int] = {}
        self._names, self._heads = list[str](), list[str]()
        self._sources: dict[LabelSource, int] = {}

    def head_id(self, head: str) -> int:
        """The number of a text that the origins of boxes begin with."""
        if not self._heads or self._heads[-1] != head:
            self._heads.append(head)
        return len(self._heads) - 1

    def add(
        self,
        path: Path,
        width: int,
        height: int,
        boxes: bytes | bytearray | memoryview,
        source: LabelSource = ONE_SOURCE,
    ) -> None:
        """Add a record whose boxes are rows of `pack_box`, one behind another."""
        folder, name = os.path.split(path)
        folder_id = self._folders.setdefault(folder, len(self._folders))
        self._names.append(name)
        source_id = self._sources.setdefault(source, len(self._sources))
        self.images += _pack_image(folder_id, width, height, len(boxes) // BOX_ROW.itemsize, source_id)
        self.boxes += boxes

    def table(self) -> RecordTable:
        """The table of all records; nothing may be added afterwards."""
        images, boxes = np.frombuffer(self.images, IMAGE_ROW), np.frombuffer(self.boxes, BOX_ROW)
        folders, names, heads = map(StringArray.of, (self._folders, self._names, self._heads))
        return RecordTable(images, boxes, folders, names, heads, label_sources=tuple(self._sources) or (ONE_SOURCE,))


def as_split(records: Iterable[Record]) -> Split:
    """The same records as a `Split`: they themselves if they are one, else a `RecordTable` of them."""
    if isinstance(records, Split):
        return records
    builder = TableBuilder()
    for record in records:
        boxes = np.zeros(len(record.origins), BOX_ROW)
        boxes["xyxy"], boxes["class_id"], boxes["number"] = record.boxes_xyxy, record.class_ids, NO_NUMBER
        boxes["ignored"], boxes["area"], boxes["weight"] = record.ignored, record.areas, record.weights
        boxes["head_id"] = list(map(builder.head_id, record.origins))
        builder.add(record.path, record.width, record.height, boxes.tobytes(), record.source)
    return builder.table()


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
    "ignored-score",
    "ignored-shape",
    "ignored-annotation",
    "ignored-category",
    "ignored-region",
    "shape-as-box",
    "relocated",
    "grey-images",
    "narrow-range",
]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What reading did to a label, file or setting that is well-formed but not usable as it stands.

    Of labels: "clipped" (reached outside the image), "dropped-empty" (no area), "dropped-duplicate", "skipped-bad" (a
    malformed row or unreadable image; the image is left out because the user asked for it), "shape-as-box" (the box
    around a polygon, mask, rotated box or pose), "ignored-shape" (points, lines and tags, which outline no object),
    "ignored-annotation" (of an image that has another one, which is read), "ignored-score" (a score beside a box),
    "ignored-region" (a malformed label of which the place is known: it becomes an ignored region because the user asked
    to leave out what is bad), "ignored-category" (one that only groups others). Of files: "repeated-image" (listed
    twice in a split, read once), "no-labels" (no image of a split has a label file), "unused-label" (label files
    without an image), "ignored-file" (belongs to no split, or an image without the labels that its format demands). Of
    settings: "ignored-key" (read and not obeyed), "relocated" (a path found elsewhere in the dataset). Of the images of
    a split: "grey-images" (all have one channel, which is repeated), "narrow-range" (of 16-bit images few grey levels
    are left when they become 8-bit images).
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

    root: the folder (or file) the user named; format: see `anchorite.choices.FormatName`; splits: any sequence of
    records will do for each, it becomes a `Split`; adjustments: see Adjustment; allow_outside: the user permitted paths
    that lead out of the dataset; skip_bad: and to leave out what is bad, which for images that turn out damaged only
    when they are decoded is yet to be done; ignored_classes: names of classes that are none here, and whose boxes are
    ignored regions; scores: what those beside boxes were taken for.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    adjustments: tuple[Adjustment, ...] = field(default=())
    allow_outside: bool = False
    skip_bad: bool = False
    ignored_classes: tuple[str, ...] = ()
    scores: ScoresUse = "ignore"

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", {name: as_split(records) for name, records in self.splits.items()})

    def split(self, name: str) -> Split:
        """The records of a split; none where the dataset does not have it."""
        return self.splits[name] if name in self.splits else as_split(())

    def reading_facts(self) -> dict[str, object]:
        """What it takes to open the same dataset again, as plain values."""
        return {
            "data": str(self.root.resolve()),
            "format": self.format,
            "skip_bad": self.skip_bad,
            "allow_outside": self.allow_outside,
            "ignore_classes": list(self.ignored_classes),
            "scores": self.scores,
        }


class LeftOut(NamedTuple):
    """An image that cannot be decoded, and why."""

    path: Path
    reason: str


def without_images(dataset: DatasetIndex, split: str, left_out: Sequence[LeftOut]) -> DatasetIndex:
    """The dataset without these images of a split; each becomes an Adjustment("skipped-bad")."""
    if not left_out:
        return dataset
    remaining = dataset.splits[split].without({path for path, _ in left_out})
    skipped = [Adjustment("skipped-bad", str(path), reason, split, image=path) for path, reason in left_out]
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
