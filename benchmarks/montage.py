"""Large images with known labels: the images of a split side by side, as a dataset of its own.

    python benchmarks/montage.py DATA OUT [--split test] [--columns 4] [--rows 3]
    anchorite validate WEIGHTS OUT [--tile 640]

All images have to have one size. Images that do not fill a last montage are left out. Written as PNG with YOLO labels,
split val; labels that are neither right nor wrong (difficult, crowds) cannot be held and are refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from anchorite.data import Record, open_dataset
from anchorite.data.images import decode_image
from anchorite.errors import InputError


def main() -> None:
    """Write the dataset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--rows", type=int, default=3)
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data)
    records = dataset.splits[arguments.split]
    if len({(record.height, record.width) for record in records}) > 1 or any(one.ignored.any() for one in records):
        raise InputError(f"{arguments.data}: images of one size, without ignored labels, are wanted")
    for folder in ("images/val", "labels/val"):
        (arguments.out / folder).mkdir(parents=True)
    names = "".join(f"  {number}: {name!r}\n" for number, name in enumerate(dataset.class_names))
    (arguments.out / "data.yaml").write_text(f"val: images/val\nnames:\n{names}", encoding="utf-8")
    number_of = arguments.columns * arguments.rows
    for number in range(len(records) // number_of):
        write(arguments.out, f"{number:02}", records[number * number_of :][:number_of], arguments.columns)
    print(f"{len(records) // number_of} images of {number_of} each: {arguments.out}")


def write(out: Path, name: str, records: Sequence[Record], columns: int) -> None:
    """One montage and its labels."""
    height, width = records[0].height, records[0].width
    canvas = np.zeros((len(records) // columns * height, columns * width, 3), np.uint8)
    lines = []
    for place, record in enumerate(records):
        top, left = place // columns * height, place % columns * width
        canvas[top : top + height, left : left + width] = decode_image(record.path)
        moved = np.add(record.boxes_xyxy, (left, top, left, top)) / (canvas.shape[1::-1] * 2)
        middles, sides = (moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]
        for class_id, row in zip(record.class_ids, np.concatenate([middles, sides], axis=1), strict=True):
            lines.append(" ".join([str(class_id), *(f"{value:.8f}" for value in row)]) + "\n")
    cv2.imwrite(str(out / "images/val" / f"{name}.png"), canvas[..., ::-1])
    (out / "labels/val" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
