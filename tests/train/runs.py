"""Small runs for the tests of training: a few synthetic scenes and the smallest useful recipe."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from anchorite.data import DatasetIndex, open_dataset
from anchorite.data.scenes import write_scenes
from anchorite.train import Event, Recipe, load_recipe

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


class Recorder:
    """A listener that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]
