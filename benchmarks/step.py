"""A training step of size n at 320 px, 16 images, against a bare step of the same network; and where its time goes.

The bare step has the same backbone, neck and dense head; its loss is the sum of the maps' mean squares, its optimizer
plain SGD, and its images are ready on the device as floating point numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anchorite.benchmark import (
    Figure,
    Sample,
    batch_for,
    detector_of,
    interleaved,
    synchronise,
    training_step,
    whole_step,
)
from anchorite.data import Batch
from anchorite.devices import Precision, choose_precision
from anchorite.model import Detector
from anchorite.train.optim import Settings as StepSettings
from anchorite.train.step import TrainingStep
from benchmarks.measure import (
    Comparison,
    Floor,
    Outcome,
    Settings,
    cost,
    faster,
    in_fresh_process,
    matmul_rate,
    peak_extra_bytes,
)

COST_OF_BARE, FASTER_THAN_FP32 = 1.06, 2.0
OBJECTS = 8
_ROUNDS, _WARM_UP = 25, 3
_QUICK_SIZES, _SIZES = (2, 64), (16, 320)
_RATE = 1e-4
_CLASSES, _OBJECTS = 80, 8
PARTS = ("forward: backbone and neck", "head and loss", "backward", "clipping and optimizer", "average")
_SMALL_LR = StepSettings(lr=1e-4, bias_lr=1e-4, momentum=0.9)  # so small that no round differs from another


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


def bare_step(detector: Detector, images: Tensor, dtype: torch.dtype | None) -> Callable[[], Tensor]:
    """A function that trains `detector` by one step on `images` (B, 3, H, W) in 0..1 and returns the loss, detached.

    dtype: of autocast, None for none. Memory formats are those that detector and images come in.
    """
    optimizer = torch.optim.SGD(detector.parameters(), lr=_RATE)
    detector.train()

    def step() -> Tensor:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits = detector(images)
            loss = torch.stack([level.float().square().mean() for level in logits]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def to_contiguous(detector: Detector) -> Detector:
    """The detector with its weights laid out row by row, as modules are made; in place."""
    for parameter in detector.parameters():
        parameter.data = parameter.data.contiguous()
    return detector


def training_memory(settings: Settings) -> list[Comparison]:
    """Size n, 80 classes, 16 images of 640 px; nothing where the system does not tell a process its peak."""
    batch, image_size = (2, 64) if settings.quick else (16, 640)
    # Each in a process of its own, whose allocator has no holes yet.
    sizes = (settings.device, batch, image_size)
    peak, dense_peak = (in_fresh_process(peak_of_step, *sizes, dense) for dense in (False, True))
    if peak is None or dense_peak is None:
        return []
    ours, dense = Figure("matched cells", float(peak), "B"), Figure("dense logits", float(dense_peak), "B")
    return [Comparison(f"peak memory of a training step, {batch} images of {image_size} px", ours, dense, "cost")]


def peak_of_step(device: torch.device, batch: int, image_size: int, dense: bool) -> int | None:
    """Peak extra bytes of one step, optimizer and average included."""
    step = training_step("n", _CLASSES, image_size, device, choose_precision("auto", device))
    if dense:
        head = step.train_state.detector.head
        head.matched = head.dense  # type: ignore[method-assign, assignment]
    return peak_extra_bytes(whole_step(step, batch_for(batch, image_size, _OBJECTS, _CLASSES, device)), device)


class PartsClock:
    """Seconds of each part of a `TrainingStep`, taken by hooks, so that it is the real step that runs.

    Waiting for the device between the parts makes the sum larger than an undisturbed step on a GPU.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._marks: dict[str, float] = {}
        train_state = step.train_state
        train_state.detector.neck.register_forward_hook(self._hook("neck"))
        train_state.criterion.register_forward_hook(self._hook("criterion"))
        self._update = train_state.ema.update
        train_state.ema.update = self._timed_update  # type: ignore[method-assign]

    def run(self, batch: Batch) -> dict[str, float]:
        """One whole step; seconds by part, in the order of PARTS."""
        start = self._now()
        self.step.accumulate(batch)
        accumulated = self._now()
        self.step.apply(_SMALL_LR)
        end = self._now()
        neck, criterion, average = (self._marks[name] for name in ("neck", "criterion", "average"))
        seconds = (neck - start, criterion - neck, accumulated - criterion, end - accumulated - average, average)
        return dict(zip(PARTS, seconds, strict=True))

    def _now(self) -> float:
        synchronise(self.step.device)
        return time.perf_counter()

    def _hook(self, name: str) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            self._marks[name] = self._now()

        return mark

    def _timed_update(self, is_fine: Tensor | None = None) -> None:
        start = self._now()
        self._update(is_fine)
        self._marks["average"] = self._now() - start
