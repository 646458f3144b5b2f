"""The events of a run, and callbacks that receive them: plain values, no printing in the library.

A run calls its listener with each event, in the training thread, one after the other: one `DataChecked` (before it
some `StoreProgress`, where images become a split val), some `StoreProgress`, one `RunStarted`, then for each epoch its
`StepDone` and `StepSkipped`, some `ValidationProgress`, then `EpochDone`, and at last `RunFinished`. An interrupted run
sends nothing more; a resumed run begins with `DataChecked` again. In distributed training only rank 0 sends events.
Epochs, batches and steps are counted from 1.
"""

from __future__ import annotations

import json
import math
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from anchorite.data import DatasetIndex
from anchorite.evaluate import ValidationResult
from anchorite.inspect import Overview
from anchorite.reading import one_line, printable
from anchorite.train.recipe import Recipe, by_dotted_name

ERRORS_FILE = "logger-errors.txt"  # in the folder of the run


@dataclass(frozen=True)
class DataChecked:
    """Once, of a new run and again of a resumed one, before the images are stored: the dataset as it is trained on,
    what its splits hold, and what was found wrong. Where nothing can be learned the run ends right after it.
    """

    dataset: DatasetIndex
    overview: Overview


@dataclass(frozen=True)
class StoreProgress:
    """While the images of a split are decoded, after each, before the run starts. Counts are of images."""

    split: str
    num_done: int
    num_images: int


@dataclass(frozen=True)
class RunStarted:
    """Once, before the first step: of a new run, and again of a resumed one.

    decisions: what was chosen automatically, each with its reason. first_epoch, first_batch: how many epochs were done
    before, and how many batches of the next one; 0 and 0 in a new run. num_batches: in an epoch. gains: "box",
    "objectness" and "class", as the loss uses them. environment: releases, device and the like, by name. val_images:
    in the order of `EpochDone.validation`.
    """

    folder: Path
    decisions: tuple[str, ...]
    first_epoch: int
    num_epochs: int
    num_batches: int
    first_batch: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    class_names: tuple[str, ...] = ()
    gains: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    val_images: tuple[Path, ...] = ()

    @property
    def first_step(self) -> int:
        """`StepDone.step` of the last step that was done before; 0 in a new run."""
        return self.first_epoch * self.num_batches + self.first_batch

    def settings(self) -> dict[str, bool | int | float | str]:
        """The recipe's fields by dotted name and the gains as "effective.box" and so on, for loggers that keep flat
        settings: lists as JSON, "none" for a field without a value.
        """
        settings = by_dotted_name(self.recipe.model_dump(mode="json"))
        for name, value in settings.items():
            if not isinstance(value, bool | int | float | str):
                settings[name] = "none" if value is None else json.dumps(value)
        return settings | {f"effective.{name}": gain for name, gain in self.gains.items()}


@dataclass(frozen=True)
class StepDone:
    """After each batch. Losses, with their gains, are means over the epoch so far; seconds_left is for the whole run.

    step: which batch of the whole run this was. lr, bias_lr: of the last optimizer step, for weights and biases.
    images: done of the epoch's `num_images`.
    """

    epoch: int
    batch: int
    box: float
    objectness: float
    classification: float
    images_per_second: float
    seconds_left: float
    step: int = 0
    lr: float = math.nan
    bias_lr: float = math.nan
    images: int = 0
    num_images: int = 0

    rate = property(attrgetter("lr"), doc="The earlier name of `lr`.")
    bias_rate = property(attrgetter("bias_lr"), doc="The earlier name of `bias_lr`.")


@dataclass(frozen=True)
class StepSkipped:
    """A step was skipped. facts: epoch, batch, what was non-finite, images, how many in a row; plain types."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class ValidationProgress:
    """While an epoch is validated, after each batch. Counts are of images; once all are done, again before each part of
    the metrics, which take their time with many classes or images.
    """

    epoch: int
    num_done: int
    num_images: int


@dataclass(frozen=True)
class EpochDone:
    """After each epoch's validation, its weights and its checkpoint on disk. row: what metrics.csv holds, "epoch"
    included, times in seconds, nan where nothing was measured; improved: best.safetensors was replaced.
    """

    epoch: int
    row: dict[str, float]
    validation: ValidationResult | None
    improved: bool


@dataclass(frozen=True)
class RunFinished:
    """At the end. reason: "complete" or why it stopped early; best_epoch: None, and best_map unset, without any mAP;
    seconds: since this run, or the last resume of it, was started.
    """

    folder: Path
    reason: str
    best_epoch: int | None
    best_map: float
    seconds: float


Event = DataChecked | StoreProgress | RunStarted | StepDone | StepSkipped | ValidationProgress | EpochDone | RunFinished

Listener = Callable[[Event], None]
"""Takes the events of a run, in the training thread: the run waits for it, and an exception ends it (see `loggers`).

Later releases may add events and fields; none will be removed or changed.
"""


def ignore(event: Event) -> None:
    """The default listener: does nothing."""


def listeners(*members: Listener) -> Listener:
    """One listener that calls several in this order. An exception in any of them ends the run."""

    def hear(event: Event) -> None:
        """Pass an event to each."""
        for member in members:
            member(event)

    return hear


def loggers(*members: Listener, tell: Callable[[str], None] | None = None) -> Listener:
    """One listener that calls several, none of which can end the run: one that raises is dropped, the others continue.

    tell: receives one sentence about it, with the logger's name; by default a RuntimeWarning. The traceback is added to
    logger-errors.txt in the folder of the run. Ctrl-C and other exceptions that are no `Exception` pass through.
    """
    active, folder = list(members), None
    say = tell or (lambda text: warnings.warn(text, RuntimeWarning, stacklevel=3))

    def hear(event: Event) -> None:
        """Pass an event to the loggers that have not failed."""
        nonlocal folder
        folder = event.folder if isinstance(event, RunStarted) else folder
        for member in tuple(active):
            try:
                member(event)
            except Exception as error:
                active.remove(member)
                moment = type(event).__name__
                if isinstance(event, StepDone):
                    moment = f"epoch {event.epoch}, batch {event.batch}"
                elif isinstance(event, EpochDone):
                    moment = f"the end of epoch {event.epoch}"
                name = getattr(member, "__qualname__", None) or type(member).__qualname__
                reason = printable(one_line(f"{type(error).__name__}: {error}"))
                told = (
                    f"logger {name} failed at {moment}: {reason}. It gets no more events of this run, which continues"
                )
                trace = "".join(traceback.format_exception(error))
                kept = f"traceback:\n{trace}"
                if folder is not None:
                    with suppress(OSError):  # a full disk, perhaps, which may be why the logger failed
                        with (folder / ERRORS_FILE).open("a", encoding="utf-8", errors="backslashreplace") as file:
                            file.write(f"{told}\n{trace}\n")
                        kept = f"traceback: {folder / ERRORS_FILE}"
                say(f"{told}; {kept}")

    return hear
