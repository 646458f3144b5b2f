"""`anchorite runs`: what it says of runs that have ended, been interrupted, been damaged or not begun."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.files import is_locked
from tests.cli.commands import contents, finished_run
from tests.train.runs import held_elsewhere


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a run of two epochs, as if it had been killed before its end."""
    copied = tmp_path / "runs" / "mine"
    shutil.copytree(finished_run(), copied)
    (copied / "summary.json").unlink()
    return copied


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["runs", *words]) == 0
    return capsys.readouterr().out


def test_a_finished_run_has_nothing_to_go_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(finished_run()))
    assert "ended:       complete" in text
    assert "checkpoint:  epoch-0002.safetensors: whole, after epoch 2\n" in text
    assert text.endswith("a resume would do nothing: the run has ended (complete)\n")


def test_damage_and_leftovers_are_shown_and_nothing_is_changed(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    newest = folder / "checkpoints" / "epoch-0002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (folder / "checkpoints" / ".epoch-0003.safetensors.7.tmp").write_bytes(b"half")
    before = contents(folder)
    text = shown(capsys, str(folder))
    assert "checkpoint:  epoch-0002.safetensors: damaged: its SHA-256 is not that of the manifest\n" in text
    assert "checkpoint:  epoch-0001.safetensors: whole, after epoch 1\n" in text
    assert "left over:   .epoch-0003.safetensors.7.tmp" in text
    assert text.endswith(
        "a resume would continue after epoch 1 of 2, from epoch-0001.safetensors, skipping 1 damaged\n"
    )
    assert contents(folder) == before


def test_what_a_resume_would_do_without_any_whole_checkpoint(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    assert "no checkpoint is valid; it would end with exit code 4" in shown(capsys, str(folder))
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()
    (folder / "metrics.csv").unlink()
    assert "a resume would start over" in shown(capsys, str(folder))


def test_a_folder_of_runs_is_a_line_each(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    shutil.copytree(finished_run(), folder.parent / "other")
    first, second = shown(capsys, str(folder.parent)).splitlines()
    assert first.startswith("mine   model n, 2 of 2 epochs")
    assert first.endswith("resume: continue after epoch 2 of 2, from epoch-0002.safetensors")
    assert second.startswith("other  ")


def test_a_run_in_progress_is_called_so(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with held_elsewhere(folder):
        assert "ended:       no, it is being trained" in shown(capsys, str(folder))
    assert not is_locked(folder / ".lock")


def test_what_is_no_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for place, said in ((tmp_path, "holds no run"), (tmp_path / "nothing", "not a run folder")):
        assert run(["runs", str(place)]) == 2
        assert said in capsys.readouterr().err
