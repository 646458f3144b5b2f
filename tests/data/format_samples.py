"""Small datasets on disk for the tests of the label formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from anchorite.data.dataset import DatasetIndex


def write_image(path: Path, width: int = 64, height: int = 48, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    extra: dict[str, Any] = {"exif": exif} if orientation is not None else {}
    if path.suffix.lower() in (".tif", ".tiff") and orientation is not None:
        extra = {"tiffinfo": {274: orientation}}
    Image.new("RGB", (width, height), (90, 20, 160)).save(path, **extra)
    return path


def write_text(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def yolo_dataset(
    folder: Path, rows: dict[str, str | bytes], yaml: str | None = None, names: str = "[cat, dog]"
) -> Path:
    """images/train and labels/train: a 64x48 image for each stem, and its label text."""
    for stem, text in rows.items():
        write_image(folder / "images" / "train" / f"{stem}.png")
        write_text(folder / "labels" / "train" / f"{stem}.txt", text)
    write_text(folder / "data.yaml", yaml if yaml is not None else f"train: images/train\nnames: {names}\n")
    return folder


def coco_json(
    path: Path,
    annotations: list[Any],
    images: list[Any] | None = None,
    categories: list[Any] | None = None,
) -> Path:
    content = {
        "images": images if images is not None else [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": annotations,
        "categories": categories if categories is not None else [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    return write_text(path, json.dumps(content))


def voc_xml(*objects: str, size: tuple[int, int] | None = (64, 48), filename: str = "a.png") -> str:
    claimed = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    body = "\n".join(objects)
    return f"<annotation>\n<filename>{filename}</filename>\n{claimed}\n{body}\n</annotation>\n"


def voc_object(name: str, *corners: float | str, extra: str = "") -> str:
    """Three lines: object, bndbox, end."""
    tags = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name>{extra}\n<bndbox>{tags}</bndbox>\n</object>"


def kinds(index: DatasetIndex) -> list[str]:
    return [adjustment.kind for adjustment in index.adjustments]


def boxes(index: DatasetIndex, split: str = "train", record: int = 0) -> list[list[float]]:
    return index.splits[split][record].boxes_xyxy.round(6).tolist()
