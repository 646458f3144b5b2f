"""How the cost grows with the work: batch, image size, classes, objects an image, and the size of a dataset."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from anchorite.benchmark import Figure, Sample, batch_for, interleaved, training_step, whole_step
from anchorite.data import (
    AugmentConfig,
    EpochBatches,
    ImageStore,
    LoaderConfig,
    Record,
    SampleConfig,
    SampleKey,
    TrainSamples,
    open_dataset,
)
from anchorite.devices import choose_precision
from benchmarks.loss import make_works
from benchmarks.measure import Comparison, Outcome, Settings

_ROUNDS, _READING_ROUNDS = 7, 3
_ONE_ROUND_FROM = 50_000  # images, because reading so many takes long
_CLASSES, _OBJECTS = 80, 8
_MOST_LINKS = 10_000  # to one file; file systems stop somewhere above
_THUMBNAIL_HW = (24, 32)


@dataclass(frozen=True)
class Curve:
    """Seconds over an amount of work, one line each; `variable` names the amount."""

    name: str
    variable: str
    lines: dict[str, dict[int, Sample]]


@dataclass(frozen=True)
class _Work:
    """What one point is measured on."""

    batch: int = 16
    image_size: int = 640
    num_classes: int = _CLASSES
    objects: int = _OBJECTS


def benchmark_growth(settings: Settings) -> Outcome:
    """Every curve; plotted where the settings name a folder."""
    curves = [*_curves_of_work(settings), _curve_of_dataset(settings)]
    if settings.out is not None:
        plot_curves(curves, settings.out)
    figures = [
        Figure.of(f"{curve.name}, {line}, {curve.variable} {amount}", sample)
        for curve in curves
        for line, points in curve.lines.items()
        for amount, sample in points.items()
    ]
    comparisons = [_from_least_to_most(curve, line, points) for curve in curves for line, points in curve.lines.items()]
    return Outcome("growth", tuple(comparisons), tuple(figures))


def _from_least_to_most(curve: Curve, line: str, points: Mapping[int, Sample]) -> Comparison:
    least, most = min(points), max(points)
    return Comparison(
        f"{curve.name}, {line}, from {least} to {most}",
        Figure.of(f"{curve.variable} {most}", points[most]),
        Figure.of(f"{curve.variable} {least}", points[least]),
        "cost",
    )


def _curves_of_work(settings: Settings) -> list[Curve]:
    """Step at 320 px, head and loss at 640 px; 16 images, 80 classes, 8 objects, but for what the curve is over."""
    if settings.quick:
        batches, sizes, classes, objects = [1, 2], [64, 96], [1, 5], [0, 3]
        step, loss = _Work(2, 64), _Work(2, 64)
    else:
        batches, sizes = [1, 2, 4, 8, 16, 32], [160, 224, 320, 448, 640]
        classes, objects = [1, 3, 10, 30, 100, 300, 1000], [0, 1, 3, 10, 30, 100, 300]
        step, loss = _Work(image_size=320), _Work()
    varied: list[tuple[str, str, Sequence[int]]] = [
        ("batch", "images a batch", batches),
        ("size", "pixels a side", sizes),
        ("classes", "classes", classes),
        ("objects", "objects an image", objects),
    ]
    return [_curve(settings, name, variable, amounts, (step, loss)) for name, variable, amounts in varied]


def _curve(settings: Settings, name: str, variable: str, amounts: Sequence[int], works: tuple[_Work, _Work]) -> Curve:
    """Lines of our step, our head and loss, and the dense way's (with no more than 100 classes, for its memory)."""
    field = {"batch": "batch", "size": "image_size", "classes": "num_classes", "objects": "objects"}[name]
    lines: dict[str, dict[int, Sample]] = {"step": {}, "head and loss": {}, "dense way": {}}
    for amount in amounts:
        step_work, loss_work = (_Work(**{**vars(work), field: amount}) for work in works)
        functions = _functions(settings, step_work, loss_work)
        if loss_work.num_classes > 100:
            del functions["dense way"]
        taken = interleaved(functions, settings.rounds_or(_ROUNDS), device=settings.device)
        for line, sample in taken.items():
            lines[line][amount] = sample
    return Curve(name, variable, lines)


