"""--skip-bad and images that turn out damaged only when they are decoded: left out alike everywhere, and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from anchorite.cli import run
from anchorite.data import open_dataset
from anchorite.errors import InputError
from anchorite.evaluate import ReadConfig, Validator
from anchorite.train import RunFolder, StepDone, resume, train
from tests.cli.commands import data_folder, quick_recipe, weights
from tests.faults.watch import unchanged
from tests.small import small_networks
from tests.train.runs import Recorder, small_recipe


def cut(image: Path) -> Path:
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    return image


@pytest.fixture
def small() -> Iterator[None]:
    with small_networks():
        yield


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The scenes with an image of train and one of val cut short: their headers are whole."""
    data = Path(shutil.copytree(data_folder(), tmp_path / "damaged"))
    for split in ("train", "val"):
        cut(sorted((data / "images" / split).iterdir())[1])
    return data


@pytest.fixture
def smaller(tmp_path: Path) -> Path:
    """The scenes without these two images."""
    data = Path(shutil.copytree(data_folder(), tmp_path / "smaller"))
    for split in ("train", "val"):
        image = sorted((data / "images" / split).iterdir())[1]
        image.unlink()
        (data / "labels" / split / f"{image.stem}.txt").unlink()
    return data


def bits(run_folder: Path) -> dict[str, bytes]:
    tensors = load_file(run_folder / "checkpoints" / "epoch-0002.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("store", ["ram", "none", "disk", "device"])
def test_a_run_is_the_same_as_one_that_never_had_the_damaged_images(
    store: str, damaged: Path, smaller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorite.data.store.private_cache_folder", lambda: tmp_path / "cache")
    recipe = small_recipe(store=store)
    train(recipe, open_dataset(smaller), tmp_path / "a", Recorder())
    with unchanged(damaged):
        train(recipe, open_dataset(damaged, skip_bad=True), tmp_path / "b", Recorder())
    assert bits(tmp_path / "b") == bits(tmp_path / "a")
    noted = [json.loads((tmp_path / name / "run.json").read_text())["splits"] for name in "ab"]
    assert noted[0] == noted[1]
    assert noted[0]["train"]["images"] == 9
    rows = [RunFolder(tmp_path / name).read_rows() for name in "ab"]
    assert [row["val/map"] for row in rows[0]] == [row["val/map"] for row in rows[1]]


@pytest.mark.usefixtures("small")
def test_without_skip_bad_the_run_is_refused_with_both_ways_out(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)truncated.*--skip-bad"):
        train(small_recipe(), open_dataset(damaged), tmp_path / "run", Recorder())


def interrupt_at(batch: int) -> Callable[[object], None]:
    def listener(event: object) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.batch) == (1, batch):
            raise KeyboardInterrupt

    return listener


@pytest.mark.usefixtures("small")
def test_a_resumed_run_leaves_out_the_same_and_refuses_others(damaged: Path, tmp_path: Path) -> None:
    recipe, data = small_recipe(), open_dataset(damaged, skip_bad=True)
    train(recipe, data, tmp_path / "straight", Recorder())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "broken", interrupt_at(2))
    images = sorted((damaged / "images" / "train").iterdir())
    content = images[5].read_bytes()
    cut(images[5])
    with pytest.raises(InputError, match=r"data: train: 9 images, \d+ boxes then, 8 images, \d+ boxes now"):
        resume(tmp_path / "broken", open_dataset(damaged, skip_bad=True), Recorder())
    images[5].write_bytes(content)
    whole = sorted((data_folder() / "images" / "train").iterdir())[1]
    spoilt = images[1].read_bytes()
    shutil.copy(whole, images[1])
    with pytest.raises(InputError, match=r"data: train: 9 images, \d+ boxes then, 10 images, \d+ boxes now"):
        resume(tmp_path / "broken", open_dataset(damaged, skip_bad=True), Recorder())
    images[1].write_bytes(spoilt)
    resume(tmp_path / "broken", open_dataset(damaged, skip_bad=True), Recorder())
    assert bits(tmp_path / "broken") == bits(tmp_path / "straight")


@pytest.mark.usefixtures("small")
def test_where_no_image_remains_the_run_is_refused(damaged: Path, tmp_path: Path) -> None:
    for split, reason in (("val", "none of the 4 images"), ("train", "none of the 10 images")):
        data = Path(shutil.copytree(damaged, tmp_path / split))
        for image in (data / "images" / split).iterdir():
            cut(image)
        with pytest.raises(InputError, match=reason):
            train(small_recipe(), open_dataset(data, skip_bad=True), tmp_path / "run", Recorder())


def test_validation_measures_what_remains_and_names_the_rest(damaged: Path, smaller: Path) -> None:
    data = open_dataset(damaged, skip_bad=True)
    validator = Validator(data.splits["val"], data.class_names, 64, ReadConfig(skip_bad=True))
    assert len(validator) == 3
    assert [one.path for one in validator.left_out] == [data.splits["val"][1].path]
    others = open_dataset(smaller).splits["val"]
    for truth, record in zip(validator.truths, others, strict=True):
        assert np.array_equal(truth.boxes_xyxy, record.boxes_xyxy)


@pytest.mark.slow
def test_the_commands_tell_what_was_left_out_and_count_without_it(
    damaged: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = {split: sorted((damaged / "images" / split).iterdir())[1] for split in ("train", "val")}
    out = tmp_path / "run"
    with unchanged(damaged):
        assert run(["train", str(damaged), "--recipe", quick_recipe(), "--skip-bad", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for split, total in (("train", 10), ("val", 4)):
        assert f"{split}, {total} images: 1 image that cannot be decoded, left out ({bad[split]})" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert [split["images"] for split in summary["dataset"]["splits"]][:2] == [9, 3]
    assert summary["dataset"]["adjusted_labels"]["skipped-bad"] == 2
    assert run(["validate", weights(), str(damaged)]) == 2
    assert "--skip-bad" in capsys.readouterr().err
    assert run(["validate", weights(), str(damaged), "--skip-bad", "--json"]) == 0
    output = capsys.readouterr()
    json.loads(output.out)
    assert f"val: 1 image that cannot be decoded, left out\n  {bad['val']}: " in output.err
    assert bad["train"].name not in output.err or bad["train"].name == bad["val"].name
