"""What a training run needs on given machines: time, memory, network, storage and processor cores, by arithmetic.

`python tools/scale.py --images 2000000 --classes 365 --boxes 30000000 --gpus 8` prints a line for each size, `--tables`
every table of docs/scale.md, and `--write docs/scale.md` puts them in their places there. Where its constants come from
stands in tools/scaling.py.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import scaling
from tools.scaling import NETWORKS, OBJECTS365, OPEN_IMAGES, Data, Plan, parameters, ring_bytes

GLOO = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "2026-11-27-ranks-bytes.json"
RANKS = (2, 8, 128)
WORKERS = (64, 104)  # of a node: as many as eight ranks start by themselves, and all that its cores leave room for


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """As Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(cell if isinstance(cell, str) else short(cell) for cell in line) + " |" for line in lines
    )


def short(number: object) -> str:
    """A number in three digits, thousands apart; a whole one as it is."""
    if isinstance(number, int):
        return f"{number:,}".replace(",", " ")
    assert isinstance(number, float)
    if number == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(number))))
    digits = round(number, 2 - math.floor(math.log10(abs(number))))
    return f"{digits:,.{decimals}f}".replace(",", " ")


def network_table() -> str:
    """What each rank sends a step: the gradients in a ring; the payloads of the rest."""
    titles = ("size", "parameters", *(f"{world} ranks, MB" for world in RANKS), "small sums, B", "sync_batch_norm, kB")
    rows = []
    for size in NETWORKS:
        sent = (ring_bytes(4 * parameters(size, 80), world) / 1e6 for world in RANKS)
        rest = scaling.small_payload(size), scaling.norm_payload(size) / 1e3
        rows.append((size, parameters(size, 80), *sent, *rest))
    return table(titles, rows)


def gloo_table() -> str:
    """What was measured on gloo beside what is computed, of all ranks together."""
    titles = ("size", "ranks", "sync_batch_norm", "computed, MB", "measured, MB", "more", "packets")
    rows = []
    for one in json.loads(GLOO.read_text(encoding="utf-8"))["steps"]:
        size, world, is_shared = one["size"], one["ranks"], one["sync_batch_norm"]
        payload = 4 * parameters(size, 80) + scaling.small_payload(size) + is_shared * scaling.norm_payload(size)
        computed = world * ring_bytes(payload, world)
        more = f"{100 * (one['bytes'] / computed - 1):.2f} %"
        shared = "on" if is_shared else "off"
        rows.append((size, world, shared, f"{computed / 1e6:.2f}", f"{one['bytes'] / 1e6:.2f}", more, one["packets"]))
    return table(titles, rows)


def gpu_table() -> str:
    """What each size asks of a GPU, P5 at 640 px and P6 at 1280 px."""
    titles = ("size", "px", "Gflop an image", "images/s", "memory, 16 images, GB", "most images", "checkpoint, MB")
    rows = []
    for size, network in NETWORKS.items():
        side = 640 if network.levels == 3 else 1280
        flops = 3 * network.flops * scaling.area(side)
        rate = 16 / scaling.gpu_step_seconds(size, side, 16)
        state, held = (scaling.gpu_bytes(size, 80, side, batch) for batch in (0, 16))
        most = int((scaling.GPU_BYTES - state) / ((held - state) / 16))
        checkpoint = scaling.CHECKPOINT_BYTES * parameters(size, 80)
        rows.append((size, side, flops / 1e9, rate, held / 1e9, most, checkpoint / 1e6))
    return table(titles, rows)


def core_table() -> str:
    """What loader processes deliver, with images of the two data sets' kind."""
    titles = ("images come from", "px", "a core, ms an image", *(f"{count} processes, images/s" for count in WORKERS))
    rows = []
    for name, tiles in (("memory", 0), ("shards", scaling.TILES_OF_SHARDS), ("files", scaling.TILES_OF_FILES)):
        for side in (640, 1280):
            one = scaling.loader_rate(OBJECTS365, Plan(side=side, workers=1, tiles=tiles))
            rows.append((name, side, 1e3 / one, *(count * one for count in WORKERS)))
    return table(titles, rows)


def data_table() -> str:
    """What a data set takes, whatever the network."""
    rows = {
        "images as they are, TB": lambda data: data.images * data.file_bytes / 1e12,
        "shards of 128 MB": lambda data: math.ceil(data.images * data.file_bytes / 128e6),
        "label index, GB": lambda data: scaling.index_bytes(data) / 1e9,
        "first opening, a core's minutes": lambda data: scaling.LABEL_S * data.boxes / 60,
        "later openings, s": lambda data: scaling.REOPEN_S * data.boxes,
        "decoded at 640 px, TB": lambda data: scaling.store_bytes(data.images, 640) / 1e12,
        "val split decoded, shared by all ranks, GB": lambda data: scaling.store_bytes(data.val_images, 640) / 1e9,
        "detections on val sent to rank 0, at most GB": lambda data: scaling.found_bytes(data) / 1e9,
    }
    titles = ("", OBJECTS365.name, OPEN_IMAGES.name)
    return table(titles, ((name, made(OBJECTS365), made(OPEN_IMAGES)) for name, made in rows.items()))


