"""A whole training step over synthetic data, and a view into where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anchorite.benchmark.subjects import detector_of
from anchorite.benchmark.timing import synchronise
from anchorite.data import Batch
from anchorite.devices import Precision
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.train import load_recipe
from anchorite.train.ema import EMA
from anchorite.train.optimizer import build_optimizer
from anchorite.train.schedule import Settings as StepSettings
from anchorite.train.step import TrainingStep, TrainState

PARTS = ("forward: backbone and neck", "head and loss", "backward", "clipping and optimizer", "average")
_SMALL_RATE = StepSettings(rate=1e-4, bias_rate=1e-4, momentum=0.9)  # so small that no round differs from another


def training_step(
    size: str, num_classes: int, image_size: int, device: torch.device, precision: Precision
) -> TrainingStep:
    """Our step with the recipe small-data, ready to run: detector, loss, optimizer, average, scaler."""
    recipe = load_recipe("small-data")
    detector = detector_of(size, num_classes, device)
    detector.train()
    config = recipe.loss.scaled(detector.anchors.num_levels, num_classes, image_size)
    train_state = TrainState(
        detector=detector,
        criterion=DetectionLoss(detector.anchors, num_classes, config).to(device),
        optimizer=build_optimizer(detector, recipe.optimizer),
        average=EMA(detector, recipe.average),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.scaled),
    )
    return TrainingStep(train_state, precision, recipe.optimizer.clip_norm, device)


def whole_step(step: TrainingStep, batch: Batch) -> Callable[[], LossTerms]:
    """A function that accumulates one batch and applies it."""

    def run() -> LossTerms:
        terms = step.accumulate(batch)
        step.apply(_SMALL_RATE)
        return terms

    return run


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
        self._update = train_state.average.update
        train_state.average.update = self._timed_update  # type: ignore[method-assign]

    def run(self, batch: Batch) -> dict[str, float]:
        """One whole step; seconds by part, in the order of PARTS."""
        start = self._now()
        self.step.accumulate(batch)
        accumulated = self._now()
        self.step.apply(_SMALL_RATE)
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
