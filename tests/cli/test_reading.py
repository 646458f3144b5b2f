"""The flags and recipe fields that say how labels are read: obeyed by each command, and remembered by a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.data import open_dataset
from anchorite.errors import InputError
from anchorite.model import load_weights
from anchorite.train import load_recipe, train
from anchorite.tune import Study, default_space
from tests.cli.commands import QUICK, data_folder
from tests.inspect.samples import yolo_folder
from tests.train.runs import small_recipe

NAMES = open_dataset(data_folder()).class_names
KEPT = NAMES[2:]


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(word) for word in words])
    return code, *capsys.readouterr()


def animals(folder: Path) -> Path:
    rows = {"a": "0 0.5 0.5 0.2 0.2 0.5\n1 0.2 0.2 0.1 0.1\n", "b": "1 0.5 0.5 0.3 0.4\n"}
    return yolo_folder(folder, {"train": rows, "val": {"c": "0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.1 0.1\n"}})


def test_a_run_reads_its_data_as_recipe_and_flags_say_and_remembers_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, recipe, folder = tmp_path / "data", tmp_path / "mine.yaml", tmp_path / "run"
    shutil.copytree(data_folder(), data)
    label = next((data / "labels" / "train").iterdir())
    label.write_text("".join(f"{line} 0.5\n" for line in label.read_text().splitlines()))
    recipe.write_text(QUICK + f"ignore_classes: [{NAMES[0]}]\n")
    words = ["--ignore-class", NAMES[1], "--scores", "as-weights"]
    code, out, _ = called(capsys, "train", data, "--recipe", recipe, "--out", folder, "--epochs", "1", *words)
    assert code == 0
    first = out.splitlines()[0]
    assert f"{len(KEPT)} class" in first
    assert "scores are weights" in first
    assert "regions ignored" in out
    assert "weighted (mean 0.50)" in out
    facts = json.loads((folder / "run.json").read_text())
    assert (set(facts["ignore_classes"]), facts["scores"], facts["class_names"]) == (
        set(NAMES[:2]),
        "as-weights",
        list(KEPT),
    )
    weights = folder / "last.safetensors"
    assert load_weights(weights)[1].class_names == KEPT
    (folder / "summary.json").unlink()
    assert called(capsys, "train", "--resume", folder)[0] == 0
    code, _, message = called(capsys, "validate", weights, data)
    remedy = f"--ignore-class {NAMES[0]} --ignore-class {NAMES[1]}"
    assert (code, remedy in message) == (2, True)
    assert called(capsys, "validate", weights, data, *remedy.split())[0] == 0


def test_a_dataset_that_was_opened_otherwise_than_the_recipe_says_is_refused(tmp_path: Path) -> None:
    dataset = open_dataset(animals(tmp_path / "data"))
    for settings in ({"ignore_classes": ["cat"]}, {"scores": "as-weights"}):
        with pytest.raises(InputError, match="open_dataset"):
            train(small_recipe(**settings), dataset, tmp_path / "run")
    assert load_recipe("small-data", {"ignore_classes": ["a", "b"]}).ignore_classes == ("a", "b")
    asked = open_dataset(tmp_path / "data", ignore_classes=["cat"], scores="as-weights")
    study = Study.create(tmp_path / "study", asked, small_recipe(), default_space())
    assert (study.facts["ignore_classes"], study.facts["scores"]) == (["cat"], "as-weights")


def test_inspect_and_convert_obey_the_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, words = animals(tmp_path / "data"), ("--ignore-class", "dog", "--scores", "as-weights")
    code, out, _ = called(capsys, "inspect", data, *words)
    assert code == 0
    assert [line.split()[-2:] for line in out.splitlines() if line.startswith("ignored regions")] == [["2", "1"]]
    assert called(capsys, "convert", data, tmp_path / "coco", "--to", "coco", *words)[0] == 0
    copy = open_dataset(tmp_path / "coco")
    assert (copy.class_names, copy.scores) == (("cat",), "as-weights")
    assert [split.num_ignored() for split in copy.splits.values()] == [2, 1]
    assert called(capsys, "convert", data, tmp_path / "shards", "--to", "shards", *words)[0] == 0
    assert open_dataset(tmp_path / "shards").class_names == ("cat",)
    code, _, message = called(capsys, "convert", tmp_path / "shards", tmp_path / "x", "--to", "voc", *words[:1], "cat")
    assert (code, "all of its classes" in message) == (2, True)


def test_a_class_that_there_is_not_ends_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, out = animals(tmp_path / "data"), tmp_path / "out"
    commands = (
        *(["train", data, "--out", out], ["convert", data, out, "--to", "coco"], ["split", data, out]),
        *(
            ["inspect", data],
            ["anchors", data],
            ["explain", data, "--out", out.with_suffix(".html")],
            ["tune", data, "--out", out],
        ),
    )
    for words in commands:
        code, _, message = called(capsys, *words, "--ignore-class", "bird")
        assert (code, "'bird'" in message, "'cat', 'dog'" in message) == (2, True, True), words
    assert not out.exists()


def test_the_classes_of_shards_are_fixed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, out = animals(tmp_path / "data"), tmp_path / "shards"
    assert called(capsys, "convert", data, out, "--to", "shards")[0] == 0
    code, _, message = called(capsys, "inspect", out, "--ignore-class", "cat")
    assert (code, "--to shards --ignore-class" in message) == (2, True)
