"""What is shown while a run goes on: on a terminal, in a log and as JSON lines."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from anchorite.cli.display import Display, EpochTable, counting
from anchorite.cli.options import OutputOptions
from anchorite.train import (
    EpochDone,
    Event,
    RunFinished,
    RunStarted,
    StepDone,
    StoreProgress,
    ValidationProgress,
)

ROW = {"train/box": 0.1, "train/objectness": 0.02, "train/classification": 0.3, "images_per_second": 46.0}
STARTED = RunStarted(Path("run"), ("device cpu",), 0, 40, 10)
FINISHED = RunFinished(Path("run"), "complete", 1, 0.5, 61.0)


def console_of(width: int, height: int = 24, encoding: str = "utf-8") -> Console:
    """A terminal without colours that keeps what is printed there."""
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    return Console(file=file, width=width, height=height, soft_wrap=True, _environ={})


def printed_on(console: Console) -> str:
    assert isinstance(console.file, io.TextIOWrapper)
    console.file.seek(0)
    return console.file.read()


def bottom(display: Display) -> list[str]:
    return display.bottom().plain.splitlines()


def epoch(number: int, score: float, improved: bool) -> EpochDone:
    return EpochDone(number, ROW | {f"val/map{more}": score for more in ("", "50", "75")}, None, improved)


def test_a_quiet_display_shows_only_results(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(OutputOptions(quiet=True)) as display:
        for done in range(1, 203):
            display(StoreProgress("train", done, 202))
        display(STARTED)
        display(epoch(1, 0.5, improved=True))
        display(FINISHED)
        display.finished(Path("run"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["done", "weights:", "report:"]
    assert lines[1].endswith(str(Path("run") / "best.safetensors"))


def test_a_log_has_a_row_for_each_epoch_under_one_header(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display(STARTED)
        for number in range(1, 41):
            display(StepDone(number, 10, 0.1, 0.02, 0.3, 46.0, 61.0))
            display(epoch(number, 0.25, improved=number == 2))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines[0] == ["epoch", "box", "object", "class", "img/s", "mAP50", "mAP", "best", "left"]
    assert [line[0] for line in lines[1:]] == [f"{number}/40" for number in range(1, 41)]
    assert [line[0] for line in lines if "*" in line] == ["2/40"]


def test_a_terminal_shows_a_bar_while_images_are_decoded() -> None:
    display = Display(console=console_of(60))
    display(StoreProgress("train", 30, 400))
    assert bottom(display) == ["decoding train \u2501\u2501" + "\u2500" * 28 + " 30/400 images"]
    display(StoreProgress("train", 400, 400))
    assert bottom(display) == []


def test_a_running_epoch_stands_under_the_columns_of_its_table() -> None:
    console = console_of(80)
    display = Display(console=console)
    display(STARTED)
    display(epoch(2, 0.25, improved=True))
    display(StepDone(3, 5, 0.1, 0.02, 0.3, 46.25, 61.0))
    row, best = bottom(display)
    header = printed_on(console).splitlines()[2]
    assert row.split()[:6] == ["3/40", "0.1000", "0.0200", "0.3000", "46.2", "5/10"]
    assert row.split()[-1] == "1:01"
    assert len(row) == len(header)
    assert row.count("\u2501") == row.count("\u2500")
    assert "0.2500" in best


@pytest.mark.parametrize("width", [10, 40, 79, 80, 120, 300])
def test_no_line_of_the_table_is_wider_than_the_terminal(width: int) -> None:
    table = EpochTable(console_of(width), 100)
    running = table.running(StepDone(3, 5, 0.1, 0.02, 0.3, 46.25, 40000.0), 10)
    lines = [table.header(), table.row(epoch(100, 0.5, improved=True), 40000.0), running]
    assert max(len(one.plain.rstrip()) for one in lines) <= max(width, 7 + 2 + len("5/10"))


def test_the_header_comes_again_before_it_is_out_of_sight() -> None:
    console = console_of(80, height=24)
    display = Display(console=console)
    display(STARTED)
    for number in range(1, 41):
        display(epoch(number, 0.1, improved=False))
    headers = [number for number, text in enumerate(printed_on(console).splitlines()) if "epoch " in text]
    assert max(later - earlier for earlier, later in pairwise(headers)) < 24
    assert len(headers) > 1


def test_the_best_epoch_is_marked_by_a_word() -> None:
    table = EpochTable(console_of(200, encoding="ascii"), 9)
    rows = [table.row(epoch(1, score, improved), 1.0).plain for score, improved in ((0.5, True), (0.5, False))]
    assert ["best" in row for row in rows] == [True, False]
    assert "best" not in table.row(epoch(1, math.nan, improved=True), 1.0).plain
    assert rows[0].isascii()


def test_every_json_line_parses_and_nothing_is_not_finite(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    display = Display(OutputOptions(json_lines=True))
    display(StoreProgress("train", 1, 1))
    display(RunStarted(Path("run"), ("device cpu",), 0, 2, 2))
    for batch in (1, 2):
        display(StepDone(1, batch, 0.1, math.inf, 0.3, 46.0, 9.0))
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)  # at most one a second
    display(ValidationProgress(1, 3, 8))
    display(ValidationProgress(1, 8, 8))
    display(EpochDone(1, ROW | {"val/map": math.nan}, None, True))
    display(RunFinished(Path("run"), "complete", None, math.nan, 61.0))
    display.finished(Path("run"))
    display.say("for people")
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in events] == [
        "decoding", "run_started", "step", "validating", "epoch", "run_finished", "finished"
    ]  # fmt: skip
    assert events[1] == {
        "event": "run_started", "folder": "run", "first_epoch": 1, "num_epochs": 2, "num_batches": 2,
        "decisions": ["device cpu"],
    }  # fmt: skip
    assert (events[2]["batch"], events[2]["objectness"]) == (2, None)
    assert events[3] == {"event": "validating", "epoch": 1, "done": 3, "images": 8}
    assert events[4]["metrics"] == ROW | {"val/map": None}
    assert events[5] == {
        "event": "run_finished", "folder": "run", "reason": "complete", "best_epoch": None, "best_map": None,
        "seconds": 61.0,
    }  # fmt: skip
    assert events[6]["best_weights"] == str(Path("run") / "best.safetensors")


def test_a_log_gets_a_line_at_each_quarter_of_a_long_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("decoded") as count, Display() as display:
        for done in range(1, 203):
            count(done, 202)
            count(done, 202, verb="compared")
            display(StoreProgress("train", done, 202))
        for done in range(1, 41):
            count(done, 40)
            display(StoreProgress("val", done, 40))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    for done, *_ in (line.split()[1:] for line in lines):
        assert int(done) in (51, 101, 102, 152, 153, 202)


def test_a_log_is_never_silent_for_more_than_thirty_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, said_at = 1000.0, [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display()

    def passed(seconds: float, event: Event | None) -> str:
        """What is printed on an event so many seconds after the last one."""
        nonlocal now
        now += seconds
        display.concluding("measured", 5, 9) if event is None else display(event)
        if text := capsys.readouterr().out:
            said_at.append(now)
        return text

    lines = [passed(7, StoreProgress("train", done, 100)) for done in range(1, 11)]
    assert [done for done, line in enumerate(lines, 1) if line] == [4, 8]
    assert lines[3] == "decoded 4 of 100 train images\n"
    passed(1, RunStarted(Path("run"), ("device cpu",), 0, 2, 10))
    step = StepDone(1, 3, 0.1, 0.02, 0.3, 46.25, 61.0, images=120, num_images=400)
    lines = [passed(12, step) for _ in range(4)]
    assert lines[0] == lines[2] == ""
    for word in ("1/2", "120 of 400", "46.2 img/s", "0.1000", "0.0200", "0.3000", "1:01 left"):
        assert word in lines[1]
    assert "12 of 20" in passed(25, ValidationProgress(1, 12, 20))
    assert passed(3, ValidationProgress(1, 20, 20)) == ""
    assert "metrics of 20" in passed(26, ValidationProgress(1, 20, 20))
    passed(1, epoch(1, 0.5, improved=True))
    assert "5 of 9" in passed(29, None)
    assert max(later - earlier for earlier, later in pairwise(said_at)) <= 30


def test_short_epochs_have_no_line_but_their_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display()
    display(STARTED)
    for number in range(1, 41):
        for batch in range(1, 11):
            now += 1.5
            display(StepDone(number, batch, 0.1, 0.02, 0.3, 46.0, 61.0))
        now += 5
        display(ValidationProgress(number, 20, 20))
        display(epoch(number, 0.25, improved=False))
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1 + 40


def test_a_pass_over_images_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with counting("decoded") as count:
        count(30, 400)
    assert "30/400 images" in sys.stdout.getvalue()  # type: ignore[attr-defined]
