"""How fast this machine trains and predicts: times of whole training steps and of single predictions.

Yardsticks, targets and floors to judge the times by are in the folder `benchmarks` of the source tree, which builds on
the functions here.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from anchorite import __version__
from anchorite.boxes import Targets
from anchorite.data import Batch, decode_image, open_dataset
from anchorite.devices import Precision, choose_precision, processor_facts
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.model import Detector, WeightsInfo, default_anchors, to_channels_last
from anchorite.predict import Predictor
from anchorite.train import load_recipe
from anchorite.train.optim import EMA, Settings, build_optimizer
from anchorite.train.step import TrainingStep, TrainState

_SHORTEST, _LONGEST = 0.02, 0.6  # sides of objects, as fractions of the image's
_SMALL_LR = Settings(lr=1e-4, bias_lr=1e-4, momentum=0.9)  # so small that no round differs from another
_DETECTIONS = 50  # of random weights in one image, so that suppression has as much to do as with trained ones


@dataclass(frozen=True)
class Sample:
    """The seconds of one function, a number a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile; both the only value where there was one round."""
        lower, upper = np.quantile(self.seconds, (0.25, 0.75)).tolist()
        return lower, upper


@dataclass(frozen=True)
class Figure:
    """One measured value: a median with its quartiles, or, without quartiles, a single value such as a peak."""

    name: str
    value: float
    unit: Literal["s", "B", "img/s", "share"] = "s"
    quartiles: tuple[float, float] | None = None
    note: str = ""

    @classmethod
    def of(cls, name: str, sample: Sample, note: str = "") -> Figure:
        """The median of a sample of seconds."""
        return cls(name, sample.median, "s", sample.quartiles, note)

    @classmethod
    def per_second(cls, name: str, sample: Sample, num_images: int, note: str = "") -> Figure:
        """Images a second, for calls that make `num_images` each."""
        fast, slow = sample.quartiles
        return cls(name, num_images / sample.median, "img/s", (num_images / slow, num_images / fast), note)

    def to_text(self) -> str:
        """The value in the unit that suits its size, with its quartiles and its note."""
        spread = "" if self.quartiles is None else f" ({' to '.join(shown(end, self.unit) for end in self.quartiles)})"
        return f"{self.name}: {shown(self.value, self.unit)}{spread}" + (f", {self.note}" if self.note else "")


def shown(value: float, unit: str) -> str:
    """A value with the unit that suits its size."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 10 else f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "B":
        return f"{value / 2**20:.1f} MiB"
    return f"{100 * value:.2f} %" if unit == "share" else f"{value:.3g} img/s"


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Sample]:
    """Seconds of each function, by its name, over `rounds` rounds.

    Every round calls each function once, beginning with another one, so that drift and other programs affect all alike.
    Before, each is called `warm_up` times untimed. CUDA devices are synchronised before a clock is read. What a
    function returns is freed outside the time taken. clock: such as `time.thread_time` for one core.
    """
    assert rounds >= 1
    device, names = torch.device(device), list(functions)
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            synchronise(device)
            start = clock()
            result = functions[name]()
            synchronise(device)
            seconds[name].append(clock() - start)
            del result
    return {name: Sample(tuple(taken)) for name, taken in seconds.items()}


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has done all it was given; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, object]:
    """The machine and the software a figure was measured with, ready for JSON."""
    cpu = processor_facts()
    flags = sorted(flag for flag in cpu.get("flags", "").split() if flag.startswith(("avx2", "avx512", "amx")))
    memory = 0 if sys.platform == "win32" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu["model name"],
        "cpu_model": f"family {cpu.get('cpu family', '')}, model {cpu.get('model', '')}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_flags": flags,
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "versions": {
            "anchorite": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "date": date.today().isoformat(),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def detector_of(size: str, num_classes: int, device: torch.device) -> Detector:
    """A detector with random weights, the same ones for the same arguments, in channels_last layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(size, num_classes, default_anchors(size))
    to_channels_last(detector.to(device))
    return detector


def targets_for(batch: int, objects: int, num_classes: int, device: torch.device, seed: int = 2) -> Targets:
    """`objects` boxes in each of `batch` images: sides spread evenly over their logarithm, inside the image."""
    generator = torch.Generator().manual_seed(seed)
    total = batch * objects
    sides = _SHORTEST * (_LONGEST / _SHORTEST) ** torch.rand(total, 2, generator=generator)
    centres = sides / 2 + torch.rand(total, 2, generator=generator) * (1 - sides)
    images = torch.arange(batch).repeat_interleave(objects)
    classes = torch.randint(num_classes, (total,), generator=generator)
    rows = torch.cat([torch.stack([images, classes], dim=1).float(), centres, sides], dim=1)
    return Targets.from_rows(rows.to(device))


def batch_for(batch: int, image_size: int, objects: int, num_classes: int, device: torch.device) -> Batch:
    """Noise images as a loader would hand them over, with `objects` boxes each."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (batch, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    targets = targets_for(batch, objects, num_classes, device, seed=3)
    return Batch(pixels.permute(0, 3, 1, 2).to(device), targets, torch.arange(batch))


def training_step(
    size: str, num_classes: int, image_size: int, device: torch.device, precision: Precision
) -> TrainingStep:
    """A step of the recipe small-data, ready to run: detector, loss, optimizer, EMA, gradient scaler."""
    recipe = load_recipe("small-data")
    detector = detector_of(size, num_classes, device)
    detector.train()
    config = recipe.loss.scaled(detector.anchors.num_levels, num_classes, image_size)
    train_state = TrainState(
        detector=detector,
        criterion=DetectionLoss(detector.anchors, num_classes, config).to(device),
        optimizer=build_optimizer(detector, recipe.optimizer),
        ema=EMA(detector, recipe.ema),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.scaled),
    )
    return TrainingStep(train_state, precision, recipe.optimizer.clip_norm, device)


