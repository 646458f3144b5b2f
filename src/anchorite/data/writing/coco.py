"""Writing COCO: images/SPLIT and annotations/instances_SPLIT.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorite.data.records import Record
from anchorite.data.writing.naming import PlacedRecord
from anchorite.data.writing.numbers import json_text, side_between, whole_if_possible


def image_path(out: Path, split: str, placed: PlacedRecord) -> Path:
    """Where the image of a record goes."""
    return out / "images" / split / placed.place


def write_coco_labels(out: Path, splits: Mapping[str, Sequence[PlacedRecord]], class_names: Sequence[str]) -> list[str]:
    """A json a split. Categories get the ids 1 to K in class order; the format holds everything, so [] is returned."""
    folder = out / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / f"instances_{split}.json").write_text(json_text(_content(records, class_names)), encoding="ascii")
    return []


def _content(records: Sequence[PlacedRecord], class_names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, placed in enumerate(records, start=1):
        record = placed.record
        images.append({"id": image_id, "file_name": str(placed.place), "width": record.width, "height": record.height})
        for box in _boxes(record):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _boxes(record: Record) -> list[dict[str, Any]]:
    rows = zip(record.boxes_xyxy.tolist(), record.class_ids, record.areas.tolist(), record.ignored, strict=True)
    return [
        {
            "category_id": int(class_id) + 1,
            "bbox": [whole_if_possible(side) for side in (x1, y1, side_between(x1, x2), side_between(y1, y2))],
            "area": whole_if_possible(area),
            "iscrowd": int(ignored),
        }
        for (x1, y1, x2, y2), class_id, area, ignored in rows
    ]
