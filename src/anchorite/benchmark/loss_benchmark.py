"""Head and loss, forward and backward, against yardstick (a): time, peak memory, and growth with the classes.

Features as the neck of size n leaves them at 640 px, 16 images; gradients of features, weights and biases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from anchorite.benchmark.dense_way import DenseLoss, dense_logits
from anchorite.benchmark.machine import memory_rate
from anchorite.benchmark.memory import in_fresh_process, peak_extra_bytes
from anchorite.benchmark.results import Comparison, Figure, Floor, Outcome, Target, cost, faster
from anchorite.benchmark.settings import Settings
from anchorite.benchmark.subjects import detector_of, features_for, predictors_of, targets_for
from anchorite.benchmark.timing import Sample, interleaved
from anchorite.data.memory import spendable_memory
from anchorite.loss import DetectionLoss, LossConfig

FASTER_WITH_8, FASTER_WITH_100 = 12.0, 5.0
MEMORY_SHARE, GROWTH_OF_CLASSES = 0.15, 5.0
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
_ROUNDS, _SLOW_ROUNDS = 15, 3
_CLASSES, _MANY_CLASSES = 80, 1000

Work = Callable[[], object]


def benchmark_loss(settings: Settings) -> Outcome:
    """Ours against the dense way with 8 and 100 objects an image, and over the number of classes."""
    batch, image_size = (2, 64) if settings.quick else (16, 640)
    comparisons: list[Comparison] = []
    figures: list[Figure] = []
    for precision in PRECISIONS:
        for objects, at_least in ((8, FASTER_WITH_8), (100, FASTER_WITH_100)):
            found = _against_dense(settings, (batch, image_size), precision, objects, at_least)
            comparisons += found
        of_classes, more = _over_classes(settings, (batch, image_size), precision)
        comparisons.append(of_classes)
        figures += more
    facts = {"batch": batch, "image_size": image_size, "classes": _CLASSES, "model": "n"}
    return Outcome("loss", tuple(comparisons), tuple(figures), facts)


def _against_dense(
    settings: Settings, sizes: tuple[int, int], precision: str, objects: int, at_least: float
) -> list[Comparison]:
    """Time and memory of one precision and number of objects."""
    batch, image_size = sizes
    ours, dense, features = make_works(settings.device, batch, image_size, precision, objects, _CLASSES)
    works: dict[str, Work] = {"matched cells": ours, "dense way": dense}
    samples = interleaved(works, settings.rounds_or(_ROUNDS), device=settings.device)
    name = f"{precision}, {objects} objects an image"
    time_compared = faster("matched cells", "dense way", samples, f"time, {name}", at_least)
    found = [replace(time_compared, floor=_floor(features, settings))]
    # Apart from this process, whose allocator keeps holes of all that has run in it.
    peaks = in_fresh_process(peaks_of_both, settings.device, batch, image_size, precision, objects)
    if peaks[0] is not None and peaks[1] is not None:
        gradients = sum(feature.nbytes for feature in features)
        found.append(
            Comparison(
                f"peak memory, {name}",
                Figure("matched cells", float(peaks[0]), "B"),
                Figure("dense way", float(peaks[1]), "B"),
                "cost",
                target=Target("at most", MEMORY_SHARE),
                floor=Floor(float(gradients), "the gradients of the features, which have to be handed on"),
            )
        )
    return found


def peaks_of_both(
    device: torch.device, batch: int, image_size: int, precision: str, objects: int
) -> tuple[int | None, int | None]:
    """Peak extra bytes of ours and of the dense way, with the allocator as it is in any process."""
    ours, dense, _ = make_works(device, batch, image_size, precision, objects, _CLASSES)
    return peak_extra_bytes(ours, device), peak_extra_bytes(dense, device)


def make_works(
    device: torch.device, batch: int, image_size: int, precision: str, objects: int, num_classes: int
) -> tuple[Work, Work, list[Tensor]]:
    """Ours and the dense way over the same features, weights and targets; each returns loss and gradients."""
    detector = detector_of("n", num_classes, device)
    predictors = predictors_of(detector)
    dtype = PRECISIONS[precision]
    features = features_for(detector, batch, image_size, dtype or torch.float32, device)
    targets = targets_for(batch, objects, num_classes, device)
    config = LossConfig().scaled(detector.anchors.num_levels, num_classes, image_size)
    criterion = DetectionLoss(detector.anchors, num_classes, config).to(device)
    plain = DenseLoss(detector.anchors.cells(device=device), config)
    wanted = [*features, *(parameter for predictor in predictors for parameter in predictor.parameters())]

    def ours() -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = criterion(detector.head.matched(features), targets).total
        return loss, *torch.autograd.grad(loss, wanted)

    def dense() -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = dense_logits(features, predictors, detector.anchors.num_anchors)
        loss = plain(logits, targets.rows)
        return loss, *torch.autograd.grad(loss, wanted)

    return ours, dense, features


def _floor(features: list[Tensor], settings: Settings) -> Floor:
    """Seconds that the bytes take which no way of computing this can do without moving."""
    anchors = 3
    places = sum(feature.shape[0] * anchors * feature.shape[2] * feature.shape[3] for feature in features)
    of_features = 3 * sum(feature.nbytes for feature in features)
    # Logits written and read, targets read, gradients written and read.
    of_maps = 5 * places * 4
    rate = memory_rate(of_features + of_maps, settings.device, rounds=settings.rounds_or(_ROUNDS))
    what = (
        f"{(of_features + of_maps) / 1e6:.0f} MB (features read twice, their gradients written once, objectness maps) "
        f"at {rate / 1e9:.1f} GB/s as measured for as many bytes"
    )
    return Floor((of_features + of_maps) / rate, what)


def _over_classes(settings: Settings, sizes: tuple[int, int], precision: str) -> tuple[Comparison, list[Figure]]:
    """Ours with 1 to 1000 classes, 8 objects an image; the dense way as far as it fits."""
    ours: dict[str, Work] = {}
    dense: dict[str, Work] = {}
    for num_classes in (1, 10, _CLASSES, _MANY_CLASSES):
        work, dense_work, features = make_works(settings.device, *sizes, precision, 8, num_classes)
        ours[f"{num_classes} classes"] = work
        if num_classes in (1, _CLASSES) or (num_classes == _MANY_CLASSES and _fits(features, num_classes, settings)):
            dense[f"{num_classes} classes"] = dense_work
    taken = interleaved(ours, settings.rounds_or(_ROUNDS), device=settings.device)
    taken_dense: dict[str, Sample] = {}
    for name, work in dense.items():
        rounds = settings.rounds_or(_SLOW_ROUNDS if name.startswith(f"{_MANY_CLASSES} ") else _ROUNDS)
        taken_dense |= interleaved({name: work}, min(rounds, _ROUNDS), warm_up=1, device=settings.device)
    growth = cost(
        f"{_MANY_CLASSES} classes",
        "1 classes",
        taken,
        f"growth from 1 to {_MANY_CLASSES} classes, {precision}",
        GROWTH_OF_CLASSES,
    )
    figures = [Figure.of(f"matched cells, {precision}, {name}", sample) for name, sample in taken.items()]
    figures += [Figure.of(f"dense way, {precision}, {name}", sample) for name, sample in taken_dense.items()]
    return growth, figures


def _fits(features: list[Tensor], num_classes: int, settings: Settings) -> bool:
    """Whether the dense way's maps, of which it holds about six at once, fit the memory at hand."""
    places = sum(feature.shape[0] * 3 * feature.shape[2] * feature.shape[3] for feature in features)
    needed = 6 * places * (5 + num_classes) * features[0].element_size()
    if settings.device.type == "cuda":
        return needed < torch.cuda.mem_get_info(settings.device)[0]
    spendable = spendable_memory()
    return spendable is None or needed < spendable
