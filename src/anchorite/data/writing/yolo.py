"""Writing YOLO: images/SPLIT, labels/SPLIT and data.yaml, which is written last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from anchorite.data.records import Record
from anchorite.data.writing.naming import PlacedRecord
from anchorite.data.writing.numbers import shortest_close


def image_path(out: Path, split: str, placed: PlacedRecord) -> Path:
    """Where the image of a record goes."""
    return out / "images" / split / placed.place


def write_yolo_labels(out: Path, splits: Mapping[str, Sequence[PlacedRecord]], class_names: Sequence[str]) -> list[str]:
    """A txt file an image, empty for background, and data.yaml. Returns what the format cannot hold, in words."""
    num_ignored = 0
    for split, records in splits.items():
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        for placed in records:
            path = out / "labels" / split / placed.stem_path.with_name(f"{placed.place.stem}.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_rows(placed.record), encoding="ascii")
            num_ignored += int(placed.record.ignored.sum())
    config = {split: f"images/{split}" for split in splits} | {"names": list(class_names)}
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=1 << 30)
    (out / "data.yaml").write_text(text, encoding="utf-8")
    return [f"{num_ignored} crowd or difficult boxes left out: YOLO cannot mark them"] if num_ignored else []


def _rows(record: Record) -> str:
    lines = []
    for class_id, box, ignored in zip(record.class_ids, record.boxes_xyxy.tolist(), record.ignored, strict=True):
        if ignored:
            continue
        x1, y1, x2, y2 = box
        width, height = record.width, record.height
        numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{class_id} " + " ".join(shortest_close(number) for number in numbers) + "\n")
    return "".join(lines)
