"""What is shown while a run goes on, on a terminal and in a log."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from anchorite.cli.epoch_table import EpochLine, EpochTable, RunningEpoch
from anchorite.cli.json_lines import JsonLines
from anchorite.cli.progress import TrainingDisplay
from anchorite.cli.screens import Terminal, choose_screen
from rich.console import Console
from rich.text import Text

from anchorite.train import EpochDone, RunFinished, RunStarted, StepDone, StoreProgress

ROW = {"train/box": 0.1, "train/objectness": 0.02, "train/classification": 0.3, "images_per_second": 46.0}


def console(width: int, height: int = 24) -> Console:
    """A console of its own, without colours, whose output is kept."""
    return Console(file=io.StringIO(), width=width, height=height, soft_wrap=True, highlight=False, _environ={})


def text_of(terminal: Terminal) -> str:
    """What is at the bottom."""
    bottom = terminal._bottom()
    assert isinstance(bottom, Text)
    return bottom.plain


def line(epoch: int, score: float, improved: bool) -> EpochLine:
    return EpochLine(epoch, 40, 0.1, 0.02, 0.3, 46.25, score, score, score, improved, 3600.0)


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


def test_a_quiet_screen_shows_only_results(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingDisplay(choose_screen(quiet=True)) as display:
        decode(display, 202)
        display(RunStarted(Path("run"), ("device cpu",), 0, 1, 1))
        display(EpochDone(1, ROW, None, True))
        display(RunFinished(Path("run"), "complete", 1, 0.5, 61.0))
        display.finished(Path("run"))
    assert capsys.readouterr().out.splitlines() == [
        "done (complete) in 1:01: best mAP 0.5000 at epoch 1",
        f"weights: {Path('run') / 'best.safetensors'}",
        f"report:  {Path('run') / 'report.html'}",
    ]


def test_a_terminal_shows_a_bar_while_images_are_decoded() -> None:
    terminal = Terminal(console(60))
    terminal.decoding("train", 30, 400)
    assert text_of(terminal) == "decoding train \u2501\u2501" + "\u2500" * 28 + " 30/400 images"
    terminal.decoding("train", 400, 400)
    assert text_of(terminal) == ""


def test_a_running_epoch_stands_under_the_columns_of_its_table() -> None:
    terminal = Terminal(console(80))
    terminal.start_table(40)
    terminal.epoch(line(2, 0.25, improved=True))
    terminal.running(RunningEpoch(3, 40, 5, 10, 0.1, 0.02, 0.3, 46.25, 61.0))
    row, best = text_of(terminal).splitlines()
    header = "  epoch      box   object    class   img/s   mAP50     mAP  best     left"
    assert row.startswith("   3/40   0.1000   0.0200   0.3000    46.2  5/10  ")
    assert row.endswith("     1:01")
    assert len(row) == len(header)
    assert row.count("\u2501") == row.count("\u2500")
    assert best == "best so far: mAP 0.2500 at epoch 2"
    assert header in terminal.console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [10, 40, 79, 80, 120, 300])
def test_no_line_of_the_table_is_wider_than_the_terminal(width: int) -> None:
    table = EpochTable("utf-8", 100)
    running = RunningEpoch(3, 100, 5, 10, 0.1, 0.02, 0.3, 46.25, 40000.0)
    lines = [table.header(width), table.row(line(100, 0.5, improved=True), width), table.running(running, width)]
    assert max(len(one.plain.rstrip()) for one in lines) <= max(width, 7 + 2 + len("5/10"))


def test_the_header_comes_again_before_it_is_out_of_sight() -> None:
    terminal = Terminal(console(80, height=24))
    terminal.start_table(40)
    for epoch in range(1, 41):
        terminal.epoch(line(epoch, 0.1, improved=False))
    shown = terminal.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    headers = [number for number, text in enumerate(shown) if "epoch" in text]
    assert headers == [0, 19, 38]
    assert len(shown) == 43


def test_the_best_epoch_is_marked_by_a_word() -> None:
    table = EpochTable("ascii", 9)
    assert " best " in table.row(line(1, 0.5, improved=True), 80).plain
    assert "best" not in table.row(line(1, 0.5, improved=False), 80).plain
    assert "best" not in table.row(line(1, math.nan, improved=True), 80).plain
    assert table.row(line(1, 0.5, improved=True), 200).plain.isascii()


def test_every_json_line_parses_and_nothing_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    display = JsonLines()
    display(StoreProgress("train", 1, 1))
    display(RunStarted(Path("run"), ("device cpu",), 0, 2, 2))
    for batch in (1, 2):
        display(StepDone(1, batch, 0.1, math.inf, 0.3, 46.0, 9.0))
    display(EpochDone(1, ROW | {"val/map": math.nan}, None, True))
    display(RunFinished(Path("run"), "complete", None, math.nan, 61.0))
    display.finished(Path("run"))
    display.say("for people")
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in events] == [
        "decoding", "run_started", "step", "epoch", "run_finished", "finished"
    ]  # fmt: skip
    assert events[1] == {
        "event": "run_started", "folder": "run", "first_epoch": 1, "num_epochs": 2, "num_batches": 2,
        "decisions": ["device cpu"],
    }  # fmt: skip
    assert (events[2]["batch"], events[2]["objectness"]) == (2, None)
    assert events[3]["metrics"] == ROW | {"val/map": None}
    assert events[4]["best_map"] is None
    assert events[5]["best_weights"] == str(Path("run") / "best.safetensors")
