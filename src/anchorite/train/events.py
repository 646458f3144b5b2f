"""What a run tells whoever listens: plain values, no printing in the library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anchorite.evaluate import ValidationResult


@dataclass(frozen=True)
class StoreProgress:
    """While the image store of a split is built, after each image, before the run starts. Counts are of images."""

    split: str
    num_done: int
    num_images: int


@dataclass(frozen=True)
class RunStarted:
    """Once, before the first step. decisions: what was chosen automatically, each with its reason."""

    folder: Path
    decisions: tuple[str, ...]
    first_epoch: int
    num_epochs: int
    num_batches: int


@dataclass(frozen=True)
class StepDone:
    """After each batch. Losses are means over the epoch so far; seconds_left is for the whole run."""

    epoch: int
    batch: int
    box: float
    objectness: float
    classification: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class StepSkipped:
    """A step was not taken. facts: epoch, batch, what was not finite, images, how many in a row; plain types."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class EpochDone:
    """After each epoch's validation. row: what metrics.csv holds; improved: best.safetensors was replaced."""

    epoch: int
    row: dict[str, float]
    validation: ValidationResult | None
    improved: bool


@dataclass(frozen=True)
class RunFinished:
    """At the end. reason: "complete" or why it stopped early; best_epoch: None, and best_map void, without any mAP."""

    folder: Path
    reason: str
    best_epoch: int | None
    best_map: float
    seconds: float


Event = StoreProgress | RunStarted | StepDone | StepSkipped | EpochDone | RunFinished


class Listener(Protocol):
    """Takes the events of a run."""

    def __call__(self, event: Event) -> None:
        """Called in the training thread; what it spends, the run waits."""


def ignore(event: Event) -> None:
    """The listener of those who do not listen: nothing is to be done with an event."""
