"""Memory and time of training's data path by the number of images, from shards and from files.

python benchmarks/shards_growth.py FOLDER --write: small JPEGs of noise with 8 boxes each, 1 000, 10 000 and 100 000 of
them as shards, the first two as YOLO files as well. Then python benchmarks/shards_growth.py FOLDER --out FILE.json
measures, each in a process of its own: the time to open the dataset, to the first batch, the images a second, and the
peak of resident memory, of the process and what its workers have to themselves, over an epoch or the seconds given.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anchorite.data import (
    AugmentConfig,
    DatasetIndex,
    EpochBatches,
    HostPainter,
    ImageStore,
    Loader,
    LoaderConfig,
    Record,
    SampleConfig,
    StreamBatches,
    StreamSamples,
    TrainSamples,
    as_split,
    open_dataset,
)
from anchorite.data.convert import write_dataset

AMOUNTS = (1_000, 10_000, 100_000)
FILES_UP_TO = 10_000
SIDE_PX, OBJECTS, KINDS = 96, 8, 64
BATCH = 16


def write_all(folder: Path) -> None:
    """The datasets; images are copies of a few different ones."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(KINDS):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        image = cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(pictures / f"{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    for amount in AMOUNTS:
        records = as_split([_record(pictures, number, rng) for number in range(amount)])
        index = DatasetIndex(pictures, "coco", ("a", "b", "c"), {"train": records})
        write_dataset(index, folder / f"shards-{amount}", "shards", shard_bytes=8_000_000)
        if amount <= FILES_UP_TO:
            write_dataset(index, folder / f"files-{amount}", "yolo")
    shutil.rmtree(pictures)


def _record(pictures: Path, number: int, rng: np.random.Generator) -> Record:
    corners = np.sort(rng.uniform(0, SIDE_PX, (OBJECTS, 2, 2)), axis=1).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    return Record(
        path=pictures / f"{number % KINDS}.jpg",
        width=SIDE_PX,
        height=SIDE_PX,
        boxes_xyxy=corners,
        class_ids=rng.integers(0, 3, OBJECTS),
        ignored=np.zeros(OBJECTS, bool),
        areas=sides.prod(axis=1),
        origins=tuple(f"labels/{number:06d}.txt:{row}" for row in range(1, OBJECTS + 1)),
    )


def measure(data: Path, image_size: int, workers: int, seconds: float, mosaic: float) -> dict[str, Any]:
    """Figures of one dataset, measured in this process from its start on."""
    began = time.perf_counter()
    before = _megabytes("VmRSS")
    dataset = open_dataset(data)
    opened = time.perf_counter() - began
    records, samples = dataset.splits["train"], SampleConfig(AugmentConfig(mosaic=mosaic), image_size, seed=0)
    options = LoaderConfig(batch_size=BATCH, workers=workers)
    if dataset.format == "shards":
        streamed = StreamSamples(records, samples)  # type: ignore[arg-type]
        loader = Loader(HostPainter(StreamBatches(streamed, options)))
    else:
        store = ImageStore(records, image_size, "none")
        loader = Loader(HostPainter(EpochBatches(TrainSamples(store, samples), options)))
    with loader:
        batches = iter(loader)
        images = len(next(batches).indices)
        first = time.perf_counter() - began
        started, images_then = time.perf_counter(), images
        peak_of_workers = 0.0
        for number, batch in enumerate(batches):
            images += len(batch.indices)
            if number % 16 == 0:
                peak_of_workers = max(peak_of_workers, _workers_private())
            if time.perf_counter() - started > seconds:
                break
        rate = (images - images_then) / (time.perf_counter() - started)
        batches.close()
    return {
        "format": dataset.format,
        "images_in_all": len(records),
        "workers": workers,
        "mosaic": mosaic,
        "image_size": image_size,
        "images_drawn": images,
        "open_s": round(opened, 3),
        "first_batch_s": round(first, 3),
        "images_per_s": round(rate, 1),
        "peak_mb": round(_megabytes("VmHWM"), 1),
        "beyond_imports_mb": round(_megabytes("VmHWM") - before, 1),
        "workers_private_mb": round(peak_of_workers, 1),
    }


def _megabytes(name: str, process: str = "self") -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def _workers_private() -> float:
    """Megabytes that the worker processes have to themselves."""
    total = 0
    for process in multiprocessing.active_children():
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        total += sum(int(number) for number in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))
    return total / 1024


def main() -> None:
    """Write the data, or measure and print one line of JSON, or measure everything in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--mosaic", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=SIDE_PX)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", nargs="+", help="names of datasets in the folder")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.write:
        write_all(given.data)
        return
    context, figures = multiprocessing.get_context("spawn"), []
    for name in given.only or sorted((one.name for one in given.data.iterdir()), key=lambda name: (name[0], len(name))):
        for workers in given.workers:
            # Not a pool's process, which may have no children of its own.
            ours, theirs = context.Pipe()
            arguments = (theirs, given.data / name, given.image_size, workers, given.seconds, given.mosaic)
            process = context.Process(target=_send, args=arguments)
            process.start()
            figures.append(ours.recv())
            process.join()
            print(json.dumps(figures[-1]), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


def _send(pipe: Any, *arguments: Any) -> None:
    pipe.send(measure(*arguments))


if __name__ == "__main__":
    main()
