"""What a person sees in a terminal, and what a program reads with --json-lines, from real processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anchorite.cli import run
from tests.cli.commands import COMMAND, data_folder, quick_recipe, weights
from tests.cli.terminals import SeenScreen, in_terminal

pytestmark = pytest.mark.slow


def test_a_run_in_a_terminal_leaves_a_table_and_its_paths(tmp_path: Path) -> None:
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(tmp_path / "r")]
    written, code = in_terminal(*words, columns=80, NO_COLOR="1")
    lines = SeenScreen(80).feed(written).shown()
    assert code == 0, lines
    header = lines.index("  epoch      box   object    class   img/s   mAP50     mAP  best     left")
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["1/2", "2/2"]
    assert lines[header + 1].split()[-2] == "best"
    assert lines[header + 3].startswith("done (complete)")
    text = "\n".join(lines)
    assert "hint: Ctrl-C stops the run and loses nothing." in text
    assert "hint: 10 training images are few" in text
    assert "\x1b[3" not in written.replace("\x1b[3m", "")  # italic is no colour


def test_ctrl_c_in_a_terminal_wipes_the_bar_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), "--epochs", "60"]
    written, code = in_terminal(*words, columns=200, interrupt_when=lambda text: "best so far" in text)
    lines = SeenScreen(200).feed(written).shown()
    assert code == 130
    end = "\n".join(lines).rstrip().splitlines()[-3:]
    assert end[0].split()[0].endswith("/60")
    assert end[1] == "anchorite: interrupted"
    assert end[2].startswith("to go on with the run: anchorite train --resume ")
    assert not any("best so far" in line or "^C" in line for line in lines)


def test_a_run_beside_one_that_has_ended_gets_no_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "summary.json").write_text("{}")
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(tmp_path / "r"), "--epochs", "1"]
    assert run(words) == 0
    assert "1/1" in screen.getvalue()
    assert "hint:" not in screen.getvalue()


def test_json_lines_are_complete(tmp_path: Path) -> None:
    # A fresh process, which imports what it needs as it goes, trains to the end: all others are forked.
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(tmp_path / "r"), "--json-lines"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "data"
    assert [name for name in names if name in ("run_started", "epoch", "run_finished", "finished")] == [
        "run_started", "epoch", "epoch", "run_finished", "finished"
    ]  # fmt: skip
    assert events[0]["splits"]["val"]["images"] == 4
    assert all(Path(events[-1][name]).is_file() for name in ("best_weights", "last_weights", "report"))


def test_validate_and_predict_print_json_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = weights()
    capsys.readouterr()
    assert run(["validate", words, str(data_folder()), "--json-lines"]) == 0
    (one,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (one["event"], one["images"], one["split"]) == ("validated", 4, "val")
    photos = str(data_folder() / "images" / "val")
    assert run(["predict", words, photos, "--json-lines", "--out", str(tmp_path / "p")]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["image"] * 4 + ["predicted"]
    assert (events[0]["width"], events[0]["height"]) == (64, 64)
    assert run(["predict", words, photos, "--quiet", "--out", str(tmp_path / "q")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train nowhere --epochs 1.5", "--epochs: '1.5' is no whole number; write one such as 10"),
        ("train nowhere --quiet --json-lines", "--quiet and --json-lines: choose one"),
        ("validate w d --json --json-lines", "--json and --json-lines: choose one"),
    ],
)
def test_wrong_uses_say_what_to_do(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words.split()) == 2
    assert message in capsys.readouterr().err