def whole_step(step: TrainingStep, batch: Batch) -> Callable[[], LossTerms]:
    """A function that accumulates one batch and applies it."""

    def run() -> LossTerms:
        terms = step.accumulate(batch)
        step.apply(_SMALL_LR)
        return terms

    return run


def step_figures(device: torch.device, rounds: int | None = None, quick: bool = False) -> list[Figure]:
    """A training step of size n with 3 and 80 classes: batches of 16 images of 320 px, 8 objects each."""
    batch, image_size = (2, 64) if quick else (16, 320)
    precision = choose_precision("auto", device)
    works = {}
    for num_classes in (3, 80):
        step = training_step("n", num_classes, image_size, device, precision)
        name = f"{num_classes} classes, {batch} images of {image_size} px, {precision.name}"
        works[name] = whole_step(step, batch_for(batch, image_size, 8, num_classes, device))
    taken = interleaved(works, rounds or (2 if quick else 25), device=device)
    times = [Figure.of(name, sample) for name, sample in taken.items()]
    return times + [Figure.per_second(name, sample, batch) for name, sample in taken.items()]


def predict_figures(
    device: torch.device, rounds: int | None = None, quick: bool = False, data: Path | None = None
) -> list[Figure]:
    """Prediction with size n and random weights at 640 px, from decoded pixels to detections: one image, and 16.

    data: a dataset whose first image is taken, or None for one of noise, 480 x 640.
    """
    image_size, batch = (64, 2) if quick else (640, 16)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    if data is not None:
        image = decode_image(next(record.path for split in open_dataset(data).splits.values() for record in split))
    detector = detector_of("n", 3, device)
    predictor = Predictor(detector, WeightsInfo("n", ("a", "b", "c"), detector.anchors, image_size), str(device))
    scores = predictor.predict(image, confidence=0.0, max_detections=_DETECTIONS)[0].scores
    confidence = float(scores.min())
    name = f"of {image.shape[1]} x {image.shape[0]} at {image_size} px, {predictor.runtime.name}"
    works: dict[str, Callable[[], object]] = {
        f"one image {name}": lambda: predictor.predict(image, confidence=confidence),
        f"{batch} images {name}": lambda: predictor.predict([image] * batch, batch_size=batch, confidence=confidence),
    }
    one, many = interleaved(works, rounds or (2 if quick else 25), device=device).items()
    return [Figure.of(*one), Figure.per_second(*many, batch)]
