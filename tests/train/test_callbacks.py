"""Listeners together, loggers that fail, and what a run tells at its start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import anchorite
from anchorite.loss import LossConfig
from anchorite.train import (
    EpochDone,
    Event,
    RunFinished,
    RunFolder,
    RunStarted,
    StepDone,
    StoreProgress,
    listeners,
    loggers,
    resume,
    train,
)
from anchorite.train.optim import settings_at
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")

FIRST, SECOND = StoreProgress("train", 1, 2), StoreProgress("train", 2, 2)


class Faulty:
    """A logger that raises at the events of a kind, with a count of those it has heard."""

    def __init__(self, kind: type, error: BaseException) -> None:
        self.kind, self.error, self.heard = kind, error, 0

    def __call__(self, event: Event) -> None:
        self.heard += 1
        if isinstance(event, self.kind):
            raise self.error


def test_listeners_are_called_in_order_and_their_errors_surface() -> None:
    heard: list[tuple[str, Event]] = []
    both = listeners(lambda event: heard.append(("a", event)), lambda event: heard.append(("b", event)))
    both(FIRST)
    both(SECOND)
    assert heard == [("a", FIRST), ("b", FIRST), ("a", SECOND), ("b", SECOND)]
    with pytest.raises(OSError, match="full"):
        listeners(Faulty(StoreProgress, OSError("full")), Recorder())(FIRST)


def test_a_logger_that_raises_is_told_once_and_dropped_and_the_others_stay() -> None:
    faulty, before, after, told = Faulty(StoreProgress, OSError("disk full")), Recorder(), Recorder(), list[str]()
    together = loggers(before, faulty, after, tell=told.append)
    together(FIRST)
    together(SECOND)
    assert before.events == after.events == [FIRST, SECOND]
    assert faulty.heard == 1
    assert len(told) == 1
    assert told[0].startswith("logger Faulty failed at StoreProgress: OSError: disk full. ")
    # No folder is known yet, so the traceback is told itself.
    assert "raise self.error" in told[0]


def test_by_default_a_warning_tells() -> None:
    def send_home(event: Event) -> None:
        raise ConnectionError("no\nroute")

    with pytest.warns(
        RuntimeWarning, match=r"logger .*send_home failed at StoreProgress: ConnectionError: no\?route\."
    ):
        loggers(send_home)(FIRST)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_a_program_passes_a_logger(error: BaseException) -> None:
    with pytest.raises(type(error)):
        loggers(Faulty(StoreProgress, error), tell=pytest.fail)(FIRST)


def test_an_error_of_who_tells_surfaces() -> None:
    def tell(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        loggers(Faulty(StoreProgress, OSError("full")), tell=tell)(FIRST)


def test_a_run_outlives_its_loggers_and_keeps_their_tracebacks(tmp_path: Path) -> None:
    out, told = tmp_path / "run", list[str]()
    faulty, other = Faulty(EpochDone, ConnectionError("server gone")), Recorder()
    finished = train(small_recipe(), scenes(), out, loggers(faulty, other, tell=told.append))
    assert finished.reason == "complete"
    assert other.of(RunFinished) == [finished]
    assert [row["epoch"] for row in RunFolder(out).read_rows()] == ["1", "2"]
    kept = out / "logger-errors.txt"
    sentence = "logger Faulty failed at the end of epoch 1: ConnectionError: server gone. It gets no more events"
    assert told == [f"{sentence} of this run, which continues; traceback: {kept}"]
    text = kept.read_text(encoding="utf-8")
    assert sentence in text
    assert "Traceback (most recent call last)" in text
    assert text.count("server gone") == 2


def test_a_run_tells_at_its_start_what_it_is(tmp_path: Path) -> None:
    recorder, recipe = Recorder(), small_recipe(epochs=1)
    train(recipe, scenes(), tmp_path / "run", recorder)
    (started,) = recorder.of(RunStarted)
    assert started.recipe == recipe
    assert started.class_names == scenes().class_names
    assert started.val_images == tuple(record.path for record in scenes().splits["val"])
    scaled: LossConfig = recipe.loss.scaled(3, 5, 64)
    gains = {"box": scaled.box_gain, "objectness": scaled.objectness_gain, "class": scaled.class_gain}
    assert started.gains == gains
    assert started.gains["objectness"] != recipe.loss.objectness_gain
    assert started.environment["torch"] == torch.__version__
    assert started.environment["anchorite"] == anchorite.__version__
    assert started.environment["device"] == "cpu"
    assert started.environment["precision"] == "fp32"
    assert (started.first_epoch, started.first_batch, started.first_step) == (0, 0, 0)


def test_settings_are_flat_and_plain() -> None:
    recipe = small_recipe(anchors__rows=[[10, 13, 16, 30, 33, 23]] * 3, workers=None)
    started = RunStarted(Path("run"), (), 0, 1, 1, recipe=recipe, gains={"box": 0.05})
    settings = started.settings()
    assert settings["optimizer.nominal_batch"] == 8
    assert settings["loss.automatic_balance"] is True
    assert settings["workers"] == "none"
    assert settings["anchors.rows"] == "[" + ", ".join(["[10.0, 13.0, 16.0, 30.0, 33.0, 23.0]"] * 3) + "]"
    assert settings["effective.box"] == 0.05
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


def test_steps_are_numbered_through_and_know_their_rates(tmp_path: Path) -> None:
    recorder, recipe = Recorder(), small_recipe(optimizer__warmup_epochs=1.0)
    train(recipe, scenes(), tmp_path / "run", recorder)
    steps = recorder.of(StepDone)
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    # Batches of 4, two to a step and the third alone: the rates are those of the last step; before any, of the first.
    taken = [0, 0, 1, 1, 2, 3]
    expected = [settings_at(number, 4, 2, recipe.optimizer) for number in taken]
    assert [event.lr for event in steps] == [one.lr for one in expected]
    assert [event.bias_lr for event in steps] == [one.bias_lr for one in expected]
    assert len({event.bias_lr for event in steps}) > 2
    assert [event.row["lr"] for event in recorder.of(EpochDone)] == [steps[2].lr, steps[5].lr]


class Stop(Exception):
    """Ends a run at once."""


def test_a_resumed_run_tells_where_it_goes_on(tmp_path: Path) -> None:
    out, straight = tmp_path / "run", Recorder()

    def interrupt(event: Event) -> None:
        straight(event)
        if isinstance(event, StepDone) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), scenes(), out, interrupt)
    recorder = Recorder()
    resume(out, scenes(), recorder)
    (started,) = recorder.of(RunStarted)
    told_before = [event.step for event in straight.of(StepDone)]
    assert (started.first_epoch, started.first_batch, started.first_step) == (1, 2, 5)
    assert started.recipe == small_recipe()
    assert [*told_before, *(event.step for event in recorder.of(StepDone))] == [1, 2, 3, 4, 5, 6]


def test_what_is_not_known_is_not_a_number() -> None:
    assert math.isnan(StepDone(1, 1, 0.1, 0.1, 0.1, 5.0, 1.0).lr)
