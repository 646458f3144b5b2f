"""What is shown while a run goes on, on a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from anchorite.cli.progress import TrainingDisplay
from anchorite.train import StoreProgress


class Terminal(io.StringIO):
    """Text output that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


def decode(display: TrainingDisplay, num_images: int) -> None:
    for done in range(1, num_images + 1):
        display(StoreProgress("train", done, num_images))


def test_a_log_gets_a_line_at_each_quarter_of_the_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingDisplay() as display:
        decode(display, 202)
    assert capsys.readouterr().out.splitlines() == [
        f"decoded {done} of 202 train images" for done in (51, 101, 152, 202)
    ]


def test_a_log_gets_nothing_on_what_is_decoded_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingDisplay() as display:
        decode(display, 40)
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_a_bar_while_images_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    display = TrainingDisplay()
    (task,) = display._bar.tasks
    display(StoreProgress("train", 30, 400))
    assert (task.visible, task.completed, task.total) == (True, 30, 400)
    assert (task.description, task.fields["note"]) == ("decoding train", "30/400 images")
    display(StoreProgress("train", 400, 400))
    assert not task.visible
