"""Small runs for the tests of training: a few synthetic scenes and the smallest useful recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from anchorite.data import DatasetIndex, open_dataset
from anchorite.data.scenes import write_scenes
from anchorite.train import Event, Recipe, RunFolder, load_recipe
from anchorite.train.optim import EMA, EMAConfig, OptimizerConfig, build_optimizer
from anchorite.train.step import TrainState
from tests.processes import PIPE, ForkedProcess

OVERRIDES: dict[str, object] = {
    "image_size": 64,
    "epochs": 2,
    "batch": 4,
    "precision": "fp32",
    "device": "cpu",
    "workers": 0,
    "optimizer.nominal_batch": 8,
    "ema.ramp_steps": 4.0,
    "loss.automatic_balance": True,
    "augment.close_mosaic_epochs": 1,
}


@cache
def scenes() -> DatasetIndex:
    """A data set of 10 training and 4 validation scenes of 96 px, made once per test process."""
    return open_dataset(write_scenes(Path(mkdtemp()) / "scenes", 10, 4, 2, seed=5, size_px=96))


def small_recipe(**overrides: object) -> Recipe:
    """The smallest useful recipe, with overrides (a double underscore stands for a dot)."""
    return load_recipe("demo", OVERRIDES | {name.replace("__", "."): value for name, value in overrides.items()})


def tiny_state(width: int) -> TrainState:
    """A network of two layers in place of a detector, so that a checkpoint is written and read in no time."""
    network: Any = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
    criterion: Any = nn.BatchNorm1d(3)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(network, OptimizerConfig())
    network(torch.ones(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return TrainState(network, criterion, optimizer, EMA(network, EMAConfig()), scaler)


class Recorder:
    """A listener that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@contextmanager
def held_elsewhere(run: Path) -> Iterator[None]:
    """Another process holds the run folder for the length of the block, as one that trains there."""
    holder = ForkedProcess("tests.train.runs:hold", str(run), stdin=PIPE)
    assert holder.stdout.readline() == "held\n"
    try:
        yield
    finally:
        holder.stdin.close()
    assert holder.wait() == 0


def hold(run: str) -> None:
    """Hold a run folder until stdin ends."""
    with RunFolder(Path(run)).held():
        print("held", flush=True)
        sys.stdin.read()
