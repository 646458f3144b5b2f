"""Open Images: *-annotations-bbox.csv, a box a row: ImageID, LabelName, XMin, XMax, YMin, YMax, IsGroupOf and others.

Coordinates are parts of the image's size; an ImageID is the image's name without suffix; IsGroupOf marks what is
ignored, as a crowd; Confidence is the score. Labels such as /m/01yrx get their names from class-descriptions*.csv
beside the tables. The published tables list far more images than anyone loads: rows of images that are not here are
passed over and counted.

Format: https://storage.googleapis.com/openimages/web/download_v7.html#df-bounding-boxes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from anchorite.data.formats.common import ClassesAndSplits, Fence, ReadingLog, is_image_name, plain_number, walk_images
from anchorite.data.formats.named import LabelledImage, NamedBox, home_of, label_files, place_of, read_named
from anchorite.data.formats.yolo import RANGE_TOLERANCE
from anchorite.errors import InputError
from anchorite.reading import read_csv, read_csv_header, shorten

LOOKED_FOR = "Open Images: *.csv with columns ImageID, LabelName, XMin, XMax, YMin, YMax"
SUFFIXES = (".csv",)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NEEDED = {"imageid", "labelname", *_CORNERS}
_DESCRIPTIONS = "class-descriptions"


class Found(NamedTuple):
    """The tables of boxes, with the number of each of their columns, and those of class names."""

    tables: dict[Path, dict[str, int]]
    descriptions: list[Path]


def find(root: Path, log: ReadingLog, fence: Fence) -> Found | None:
    """The tables in a folder and the folders in it, or the one that the user named with the class names beside it."""
    tables: dict[Path, dict[str, int]] = {}
    for path in label_files(root, fence, *SUFFIXES):
        names = [cell.lower() for cell in read_csv_header(path)[1]]
        if set(names) >= _NEEDED:
            tables[path] = {name: names.index(name) for name in names}
    if not tables:
        return None
    near = label_files(root if root.is_dir() else root.parent, fence, *SUFFIXES)
    return Found(tables, [path for path in near if _DESCRIPTIONS in path.name.lower()])


def read(found: Found, root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names, sorted, and the splits: those that the tables' names or folders speak of, else those of the
    images' folders.
    """
    names, home = _read_names(found.descriptions, log), home_of(root)
    present = {path.stem.casefold() for path in walk_images(home, Fence([home], allow_outside), log)}
    entries: list[LabelledImage] = []
    for path, columns in found.tables.items():
        log.dependencies.add_file(path)
        entries += _read_table(path, columns, names, present, root, log)
    if not entries:
        log.raise_if_bad(root)
        raise InputError(
            f"{root}: none of the images that {next(iter(found.tables))} lists is here, in or below {home}"
        )
    return read_named(entries, home, root, log, allow_outside)


def _read_names(paths: Iterable[Path], log: ReadingLog) -> dict[str, str]:
    """The names of labels; a name that two labels have is told apart by these."""
    names: dict[str, str] = {}
    for path in paths:
        log.dependencies.add_file(path)
        for line, cells in read_csv(path):
            label, name, *_ = [*cells, ""]
            if line > 1 or label.strip().lower() != "labelname":
                names.setdefault(label.strip(), name.strip())
    shared = Counter(names.values())
    return {label: name if shared[name] == 1 else f"{name} ({label})" for label, name in names.items() if name}


def _read_table(
    path: Path, columns: dict[str, int], names: dict[str, str], present: set[str], root: Path, log: ReadingLog
) -> Sequence[LabelledImage]:
    """The images of a table that are here."""
    folders, split = place_of(path, root)
    images: dict[str, LabelledImage] = {}
    for line, cells in read_csv(path):
        if line == 1:
            continue
        row = {name: cells[column].strip() if column < len(cells) else "" for name, column in columns.items()}
        origin, name = f"{path}:{line}", row["imageid"]
        if not name:
            log.bad(origin, f"the row names no image ({shorten(','.join(cells))})")
            continue
        stem = Path(name).stem if is_image_name(name) else name
        if stem.casefold() not in present:
            log.counted("unused-label", origin, "rows of images that are not here")
            continue
        if stem not in images:
            images[stem] = LabelledImage(folders + stem, origin, split=split, is_normalised=True)
        corners = [plain_number(row[corner]) for corner in _CORNERS]
        is_group = plain_number(row.get("isgroupof") or "0")
        x1, y1, x2, y2 = (-1.0 if corner is None else corner for corner in corners)
        if not all(-RANGE_TOLERANCE <= corner <= 1 + RANGE_TOLERANCE for corner in (x1, y1, x2, y2)):
            shown = [row[corner] for corner in _CORNERS]
            reason = f"the corners must be numbers in 0..1, parts of the image's size ({shorten(shown)})"
        elif x2 < x1 or y2 < y1:
            reason = f"XMax < XMin or YMax < YMin ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        elif is_group not in (-1, 0, 1):
            reason = f"IsGroupOf must be 1, 0 or -1 ({shorten(row['isgroupof'])})"
        else:
            label = row["labelname"]
            confidence = row.get("confidence") or "1"
            score = None if (number := plain_number(confidence)) == 1 else confidence if number is None else number
            box = NamedBox(names.get(label, label), (x1, y1, x2, y2), f"{path}:", line, is_group == 1, score)
            images[stem].boxes.append(box)
            continue
        images[stem].faults.append((origin, reason))
    return list(images.values())
