"""Small datasets with planted defects; every picture is a texture of its own, so that none resembles another."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.anchors import AnchorSet
from anchorite.data import open_dataset
from anchorite.inspect import Inspection, inspect_dataset
from tests.data.format_samples import write_text

WIDTH, HEIGHT = 128, 96


def texture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """An image (height, width, 3) of coloured spots of about 8 px."""
    spots = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(spots, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def write_texture(path: Path, seed: int, width: int = WIDTH, height: int = HEIGHT) -> Path:
    return write_picture(path, texture(seed, width, height))


def write_picture(path: Path, image: NDArray[np.uint8], quality: int = 95) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes())
    return path


def yolo_folder(folder: Path, splits: dict[str, dict[str, str]], names: str = "[cat, dog]") -> Path:
    """A YOLO dataset: by split and stem, the rows of a label file; every image another texture."""
    seed = 0
    for split, rows in splits.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for stem, text in rows.items():
            write_texture(folder / "images" / split / f"{stem}.png", seed)
            write_text(folder / "labels" / split / f"{stem}.txt", text)
            seed += 1
    listed = "".join(f"{split}: images/{split}\n" for split in splits)
    write_text(folder / "data.yaml", f"{listed}names: {names}\n")
    return folder


def healthy(folder: Path) -> Path:
    """Two training images, one to validate on: nothing to be found at 640 px."""
    return yolo_folder(
        folder,
        {
            "train": {"a": "0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.1 0.1\n", "b": "1 0.5 0.5 0.3 0.4\n"},
            "val": {"c": "0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.1 0.1\n", "d": "0 0.4 0.5 0.2 0.2\n"},
        },
    )


def inspected(path: Path, format: str | None = None, image_size: int = 640) -> Inspection:
    dataset = open_dataset(path, format, skip_bad=True)  # type: ignore[arg-type]
    return inspect_dataset(dataset, AnchorSet.coco_p5(), image_size)
