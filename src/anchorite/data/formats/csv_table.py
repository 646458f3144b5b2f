"""Tables with a box a row, as for TensorFlow's Object Detection API and RetinaNet; Roboflow writes both.

With a header, columns in any order and letter case: filename, width, height, class, xmin, ymin, xmax, ymax (the image's
width and height may be missing). Without one: path, x1, y1, x2, y2, class. A row that holds nothing but an image says
that no object is in it. Corners are in pixels, or parts of the image's size where all those of a table lie in 0..1.

Formats: https://tensorflow-object-detection-api-tutorial.readthedocs.io/en/latest/training.html,
https://github.com/fizyr/keras-retinanet#csv-datasets
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from anchorite.data.formats.common import ClassesAndSplits, Fence, ReadingLog, is_image_name, plain_number
from anchorite.data.formats.named import (
    LabelledImage,
    NamedBox,
    home_of,
    label_files,
    place_of,
    plain_parts,
    read_named,
)
from anchorite.reading import read_csv, read_csv_header, shorten

LOOKED_FOR = "CSV: *.csv with columns filename, class, xmin, ymin, xmax, ymax, or path, x1, y1, x2, y2, class"
SUFFIXES = (".csv",)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS = {
    "filename": ("filename", "file_name", "image", "image_name", "image_path", "path"),
    "class": ("class", "class_name", "label", "label_name", "category"),
    "width": ("width",),
    "height": ("height",),
    **{
        corner: (corner, f"{corner[0]}_{corner[1:]}", f"{corner[0]}{1 if 'min' in corner else 2}")
        for corner in _CORNERS
    },
}
_WITHOUT_HEADER = {name: number for number, name in enumerate(("filename", *_CORNERS, "class"))}


class Table(NamedTuple):
    """A file, what stands between its cells, the number of each column, and whether its first row names them."""

    path: Path
    delimiter: str
    columns: dict[str, int]
    has_header: bool


def find(root: Path, log: ReadingLog, fence: Fence) -> list[Table]:
    """The tables in a folder and the folders in it, or the one that the user named."""
    return [table for path in label_files(root, fence, *SUFFIXES) if (table := _table(path)) is not None]


def _table(path: Path) -> Table | None:
    """A file as a table, by its first row; None where it is none."""
    delimiter, cells = read_csv_header(path)
    names = [cell.lower() for cell in cells]
    columns = {
        column: names.index(found)
        for column, accepted in _COLUMNS.items()
        if (found := next(filter(names.__contains__, accepted), None)) is not None
    }
    if columns.keys() >= {"filename", "class", *_CORNERS}:
        return Table(path, delimiter, columns, True)
    if len(cells) != len(_WITHOUT_HEADER) or not is_image_name("".join(plain_parts(cells[0])[-1:])):
        return None
    is_row = not any(cells[1:]) or (cells[-1] and all(plain_number(cell) is not None for cell in cells[1:-1]))
    return Table(path, delimiter, _WITHOUT_HEADER, False) if is_row else None


def read(tables: Sequence[Table], root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names, sorted, and the splits: those that the tables' names or folders speak of, else those of the
    images' folders.
    """
    entries: list[LabelledImage] = []
    for table in tables:
        log.dependencies.add_file(table.path)
        entries += _read_table(table, root, log)
    return read_named(entries, home_of(root), root, log, allow_outside)


def _read_table(table: Table, root: Path, log: ReadingLog) -> list[LabelledImage]:
    """The images of a table, in its order."""
    (folders, split), columns = place_of(table.path, root), table.columns
    images: dict[str, LabelledImage] = {}
    for line, cells in read_csv(table.path, table.delimiter):
        if table.has_header and line == 1:
            continue
        row = {name: cells[column].strip() if column < len(cells) else "" for name, column in columns.items()}
        origin = f"{table.path}:{line}"
        if not row["filename"]:
            log.bad(origin, f"the row names no image ({shorten(table.delimiter.join(cells))})")
            continue
        image = images.setdefault(row["filename"], LabelledImage(folders + row["filename"], origin, split=split))
        box: NamedBox | str | None = f"{len(cells)} cells, of which {max(columns.values()) + 1} are needed"
        if len(cells) > max(columns.values()):
            box = _read_row(row, image, f"{table.path}:", line)
        if isinstance(box, NamedBox):
            image.boxes.append(box)
        elif box is not None:
            image.faults.append((origin, box))
    corners = [corner for image in images.values() for box in image.boxes for corner in box.xyxy]
    if corners and min(corners) >= 0 and max(corners) <= 1 and any(corner % 1 for corner in corners):
        for image in images.values():
            image.is_normalised = True
    return list(images.values())


def _read_row(row: dict[str, str], image: LabelledImage, head: str, line: int) -> NamedBox | str | None:
    """The box of a row, or what is wrong with it; None where there is none. The image gets the size that is stated."""
    sides = [plain_number(row.get(side) or "0") for side in ("width", "height")]
    if None in sides or any(side % 1 or side < 0 for side in sides if side is not None):
        return f"width and height must be whole numbers ({shorten([row.get('width'), row.get('height')])})"
    size = int(sides[0] or 0), int(sides[1] or 0)
    if 0 not in size:
        if image.stated_wh not in ((0, 0), size):
            return f"the image is {size[0]}x{size[1]} here, but {image.stated_wh[0]}x{image.stated_wh[1]} above"
        image.stated_wh = size
    texts = [row[corner] for corner in _CORNERS]
    if not any((row["class"], *texts)):
        return None
    corners = [plain_number(text) for text in texts]
    if None in corners:
        corner = corners.index(None)
        return f"{_CORNERS[corner]} must be a plain finite number ({shorten(texts[corner])})"
    x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
    if x2 < x1 or y2 < y1:
        return f"xmax < xmin or ymax < ymin ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    return NamedBox(row["class"], (x1, y1, x2, y2), head, line)