def _functions(settings: Settings, step_work: _Work, loss_work: _Work) -> dict[str, Callable[[], object]]:
    precision = choose_precision("auto", settings.device)
    name = "fp32" if precision.dtype is None else "bf16"
    ours, dense, _ = make_works(
        settings.device, loss_work.batch, loss_work.image_size, name, loss_work.objects, loss_work.num_classes
    )
    batch = batch_for(step_work.batch, step_work.image_size, step_work.objects, step_work.num_classes, settings.device)
    step = training_step("n", step_work.num_classes, step_work.image_size, settings.device, precision)
    return {"step": whole_step(step, batch), "head and loss": ours, "dense way": dense}


def _curve_of_dataset(settings: Settings) -> Curve:
    """Reading labels, opening a store that is filled already, and making ready to train, by number of images."""
    lines: dict[str, dict[int, Sample]] = {}
    for amount in (10, 20) if settings.quick else (100, 1000, 10_000, 100_000):
        with tempfile.TemporaryDirectory(prefix="anchorite-growth-") as folder:
            root = Path(folder) / "data"
            write_thumbnails(root, amount)
            records = open_dataset(root).splits["train"]
            store = _opened(records, Path(folder) / "cache")
            functions: dict[str, Callable[[], object]] = {
                "reading the labels": partial(open_dataset, root),
                "opening a filled store": partial(_opened, records, Path(folder) / "cache"),
                "making ready to train": partial(_first_batch, store),
            }
            rounds, warm_up = (1, 0) if amount > _ONE_ROUND_FROM else (settings.rounds_or(_READING_ROUNDS), 1)
            for line, sample in interleaved(functions, rounds, warm_up).items():
                lines.setdefault(line, {})[amount] = sample
    return Curve("dataset", "images", lines)


def _opened(records: Sequence[Record], cache: Path) -> ImageStore:
    store = ImageStore(records, max(_THUMBNAIL_HW), "disk", cache)
    store.build()
    return store


def _first_batch(store: ImageStore) -> Sequence[SampleKey]:
    """What a run does before its first image: samples, loader, the order of an epoch."""
    samples = TrainSamples(store, SampleConfig(AugmentConfig(), 64, 0))
    return next(EpochBatches(samples, LoaderConfig()).of_epoch(0))


def write_thumbnails(root: Path, amount: int) -> None:
    """A YOLO dataset whose images are links to a few tiny JPEGs, with 8 objects in each label file."""
    images, labels = root / "images" / "train", root / "labels" / "train"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (*_THUMBNAIL_HW, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(".jpg", noise)
    numbers = random.Random(0)
    for index in range(amount):
        path = images / f"{index:06d}.jpg"
        if index % _MOST_LINKS == 0:
            original = path
            path.write_bytes(encoded.tobytes())
        else:
            path.hardlink_to(original)
        rows = [
            f"{numbers.randrange(3)} {numbers.uniform(0.3, 0.7):.6f} {numbers.uniform(0.3, 0.7):.6f} "
            f"{numbers.uniform(0.1, 0.5):.6f} {numbers.uniform(0.1, 0.5):.6f}\n"
            for _ in range(_OBJECTS)
        ]
        (labels / f"{index:06d}.txt").write_text("".join(rows))
    (root / "data.yaml").write_text("train: images/train\nnames: [a, b, c]\n")


def plot_curves(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write FOLDER/growth-NAME.png for each curve, medians with quartiles; dotted: proportional growth."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_plot(curve, folder / f"growth-{curve.name}.png") for curve in curves]


def _plot(curve: Curve, path: Path) -> Path:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for line, points in curve.lines.items():
        amounts = sorted(points)
        medians = [1000 * points[amount].median for amount in amounts]
        (drawn,) = axes.plot(amounts, medians, marker="o", label=line)
        lower, upper = zip(*(points[amount].quartiles for amount in amounts), strict=True)
        axes.fill_between(
            amounts, [1000 * one for one in lower], [1000 * one for one in upper], alpha=0.2, color=drawn.get_color()
        )
        if curve.name in ("batch", "size", "dataset"):
            power = 2 if curve.name == "size" else 1  # the pixels of an image grow with the square of its side
            proportional = [medians[0] * (amount / amounts[0]) ** power for amount in amounts]
            axes.plot(amounts, proportional, linestyle=":", linewidth=0.8, color=drawn.get_color())
            axes.set_title("dotted: in proportion", fontsize="small", loc="right")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    every = sorted({amount for points in curve.lines.values() for amount in points})
    axes.set_xticks(every, [str(amount) for amount in every])
    axes.minorticks_off()
    axes.set_xlabel(curve.variable)
    axes.set_ylabel("milliseconds")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, dpi=110)
    return path
