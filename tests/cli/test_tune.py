"""`anchorite tune` from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.train import load_recipe
from tests.cli.commands import data_folder, quick_recipe

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.slow
def test_a_study_ends_with_a_recipe_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("optimizer.lr: {low: 0.001, high: 0.02, log: true}\n")
    folder = tmp_path / "study"
    words = ["tune", str(data_folder()), "--recipe", quick_recipe(), "--space", str(space), "--out", str(folder)]
    assert run([*words, "--trials", "2"]) == 0
    out = capsys.readouterr().out
    assert "trial 0: mAP" in out
    assert "trial 1: mAP" in out
    assert f"best recipe: {folder / 'best.yaml'}" in out
    assert load_recipe(folder / "best.yaml").image_size == 64
    assert run(["tune", "--resume", str(folder), "--trials", "3"]) == 0
    out = capsys.readouterr().out
    assert "trial 2: mAP" in out
    assert "trial 1: mAP" not in out


@pytest.mark.slow
def test_a_study_goes_on_with_the_recipe_and_the_reading_it_was_started_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, recipe, space = tmp_path / "data", tmp_path / "mine.yaml", tmp_path / "space.yaml"
    shutil.copytree(data_folder(), data)
    with next((data / "labels" / "train").iterdir()).open("a") as file:
        file.write("0 bad row\n")
    recipe.write_text(Path(quick_recipe()).read_text())
    space.write_text("optimizer.lr: {low: 0.001, high: 0.02, log: true}\n")
    folder = tmp_path / "study"
    words = ["--recipe", str(recipe), "--space", str(space), "--out", str(folder), "--skip-bad", "--trials", "1"]
    assert run(["tune", str(data), *words]) == 0
    recipe.write_text("epochs: 900\nno such field: 3\n")
    assert run(["tune", "--resume", str(folder), "--trials", "2"]) == 0
    assert "trial 1: mAP" in capsys.readouterr().out
    assert load_recipe(folder / "trials" / "0001" / "recipe.yaml").epochs == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune"], "DATA is missing"),
        (["tune", "--resume", "nowhere", "--epochs", "3"], "--epochs with --resume"),
        (["tune", "--resume", "nowhere"], "no study"),
        (["tune", "data", "--space", "nowhere.yaml", "--out", "nowhere"], "nowhere.yaml"),
    ],
)
def test_wrong_uses_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
