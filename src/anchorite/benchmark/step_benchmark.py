"""A whole training step of size n at 320 px, 16 images, against yardstick (b), and where its time goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from anchorite.benchmark.bare_step import bare_step, to_contiguous
from anchorite.benchmark.machine import matmul_rate
from anchorite.benchmark.results import Comparison, Figure, Floor, Outcome, cost, faster
from anchorite.benchmark.settings import Settings
from anchorite.benchmark.subjects import batch_for, detector_of
from anchorite.benchmark.timing import Sample, interleaved
from anchorite.benchmark.training_memory import training_memory
from anchorite.benchmark.training_subjects import PARTS, PartsClock, training_step, whole_step
from anchorite.data import Batch
from anchorite.devices import Precision, choose_precision

COST_OF_BARE, FASTER_THAN_FP32 = 1.06, 2.0
OBJECTS = 8
_ROUNDS, _WARM_UP = 25, 3
_QUICK_SIZES, _SIZES = (2, 64), (16, 320)


def benchmark_step(settings: Settings) -> Outcome:
    """Our step against the bare one, in the same precision and in fp32, with 3 and 80 classes."""
    precision = choose_precision("auto", settings.device)
    comparisons: list[Comparison] = []
    for num_classes in (3, 80):
        comparisons += _against_bare(settings, precision, num_classes)
    comparisons += training_memory(settings)
    facts = {
        "batch": _sizes(settings)[0],
        "image_size": _sizes(settings)[1],
        "objects": OBJECTS,
        "model": "n",
        "precision": f"{precision.name}: {precision.reason}",
    }
    return Outcome("step", tuple(comparisons), tuple(_parts(settings, precision)), facts)


def _sizes(settings: Settings) -> tuple[int, int]:
    return _QUICK_SIZES if settings.quick else _SIZES


def _against_bare(settings: Settings, precision: Precision, num_classes: int) -> list[Comparison]:
    device = settings.device
    batch_size, image_size = _sizes(settings)
    batch = batch_for(batch_size, image_size, OBJECTS, num_classes, device)
    same, fp32, ours = f"bare step, {precision.name}", "bare step, fp32, contiguous", "our step"
    reduced = batch.images.to(precision.dtype or torch.float32) / 255
    plain = (batch.images.float() / 255).contiguous()
    works: dict[str, Callable[[], object]] = {
        ours: whole_step(training_step("n", num_classes, image_size, device, precision), batch),
        same: bare_step(detector_of("n", num_classes, device), reduced, precision.dtype),
        fp32: bare_step(to_contiguous(detector_of("n", num_classes, device)), plain, None),
    }
    samples = interleaved(works, settings.rounds_or(_ROUNDS), _WARM_UP, device)
    name = f"step, {num_classes} classes"
    floor = _floor(settings, batch, precision, num_classes)
    return [
        replace(cost(ours, same, samples, f"{name}, against the same precision", COST_OF_BARE), floor=floor),
        faster(ours, fp32, samples, f"{name}, against fp32, contiguous", FASTER_THAN_FP32),
    ]


def _floor(settings: Settings, batch: Batch, precision: Precision, num_classes: int) -> Floor:
    """Seconds that the multiplications of the convolutions take at the rate of a large matrix product."""
    detector = detector_of("n", num_classes, settings.device)
    with FlopCounterMode(display=False) as counter:
        torch.stack([level.mean() for level in detector(batch.images.float() / 255)]).sum().backward()
    operations = counter.get_total_flops()
    dtype = precision.dtype or torch.float32
    side = 256 if settings.quick else 2048
    rate = matmul_rate(dtype, settings.device, side)
    what = (
        f"{operations / 1e9:.0f} Gflop of forward and backward at {rate / 1e9:.0f} Gflop/s, "
        f"as measured for a matrix product of {side} in {precision.name}"
    )
    return Floor(operations / rate, what)


def _parts(settings: Settings, precision: Precision) -> list[Figure]:
    """Medians of each part of our step, 80 classes, with their share of the whole."""
    batch_size, image_size = _sizes(settings)
    batch = batch_for(batch_size, image_size, OBJECTS, 80, settings.device)
    clock = PartsClock(training_step("n", 80, image_size, settings.device, precision))
    for _ in range(_WARM_UP):
        clock.run(batch)
    taken = [clock.run(batch) for _ in range(settings.rounds_or(_ROUNDS))]
    samples = {part: Sample(tuple(one[part] for one in taken)) for part in PARTS}
    total = sum(sample.median for sample in samples.values())
    return [
        Figure.of(f"part: {part}", sample, f"{100 * sample.median / total:.1f} % of the step")
        for part, sample in samples.items()
    ]
