"""A split val that a run makes of its training images: the same for the same seed, recorded, and taken up again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from anchorite.cli import run
from anchorite.data import DatasetIndex, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.distributed import World
from anchorite.errors import InputError
from anchorite.inspect import resplit, take_val
from anchorite.train import DataChecked, RunFolder, StepDone, load_recipe, resume, train
from anchorite.train.events import ignore
from anchorite.train.run import _with_val
from anchorite.train.run_folder import val_images
from tests.cli.commands import quick_recipe
from tests.inspect.samples import yolo_folder
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")


def unsplit() -> DatasetIndex:
    """The scenes without a split val; test stays."""
    splits = {name: records for name, records in scenes().splits.items() if name != "val"}
    return dataclasses.replace(scenes(), splits=splits)


def names(dataset: DatasetIndex, split: str) -> list[str]:
    return [path.name for path in dataset.split(split).paths()]


def test_val_gets_its_share_of_train_and_test_stays() -> None:
    before = unsplit()
    made = take_val(before, 0.2, seed=3)
    assert {name: len(records) for name, records in made.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert sorted(names(made, "train") + names(made, "val")) == sorted(names(before, "train"))
    assert names(made, "test") == names(before, "test")
    assert names(take_val(before, 0.2, seed=3), "val") == names(made, "val")
    train = dataclasses.replace(before, splits={"train": before.splits["train"]})
    assert names(resplit(train, {"train": 0.8, "val": 0.2}, 3)[0], "val") == names(made, "val")
    assert len({tuple(names(take_val(before, 0.2, seed=seed), "val")) for seed in range(6)}) > 1


def test_images_of_one_view_stay_together(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path, {"train": {f"{k}": f"{k % 2} 0.5 0.5 0.2 0.2\n" for k in range(12)}})
    for k in range(0, 12, 2):
        shutil.copy(folder / f"images/train/{k}.png", folder / f"images/train/{k + 1}.png")
    made = take_val(open_dataset(folder), 0.34, seed=0)
    assert len(made.split("val")) == 4
    assert {int(name[:-4]) // 2 for name in names(made, "val")}.isdisjoint(
        int(name[:-4]) // 2 for name in names(made, "train")
    )


@cache
def finished() -> Path:
    """A run with a val made of train; tests must not change it."""
    out = Path(mkdtemp()) / "run"
    train(small_recipe(val_share=0.2), unsplit(), out)
    return out


def test_a_run_records_what_it_made_and_measures_on_it() -> None:
    facts = json.loads((finished() / "run.json").read_text())
    made = take_val(unsplit(), 0.2, seed=small_recipe().seed)
    assert facts["val_split"] == {"share": 0.2, "seed": small_recipe().seed, "images": val_images(made)}
    assert [Path(image).name for image in facts["val_split"]["images"]] == names(made, "val")
    assert {name: one["images"] for name, one in facts["splits"].items()} == {"train": 8, "val": 2, "test": 2}
    assert facts["checks"]["splits"][1]["images"] == 2
    assert all(row["val/map"] != "nan" for row in RunFolder(finished()).read_rows())
    again = RunFolder(finished()).as_trained(unsplit())
    assert (names(again, "val"), names(again, "train")) == (names(made, "val"), names(made, "train"))


def interrupt(event: object) -> None:
    if isinstance(event, StepDone) and event.epoch == 2:
        raise KeyboardInterrupt


def test_a_resumed_run_takes_the_images_that_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(val_share=0.2), unsplit(), tmp_path / "run", interrupt)

    def refuse(*_: object) -> None:
        raise AssertionError("the split was made anew")

    monkeypatch.setattr("anchorite.train.run.take_val", refuse)
    recorder = Recorder()
    resume(tmp_path / "run", unsplit(), recorder)
    checked = recorder.of(DataChecked)[0].dataset
    assert names(checked, "val") == names(take_val(unsplit(), 0.2, small_recipe().seed), "val")
    last = [(folder / "last.safetensors").read_bytes() for folder in (tmp_path / "run", finished())]
    assert last[0] == last[1]


def test_a_split_val_of_its_own_is_neither_replaced_nor_mixed_with_another(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a split val of 4 images"):
        train(small_recipe(val_share=0.2), scenes(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="has a split val of 4 images"):
        RunFolder(finished()).as_trained(scenes())


def test_data_of_which_val_images_are_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(val_share=0.2), unsplit(), tmp_path / "run", interrupt)
    gone = unsplit().splits["train"].without({take_val(unsplit(), 0.2, small_recipe().seed).split("val")[0].path})
    less = dataclasses.replace(unsplit(), splits={**unsplit().splits, "train": gone})
    with pytest.raises(InputError, match=r"data: val: 2 images, \d+ boxes then, 1 images"):
        resume(tmp_path / "run", less)


class OtherRank(World):
    """Rank 1 of two, of which rank 0 has chosen these images."""

    images: tuple[str, ...] = ()

    def broadcast(self, value: Any) -> Any:
        assert value == []
        return list(self.images)


def test_every_rank_gets_the_choice_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(val_share=0.2)
    first, facts = _with_val(recipe, unsplit(), ignore, World())
    assert facts is not None
    monkeypatch.setattr("anchorite.train.run.take_val", lambda *_: pytest.fail("another rank decodes the images"))
    monkeypatch.setattr(OtherRank, "images", tuple(facts["images"]))
    second, _ = _with_val(recipe, unsplit(), ignore, OtherRank(1, 2))
    assert {name: one.fingerprint() for name, one in second.splits.items()} == {
        name: one.fingerprint() for name, one in first.splits.items()
    }


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"val_share|--val"):
        load_recipe(None, {"val_share": share})


def test_too_few_images_for_a_share_and_shards_are_refused(tmp_path: Path) -> None:
    one = dataclasses.replace(unsplit(), splits={"train": unsplit().splits["train"][:1]})
    with pytest.raises(InputError, match="too few for a split val"):
        train(small_recipe(val_share=0.2), one, tmp_path / "run")
    write_dataset(unsplit(), tmp_path / "shards", "shards")
    with pytest.raises(InputError, match="shards"):
        train(small_recipe(val_share=0.2), open_dataset(tmp_path / "shards"), tmp_path / "run")


def test_damaged_images_are_left_out_by_skip_bad_and_refused_without(tmp_path: Path) -> None:
    data = Path(shutil.copytree(unsplit().root.parent, tmp_path / "data"))
    shutil.rmtree(data / "images/val")
    image = sorted((data / "images/train").iterdir())[1]
    image.write_bytes(image.read_bytes()[:-300])
    config = data / "data.yaml"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if not line.startswith("val")))
    with pytest.raises(InputError, match=image.name):
        train(small_recipe(val_share=0.25), open_dataset(data), tmp_path / "run")
    dataset = open_dataset(data, skip_bad=True)
    train(small_recipe(val_share=0.25, epochs=1), dataset, tmp_path / "run")
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert [Path(one["image"]).name for one in facts["left_out"]] == [image.name]
    assert sum(one["images"] for name, one in facts["splits"].items() if name != "test") == 9
    again = RunFolder(tmp_path / "run").as_trained(dataset)
    assert {name: len(records) for name, records in again.splits.items()} == {
        name: one["images"] for name, one in facts["splits"].items()
    }


@pytest.mark.slow
def test_the_command_line_trains_validates_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    rows = {f"{k}": f"{k % 2} 0.5 0.5 0.4 0.4\n" for k in range(8)}
    yolo_folder(data, {"train": rows})
    words = ["--recipe", quick_recipe(), "--epochs", "1", "--out", str(tmp_path / "run"), "--val", "0.25"]
    assert run(["train", str(data), *words]) == 0
    said = capsys.readouterr().out
    assert "val: 2 images" in said
    assert "no such split" not in said
    best = tmp_path / "run/best.safetensors"
    assert run(["validate", str(best), str(data), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["images"] == 2
    assert "the 2 images of train" in output.err
    assert "2 images of train" in (tmp_path / "run/report.html").read_text()
    (tmp_path / "run/report.html").unlink()
    assert run(["train", "--resume", str(tmp_path / "run")]) == 0
    other = yolo_folder(tmp_path / "other", {"train": {"x": "0 0.5 0.5 0.4 0.4\n"}})
    capsys.readouterr()
    assert run(["validate", str(best), str(other)]) == 2
    assert "name the data that it was trained on" in capsys.readouterr().err
    assert run(["validate", str(best), str(other), "--split", "train"]) == 0
    assert run(["explain", str(data), "--weights", str(best), "--out", str(tmp_path / "page.html")]) == 0
