"""What `anchorite train` says of the data at its start, what it refuses, and that other commands use the same words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.data import open_dataset
from anchorite.errors import InputError
from anchorite.inspect import KINDS
from anchorite.train import train
from tests.cli.commands import quick_recipe
from tests.data.format_samples import coco_json, write_image, write_text
from tests.inspect.samples import yolo_folder
from tests.train.runs import small_recipe


def crowds(folder: Path, *flags: int) -> Path:
    """A COCO dataset of an image a flag, each with a box of that iscrowd; the pixels of all are damaged."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(len(flags))]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [36, 16, 24, 32], "iscrowd": flag}
        for n, flag in enumerate(flags)
    ]
    for n in range(len(flags)):
        picture = write_image(folder / f"{n}.png")
        picture.write_bytes(picture.read_bytes()[:-30])
    return coco_json(folder / "annotations/instances_train.json", boxes, images)


def test_masks_that_are_crowds_end_the_command_before_anything_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = crowds(tmp_path / "data", 1, 1, 1, 1)
    words = ["train", str(tmp_path / "data"), "--recipe", quick_recipe(), "--out", str(tmp_path / "run")]
    assert run(words) == 2
    output = capsys.readouterr()
    assert "train: 4 images, 0 boxes to learn, 4 regions ignored" in output.out
    assert "decod" not in output.out + output.err
    assert "all 4 boxes of train are ignored as crowds" in output.err
    assert f"{path}: annotation id 0" in output.err
    assert "iscrowd to 0" in output.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="all 4 boxes of train are ignored as crowds"):
        train(small_recipe(), open_dataset(tmp_path / "data"), tmp_path / "run")
    assert run([*words, "--json-lines"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["splits"]["train"] == {
        "images": 4, "boxes": 4, "boxes_to_learn": 0, "boxes_ignored": 4, "boxes_weighted": 0,
        "mean_weight": 1.0, "images_without_labels": 0,
        "images_left_out": {},
    }  # fmt: skip


def test_labels_that_are_nowhere_end_the_command_with_the_places_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = yolo_folder(tmp_path / "data", {"train": {"a": "0 0.5 0.5 0.4 0.4\n"}, "val": {"b": ""}})
    (folder / "labels").rename(folder / "somewhere")
    assert run(["train", str(folder), "--recipe", quick_recipe(), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "nothing to learn from" in message
    assert str(folder / "labels/train/a.txt") in message
    assert not (tmp_path / "run").exists()


def mixed(folder: Path) -> Path:
    """Three of four training images without labels, one box clipped and one dropped; val is train."""
    yolo_folder(
        folder, {"train": {"a": "0 0.5 0.5 0.4 0.4\n0 0.95 0.5 0.3 0.4\n0 0.5 0.5 0 0\n", "b": "", "c": "", "d": ""}}
    )
    write_text(folder / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    return folder


@pytest.mark.slow
def test_a_run_says_what_is_wrong_in_sentences_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = mixed(tmp_path / "data"), tmp_path / "run"
    assert run(["train", str(data), "--recipe", quick_recipe(), "--epochs", "1", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    label = data / "labels/train/a.txt"
    assert lines[1].startswith("train: 4 images, 2 boxes to learn, 3 images without labels")
    for said in (
        f"error: 1 box without area, dropped ({label}:3)",
        f"warning: 1 box that reaches outside its image, clipped ({label}:2)",
    ):
        assert lines.count(said) == 1
    assert any(line.startswith("error: 4 images in two splits") for line in lines)
    assert any(line.startswith("warning: most training images have no labels") for line in lines)
    assert any(line.startswith("warning: 1 class without a box in train") for line in lines)
    assert not any(kind in line for line in lines for kind in [*KINDS, "dropped-empty"] if "-" in kind)
    facts = json.loads((out / "run.json").read_text())["checks"]
    page = (out / "report.html").read_text()
    assert {"empty-box", "clipped-box", "shared-image", "mostly-background"} <= {
        one["kind"] for one in facts["findings"]
    }
    assert "1 box without area, dropped" in page
    assert "most training images have no labels" in page


@pytest.mark.slow
def test_background_that_is_meant_is_no_warning_on_the_terminal_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = mixed(tmp_path / "data"), tmp_path / "run"
    words = ["train", str(data), "--recipe", quick_recipe(), "--epochs", "1", "--out", str(out), "--background-ok"]
    assert run(words) == 0
    output = capsys.readouterr().out
    assert "most training images" not in output + (out / "report.html").read_text()
    assert "3 images without labels" in output
    assert "images in two splits" in output


@pytest.mark.slow
def test_without_val_one_line_says_how_to_have_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yolo_folder(tmp_path / "data", {"train": {"a": "0 0.5 0.5 0.4 0.4\n", "b": "1 0.5 0.5 0.4 0.4\n"}})
    words = ["train", str(data), "--recipe", quick_recipe(), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert run(words) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("val:"))
    assert f"anchorite split {data} NEW_FOLDER" in line
    assert "--val 0.2" in line


def test_copies_and_inspections_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = mixed(tmp_path / "data")
    assert run(["convert", str(data), str(tmp_path / "copy"), "--to", "coco"]) == 0
    copied = capsys.readouterr().out
    label = data / "labels/train/a.txt"
    assert f"error: 1 box without area, dropped ({label}:3)" in copied
    assert "box without area" in (tmp_path / "copy/changes.txt").read_text()
    assert run(["inspect", str(data)]) == 2
    inspected = capsys.readouterr()
    assert "1 box without area; 4 images in two splits" in inspected.err
    assert "reaches outside its image" in inspected.out
    for kind in ("empty-box", "dropped-empty", "shared-image"):
        assert kind not in copied + inspected.err
