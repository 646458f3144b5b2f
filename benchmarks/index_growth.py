"""Opening datasets of 10 thousand to 10 million boxes: the first time, when the labels are read, and the next.

Run it as `python benchmarks/index_growth.py coco 1000000 10000000 --out FILE.json`. Each opening is a process of its
own, with a cache folder of its own. The images are links to one small JPEG. What was made lies under --folder
and is used again; remove it by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BOXES_AN_IMAGE = 10
WIDTH, HEIGHT = 64, 48
_MOST_LINKS = 10_000  # to one file; file systems stop somewhere above
_SETTLED_S = 3  # files changed in the last seconds are not trusted to a cache


def main() -> None:
    """Measure the sizes asked for and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=["coco", "yolo", "one"])
    parser.add_argument("boxes", nargs="+")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/anchorite-index-growth"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.format == "one":
        print(json.dumps(_open_once(Path(options.boxes[0]))))
        return
    rows = []
    for boxes in map(int, options.boxes):
        root = options.folder / f"{options.format}-{boxes}"
        if not (root / "complete").exists():
            _write(root, options.format, boxes // BOXES_AN_IMAGE)
            time.sleep(_SETTLED_S)
        rows.append(_measure(root, options.folder / "cache", boxes))
        print(json.dumps(rows[-1]), flush=True)
    if options.out is not None:
        facts = {"format": options.format, "cores": os.cpu_count(), "boxes_an_image": BOXES_AN_IMAGE, "openings": rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


def _measure(root: Path, cache: Path, boxes: int) -> dict[str, Any]:
    shutil.rmtree(cache, ignore_errors=True)
    environment = {**os.environ, "ANCHORITE_INDEX_CACHE": str(cache)}
    figures: dict[str, Any] = {"boxes": boxes, "images": boxes // BOXES_AN_IMAGE}
    for which in ("first", "second", "third"):
        words = [sys.executable, __file__, "one", str(root)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        figures[which] = json.loads(done.stdout)
    figures["cache_mb"] = sum(path.stat().st_size for path in cache.glob("index-*")) / 1e6 if cache.exists() else 0.0
    assert figures["first"]["boxes"] == figures["second"]["boxes"] == boxes
    shutil.rmtree(cache, ignore_errors=True)
    return figures


def _open_once(root: Path) -> dict[str, Any]:
    from anchorite.data import open_dataset

    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    start, start_cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset(root)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    records = dataset.splits["train"]
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "before_mb": round(before_mb),
        "boxes": records.num_boxes(),
    }


def _write(root: Path, format: str, num_images: int) -> None:
    shutil.rmtree(root, ignore_errors=True)
    images = root / "images" / "train"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(".jpg", noise)
    for index in range(num_images):
        path = images / f"{index:07d}.jpg"
        if index % _MOST_LINKS == 0:
            original = path
            path.write_bytes(encoded.tobytes())
        else:
            os.link(original, path)
    if format == "coco":
        _write_coco(root, num_images)
    else:
        _write_yolo(root, num_images)
    (root / "complete").touch()


def _boxes(num_images: int) -> Iterator[tuple[int, int, float, float, float, float]]:
    """Image, class, and x, y, width, height in pixels, the images in no order."""
    numbers = random.Random(0)
    for count in range(num_images * BOXES_AN_IMAGE):
        image = count * 7_919 % num_images if num_images % 7_919 else count % num_images
        x, y = numbers.uniform(0, 40), numbers.uniform(0, 30)
        yield image, count % 80, x, y, numbers.uniform(1, 20), numbers.uniform(1, 15)


def _write_coco(root: Path, num_images: int) -> None:
    folder = root / "annotations"
    folder.mkdir()
    with (folder / "instances_train.json").open("w") as file:
        file.write('{"info": {"year": 2026}, "images": [')
        for index in range(num_images):
            image = {"id": index + 1, "file_name": f"{index:07d}.jpg", "width": WIDTH, "height": HEIGHT, "license": 1}
            file.write((", " if index else "") + json.dumps(image))
        file.write('], "annotations": [')
        for count, (image_index, class_id, x, y, width, height) in enumerate(_boxes(num_images)):
            file.write(
                f'{", " if count else ""}{{"id": {count + 1}, "image_id": {image_index + 1}, '
                f'"category_id": {class_id + 1}, '
                f'"bbox": [{x:.2f}, {y:.2f}, {width:.2f}, {height:.2f}], "area": {width * height:.2f}, '
                f'"iscrowd": 0, "segmentation": []}}'
            )
        categories = [{"id": class_id + 1, "name": f"class {class_id}"} for class_id in range(80)]
        file.write(f'], "categories": {json.dumps(categories)}}}\n')


def _write_yolo(root: Path, num_images: int) -> None:
    labels = root / "labels" / "train"
    labels.mkdir(parents=True)
    numbers = random.Random(0)
    for index in range(num_images):
        rows = [
            f"{(index + box) % 80} {numbers.uniform(0.3, 0.7):.6f} {numbers.uniform(0.3, 0.7):.6f} "
            f"{numbers.uniform(0.1, 0.5):.6f} {numbers.uniform(0.1, 0.5):.6f}\n"
            for box in range(BOXES_AN_IMAGE)
        ]
        (labels / f"{index:07d}.txt").write_text("".join(rows))
    names = ", ".join(f"class {class_id}" for class_id in range(80))
    (root / "data.yaml").write_text(f"train: images/train\nnames: [{names}]\n")


if __name__ == "__main__":
    main()
