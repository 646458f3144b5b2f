"""Writing Pascal VOC: JPEGImages, Annotations, classes.txt and ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from anchorite.data.formats.paths import is_image_name
from anchorite.data.records import Record
from anchorite.data.writing.naming import PlacedRecord
from anchorite.data.writing.numbers import exact
from anchorite.errors import InputError


def image_path(out: Path, split: str, placed: PlacedRecord) -> Path:
    """Where the image of a record goes: all splits share a folder."""
    return out / "JPEGImages" / placed.place


def write_voc_labels(out: Path, splits: Mapping[str, Sequence[PlacedRecord]], class_names: Sequence[str]) -> list[str]:
    """An xml an image, the class names, and the image sets. Returns what the format cannot hold, in words.

    Raises InputError for a class name that a list of lines cannot hold.
    """
    for name in class_names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"the class name {name!r} cannot stand in a VOC dataset; take off its outer spaces")
    lists = out / "ImageSets" / "Main"
    for folder in (out / "JPEGImages", out / "Annotations", lists):
        folder.mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    num_areas = 0
    for split, records in splits.items():
        for placed in records:
            path = out / "Annotations" / placed.stem_path.with_name(f"{placed.place.stem}.xml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_xml(placed, class_names), encoding="utf-8")
            num_areas += _num_own_areas(placed.record)
        (lists / f"{split}.txt").write_text("".join(f"{_listed(placed)}\n" for placed in records), encoding="utf-8")
    return [f"{num_areas} annotated areas left out: VOC has boxes alone"] if num_areas else []


def _listed(placed: PlacedRecord) -> str:
    stem = placed.stem_path
    return str(placed.place) if is_image_name(stem.name) else str(stem)  # "a.jpg" of a.jpg.png is taken for an image


def _num_own_areas(record: Record) -> int:
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    return int((~np.isclose(record.areas, sides[:, 0] * sides[:, 1], rtol=1e-6)).sum())


def _xml(placed: PlacedRecord, class_names: Sequence[str]) -> str:
    record = placed.record
    lines = [
        "<annotation>",
        f"\t<filename>{escape(placed.place.name)}</filename>",
        f"\t<size><width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>",
    ]
    for class_id, box, ignored in zip(record.class_ids, record.boxes_xyxy.tolist(), record.ignored, strict=True):
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(class_names[class_id])}</name>",
            f"\t\t<difficult>{int(ignored)}</difficult>",
            "\t\t<bndbox>" + "".join(f"<{tag}>{exact(value)}</{tag}>" for tag, value in corners) + "</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>"]) + "\n"
