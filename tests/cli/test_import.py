"""`anchorite import`: from a checkpoint to weights that the other commands take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anchorite.cli import run
from anchorite.model import load_weights
from tests.cli.commands import contents, started
from tests.model.torch_checkpoints import foreign_model, random_detector, read_in_this_process, save_checkpoint
from tests.shared import shared_path


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)


class Bait:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def checkpoint(path: Path, **others: object) -> Path:
    return save_checkpoint(path, foreign_model(random_detector(), {0: "cat", 1: "dog", 2: "a\nb\x1b[31m"}), **others)


def test_it_tells_what_it_found_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = shared_path("weights/foreign_n.pt"), tmp_path / "my weights.safetensors"
    assert run(["import", str(source), str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"found:   size n in {source}, 349 tensors; nothing of it was run",
        "from:    model",
        "classes: 80, of the checkpoint: person, bicycle, car, motorcycle, airplane, ...",
        "anchors: 10,13 16,30 33,23 | 30,61 62,45 59,119 | 116,90 156,198 373,326 px at strides 8, 16, 32",
        "image:   640 px, of the checkpoint",
        f"written: {out}",
        f"next:    anchorite validate '{out}' DATA",
    ]
    detector, info = load_weights(out)
    assert (info.size, info.class_names[79], detector.num_classes) == ("n", "toothbrush", 80)
    assert list(tmp_path.iterdir()) == [out]


def test_defaults_are_called_so_and_names_stay_on_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(tmp_path / "x.pt", ema=foreign_model(random_detector("n6"), None))
    assert run(["import", str(source), str(tmp_path / "a.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("found:   size n6 in ")
    assert lines[1] == "from:    ema, the average over training; its model is left out"
    assert lines[2] == "classes: 3, numbers, for the checkpoint has none: class 0, class 1, class 2"
    assert lines[4] == "image:   1280 px, the usual one, for the checkpoint does not say"
    assert run(["import", str(checkpoint(tmp_path / "y.pt")), str(tmp_path / "b.safetensors")]) == 0
    assert "classes: 3, of the checkpoint: cat, dog, a?b?[31m\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "out", "code", "said"),
    [
        ("x.pt", "taken.safetensors", 2, "exists already, and nothing is ever overwritten"),
        ("x.pt", "dangling.safetensors", 2, "exists already"),
        ("x.pt", "new.pt", 2, "weights are safetensors; name a file new.safetensors"),
        ("x.pt", "no/new.safetensors", 4, "there is no folder"),
        ("none.pt", "new.safetensors", 2, "no such file"),
        ("taken.safetensors", "new.safetensors", 2, "does not begin as a zip"),
        ("evil.pt", "new.safetensors", 5, "asks for posix.system (os.system), which could run code; nothing of it was"),
    ],
)
def test_mistakes_cost_nothing(
    source: str, out: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "x.pt")
    torch.save({"model": Bait(tmp_path / "marker")}, tmp_path / "evil.pt")
    (tmp_path / "taken.safetensors").write_text("mine, not a checkpoint")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    assert run(["import", str(tmp_path / source), str(tmp_path / out)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"anchorite: {tmp_path}")
    assert said in captured.err
    assert contents(tmp_path) == before


def test_words_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["import"], "SOURCE is missing"), (["import", "x.pt"], "OUT is missing")):
        assert run(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "anchorite import SOURCE OUT" in error


def test_a_pickle_given_to_another_command_is_refused_with_the_way_to_import_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(tmp_path / "it's.pt")
    assert run(["validate", str(source), "nowhere"]) == 5
    assert f"""anchorite import '{tmp_path}/it'"'"'s.pt' 'it'"'"'s.safetensors'""" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process(tmp_path: Path) -> None:
    torch.save({"model": Bait(tmp_path / "marker")}, tmp_path / "evil.pt")
    process = started("import", "evil.pt", "new.safetensors", cwd=tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (5, "")
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]
    helping = started("import", "--help")
    help_text, _ = helping.communicate(timeout=60)
    assert helping.returncode == 0
    for word in ("Usage: anchorite import SOURCE OUT", "original family", "without running anything"):
        assert word in help_text