def run_table(data: Data, plan: Plan, sizes: Iterable[str] = "nsmlx") -> str:
    """A run of each size, of 300 epochs with a validation each."""
    rates = ("GPUs could", "loader could", "the run")
    titles = ("size", *rates, "bottleneck", "read, GB/s", "epoch, s", "validation, s", "300 epochs, h")
    rows = []
    for size in sizes:
        one, epoch = scaling.step(size, data, plan), scaling.epoch_seconds(size, data, plan)
        could, rate = (plan.batch * plan.gpus / seconds for seconds in (one.gpu + one.exposed, one.seconds))
        loader, read = plan.nodes * scaling.loader_rate(data, plan), rate * data.file_bytes / plan.nodes / 1e9
        measuring = sum(scaling.validation_seconds(size, data, plan)[1:])
        first, hours = scaling.bottleneck(size, data, plan), 300 * (epoch + measuring) / 3600
        rows.append((size, could, loader, rate, first, read, epoch, measuring, hours))
    return table(titles, rows)


def link_table() -> str:
    """Time of the gradients beside that of a step."""
    titles = ("size", "a step, ms", "8 ranks, NVLink, ms", "128 ranks, 400 Gb/s, ms", "of these not hidden, ms")
    rows = []
    for size in "nsmlx":
        here, far = (scaling.step(size, OBJECTS365, Plan(gpus=gpus)) for gpus in (8, 128))
        rows.append((size, *(1e3 * seconds for seconds in (here.gpu, here.network, far.network, far.exposed))))
    return table(titles, rows)


def validation_table() -> str:
    """Seconds of a validation on one node."""
    titles = ("data", "size", "decoding, once a run, s", "forward passes, s", "scoring on rank 0, s")
    pairs = [(data, size) for data in (OBJECTS365, OPEN_IMAGES) for size in "nx"]
    return table(titles, ((data.name, size, *scaling.validation_seconds(size, data, Plan())) for data, size in pairs))


TABLES: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "network": network_table,
        "gloo": gloo_table,
        "gpu": gpu_table,
        "cores": core_table,
        "data": data_table,
        "default-workers": lambda: run_table(OBJECTS365, Plan(workers=64)),
        "one-node": lambda: run_table(OBJECTS365, Plan()),
        "sixteen-nodes": lambda: run_table(OBJECTS365, Plan(gpus=128)),
        "open-images": lambda: run_table(OPEN_IMAGES, Plan()),
        "links": link_table,
        "validation": validation_table,
    }
)


def filled(text: str) -> str:
    """A page with its tables put in: each stands between a comment that names it and one that ends it."""

    def replaced(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {
        "images": (2_000_000, "training images"),
        "classes": (365, "classes"),
        "boxes": (30_000_000, "boxes of all images"),
        "val-images": (80_000, "validation images"),
        "gpus": (8, "GPUs of all nodes, eight a node"),
        "batch": (16, "images a GPU and step"),
        "image-size": (640, "side of the network input, px"),
        "workers": (104, "loader processes a node"),
        "tiles": (2, "images decoded a sample: 0 where they are kept, 2 from shards, 4 from files"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(
            f"--{name}", type=_at_least(0 if name in ("tiles", "val-images") else 1), default=default, help=meaning
        )
    parser.add_argument("--tables", action="store_true", help="print every table of docs/scale.md")
    parser.add_argument("--write", type=Path, help="put the tables into this page")
    given = parser.parse_args(arguments)
    if given.write is not None:
        given.write.write_text(filled(given.write.read_text(encoding="utf-8")), encoding="utf-8")
    elif given.tables:
        print("\n\n".join(f"{name}\n\n{made()}" for name, made in TABLES.items()))
    else:
        data = Data("given", given.images, given.classes, given.boxes, given.val_images)
        plan = Plan(given.image_size, given.gpus, given.batch, given.workers, given.tiles)
        print(run_table(data, plan, NETWORKS))
        print(f"\nlabel index {short(scaling.index_bytes(data) / 1e9)} GB, images {short(_terabytes(data))} TB")


def _terabytes(data: Data) -> float:
    return data.images * data.file_bytes / 1e12


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: at least {least}")
        return int(text)

    return number


if __name__ == "__main__":
    main()
