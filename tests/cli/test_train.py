"""`anchorite train`: what it prints, what it leaves, how a run is gone on with, and wrong data."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
from pathlib import Path

import cv2
import pytest
import torch

from anchorite.cli import run
from anchorite.train import RunFolder
from tests.cli.commands import contents, data_folder, finished_run, outside_config, quick_recipe, weights
from tests.cli.test_usage import refused

pytestmark = pytest.mark.slow


def own_copy(tmp_path: Path) -> Path:
    """The data, to be spoilt."""
    return Path(shutil.copytree(data_folder(), tmp_path / "data"))


def test_a_run_says_what_it_does_line_by_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = own_copy(tmp_path)
    label = next((data / "labels" / "train").iterdir())
    label.write_text(label.read_text() + "0 0.95 0.5 0.2 0.4\n")
    assert run(["train", "data", "--recipe", quick_recipe(), "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data: data (yolo), 5 classes"
    assert [line.partition(" images, ")[0] for line in lines[1:4]] == ["train: 10", "val: 4", "test: 2"]
    clipped = "warning: 1 box that reaches outside its image, clipped"
    assert lines[4].startswith(f"{clipped} ({Path('data') / 'labels' / 'train'}")
    for start in ("device cpu", "precision fp32: as requested", "anchors: ", "effective gains: ", "images in store"):
        assert any(line.startswith(start) for line in lines), start
    header = next(number for number, line in enumerate(lines) if line.split()[:2] == ["epoch", "box"])
    assert len(lines[header].split()) == 9
    for epoch in (1, 2):
        fields = lines[header + epoch].split()
        assert fields[0] == f"{epoch}/2"
        assert fields[-1].count(":") == 1
    assert lines[header + 3].startswith("done (complete)")
    folder = Path("runs") / "data-n"
    assert lines[header + 4 :] == [
        "writing plots, pictures and the report ...",
        f"weights: {folder / 'best.safetensors'}",
        f"report:  {folder / 'report.html'}",
        f"use it:  anchorite predict {folder / 'best.safetensors'} IMAGES",
    ]
    assert not any("\x1b" in line for line in lines)


def test_a_run_leaves_pictures_and_facts_and_shows_them() -> None:
    folder = finished_run()
    names = {str(path.relative_to(folder)) for path in contents(folder)}
    assert {"plots/pr_curve.png", "plots/f1_curve.png", "plots/confusion_matrix.png"} <= names
    pictures = sorted((folder / "predictions").iterdir())
    assert [path.name for path in pictures] == [f"{number + 1:02d}-scene_{number:05d}.jpg" for number in range(4)]
    assert all(cv2.imread(str(path)).shape == (64, 64, 3) for path in pictures)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["reason"] == "complete"
    assert summary["environment"]["torch"] == torch.__version__
    assert summary["environment"]["python"] == platform.python_version()
    assert {"anchorite", "platform", "processor", "cores", "device"} <= summary["environment"].keys()
    dataset = summary["dataset"]
    assert dataset["path"] == str(data_folder() / "data.yaml") or dataset["path"] == str(data_folder())
    assert [(row["split"], row["images"]) for row in dataset["splits"]] == [("train", 10), ("val", 4), ("test", 2)]
    assert sum(row["train"] for row in dataset["boxes_by_class"]) == dataset["splits"][0]["objects"] > 0
    assert summary["best_validation"]["images"] == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    for shown in (
        "Precision over recall",
        "Confusion matrix",
        pictures[0].name,
        torch.__version__,
        "Objects of each class",
    ):
        assert shown in page
    assert sorted(path.name for path in (folder / "examples").iterdir()) == [
        "best-01.jpg",
        "best-02.jpg",
        "worst-01.jpg",
        "worst-02.jpg",
    ]
    assert page.count("data:image/") == 4 + 4


def test_a_complete_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished_run())
    capsys.readouterr()
    assert run(["train", "--resume", str(finished_run())]) == 0
    assert "this run is complete" in capsys.readouterr().out
    assert contents(finished_run()) == before


def test_a_run_that_lacks_only_its_page_gets_it_without_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run(), tmp_path / "run"))
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "plots")
    before = contents(folder / "checkpoints")
    assert run(["train", "--resume", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert (folder / "plots" / "pr_curve.png").is_file()
    assert contents(folder / "checkpoints") == before


def test_resuming_takes_no_recipe_and_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished_run())
    capsys.readouterr()
    code, message = refused(capsys, "train", "--resume", finished_run(), "--batch", "5", "--set", "patience=3")
    assert code == 2
    assert "--batch, --set with --resume" in message
    code, message = refused(capsys, "train", "--resume", finished_run(), "--epochs", "5", "--set", "patience=3")
    assert code == 2
    assert "--set with --resume" in message
    code, message = refused(capsys, "train", "--resume", finished_run(), "--out", "elsewhere")
    assert code == 2
    assert "--out with --resume" in message
    code, message = refused(capsys, "train", "--resume", data_folder())
    assert code == 2
    assert "not a run folder (no recipe.yaml and no run.json)" in message
    assert contents(finished_run()) == before


def test_a_run_that_has_ended_is_trained_for_longer_in_a_new_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run(), tmp_path / "it's run"))
    before = contents(folder)
    for epochs in ("2", "1"):
        code, message = refused(capsys, "train", "--resume", folder, "--epochs", epochs)
        assert code == 2
        assert f"epochs {epochs}: {folder} has trained 2 already; give a number above 2" in message
    assert run(["train", "--resume", str(folder)]) == 0
    words = f"anchorite train --resume {shlex.quote(str(folder))} --epochs 4"
    assert words in capsys.readouterr().out
    assert run(["train", "--resume", str(folder), "--epochs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    new = tmp_path / "it's run-2"
    (said,) = [line for line in lines if line.startswith("continues ")]
    for part in (str(folder), "after epoch 2", "1 more, to 3 in all", "new schedule"):
        assert part in said
    assert f"run: {new}, epochs 1 to 1" in lines
    assert lines[-1] == f"use it:  anchorite predict {shlex.quote(str(new / 'best.safetensors'))} IMAGES"
    assert (new / "report.html").is_file()
    assert run(["train", "--resume", str(folder), "--epochs", "3", "--out", str(tmp_path / "other"), "--quiet"]) == 0
    capsys.readouterr()
    assert RunFolder(tmp_path / "other").read_facts()["continues"]["epochs"] == 2
    assert contents(folder) == before
    code, message = refused(capsys, "train", "--resume", folder, "--epochs", "3", "--out", new)
    assert code == 2
    assert "exists already" in message


def test_an_edited_number_of_epochs_and_a_run_under_way_lead_to_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run(), tmp_path / "run"))
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("\nepochs: 2\n", "\nepochs: 3\n"), encoding="utf-8")
    code, message = refused(capsys, "train", "--resume", folder, "--allow", "recipe")
    assert code == 2
    assert "epochs was 2, now it is 3, and this run has ended" in message
    assert f"anchorite train --resume {folder} --epochs 3" in message
    (folder / "summary.json").unlink()
    code, message = refused(capsys, "train", "--resume", folder, "--epochs", "5")
    assert code == 2
    assert "has not ended" in message
    assert message.rstrip().endswith(f"anchorite train --resume {folder}")


def test_training_is_square(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["--image-size", "192,320"], ["--set", "image_size=192,320"], ["--set", "image_size=[192,320]"]):
        code, message = refused(capsys, "train", data_folder(), "--out", tmp_path / "run", *words)
        assert code == 2
        assert "training is square" in message
    assert list(tmp_path.iterdir()) == []


def test_a_run_remembers_how_its_data_is_read_and_takes_data_that_has_moved(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config, folder = outside_config(tmp_path), tmp_path / "run"
    bad = tmp_path / "config" / "bad"
    shutil.copytree(data_folder() / "labels" / "train", bad / "labels")
    shutil.copytree(data_folder() / "images" / "train", bad / "images")
    label = next((bad / "labels").iterdir())
    label.write_text(label.read_text() + "0 0.5 oops 0.2 0.4\n")
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("train:")]
    config.write_text("\n".join([*lines, f"train: {json.dumps(str(bad / 'images'))}"]), encoding="utf-8")
    words = ["train", str(config), "--recipe", quick_recipe(), "--out", str(folder), "--epochs", "1"]
    code, message = refused(capsys, *words, "--skip-bad")
    assert (code, "leads out of the dataset" in message, "--allow-outside" in message) == (2, True, True)
    code, message = refused(capsys, *words, "--allow-outside")
    assert (code, "oops" in message, "--skip-bad" in message) == (2, True, True)
    assert not folder.exists()
    assert run([*words, "--skip-bad", "--allow-outside"]) == 0
    (folder / "summary.json").unlink()
    capsys.readouterr()
    config.rename(tmp_path / "config" / "moved.yaml")
    code, message = refused(capsys, "train", "--resume", folder)
    assert (code, str(config) in message, "does not exist" in message) == (2, True, True)
    assert run(["train", str(tmp_path / "config" / "moved.yaml"), "--resume", str(folder)]) == 0


def test_bad_labels_and_images_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = own_copy(tmp_path)
    label = sorted((data / "labels" / "train").iterdir())[3]
    kept = label.read_text()
    label.write_text(kept + "99 0.5 0.5 0.2 0.4\n")
    code, message = refused(capsys, "train", data, "--recipe", quick_recipe(), "--out", tmp_path / "run")
    assert code == 2
    assert f"{label}:{len(kept.splitlines()) + 1}" in message
    assert "99" in message
    assert "--skip-bad" in message
    label.write_text(kept)
    image = sorted((data / "images" / "train").iterdir())[2]
    image.write_bytes(image.read_bytes()[:-300])
    assert run(["train", str(data), "--recipe", quick_recipe(), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert str(image) in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_missing_splits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = own_copy(tmp_path)
    config = (data / "data.yaml").read_text()
    words = ["train", str(data), "--recipe", quick_recipe(), "--epochs", "1", "--out"]
    (data / "data.yaml").write_text("\n".join(line for line in config.splitlines() if not line.startswith("val")))
    assert run([*words, str(tmp_path / "unseen")]) == 0
    output = capsys.readouterr().out
    assert "no val split: every epoch replaces best.safetensors" in output
    assert "no mAP is known" in output.splitlines()[-5]
    assert json.loads((tmp_path / "unseen" / "summary.json").read_text())["best_map"] is None
    (data / "data.yaml").write_text(config)
    for label in (data / "labels" / "val").iterdir():
        label.write_text("")
    assert run([*words, str(tmp_path / "unlabelled")]) == 0
    output = capsys.readouterr().out
    assert "the val split has no labels" in output
    assert "nan" not in output
    assert json.loads((tmp_path / "unlabelled" / "summary.json").read_text())["best_epoch"] is None
    for image in (data / "images" / "train").iterdir():
        image.unlink()
    assert run([*words, str(tmp_path / "none")]) == 2
    assert "train" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_divergence_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wild = ["--set", "optimizer.lr=1e30", "--set", "optimizer.clip_norm=0.0", "--set", "optimizer.warmup_epochs=0.0"]
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--epochs", "3"]
    # Two steps an epoch: the validation finds out first; ten: the steps themselves.
    for name, more, found in (("a", [], "in validation"), ("b", ["--batch", "1"], "5 steps in a row")):
        steps = ["--set", "optimizer.nominal_batch=1"] if more else []
        assert run([*words, "--out", str(tmp_path / name), *wild, *more, *steps]) == 3
        message = capsys.readouterr().err
        assert "training diverged: epoch" in message
        assert found in message
        assert "optimizer.lr" in message
    assert list((tmp_path / "b").glob("post-mortem-*.json"))
    assert run(["runs", str(tmp_path / "b")]) == 0
    assert "post-mortem: " in capsys.readouterr().out


def test_a_path_with_spaces_is_quoted_where_it_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "train", "nowhere", "--out", data_folder())
    assert code == 2
    folder = data_folder() / "run"
    shutil.copytree(finished_run(), folder)
    try:
        code, message = refused(capsys, "train", "nowhere", "--out", folder)
        assert f"--resume {shlex.quote(str(folder))}" in message
    finally:
        shutil.rmtree(folder)


def test_a_run_without_a_usable_checkpoint_is_not_told_to_be_resumed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run(), tmp_path / "run"))
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"damaged")
    before = contents(folder)
    assert run(["train", "--resume", str(folder)]) == 4
    message = capsys.readouterr().err
    assert "no checkpoint to resume from" in message
    assert "epoch-0002.safetensors: damaged" in message
    assert "to go on" not in message
    assert contents(folder) == before


def test_facts_that_are_damaged_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run(), tmp_path / "run"))
    RunFolder(folder).run.write_text("{}")
    code, message = refused(capsys, "train", "--resume", folder)
    assert code == 4
    assert f"{folder / 'run.json'}: damaged" in message
    assert weights()
