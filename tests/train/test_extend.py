"""More epochs for a run that has ended: a new run from its checkpoint, with a schedule of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from anchorite.data import DatasetIndex
from anchorite.errors import InputError, StorageError
from anchorite.train import Recipe, RunFolder, RunStarted, StepDone, extend, extended_recipe, load_recipe, resume, train
from tests.cli.commands import contents
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")
RECIPE = {"seed": 3, "optimizer__name": "sgd", "optimizer__lr": 0.01, "optimizer__warmup_epochs": 0.5}


@pytest.fixture(scope="module")
def ended(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, with 3 batches and 2 optimizer steps each; tests must not change it."""
    run = tmp_path_factory.mktemp("ended") / "run"
    train(small_recipe(**RECIPE), scenes(), run, Recorder())
    return run


@pytest.fixture
def own(ended: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(ended, tmp_path / "own"))


def checkpoint(run: Path, epoch: int) -> Path:
    return run / "checkpoints" / f"epoch-{epoch:04d}.safetensors"


def test_the_new_run_begins_where_the_old_one_ended(ended: Path, tmp_path: Path) -> None:
    before = contents(ended)
    recorder = Recorder()
    finished = extend(ended, scenes(), 3, tmp_path / "new", recorder)
    assert (finished.folder, finished.reason) == (tmp_path / "new", "complete")
    assert contents(ended) == before
    new = RunFolder(tmp_path / "new")
    assert [row["epoch"] for row in new.read_rows()] == ["1"]
    # The same weights, EMA, balance and optimizer state, bit for bit.
    assert checkpoint(new.path, 0).read_bytes() == checkpoint(ended, 2).read_bytes()
    digest = hashlib.sha256(checkpoint(ended, 2).read_bytes()).hexdigest()
    facts = new.read_facts()
    assert facts["continues"] == {"run": str(ended), "epochs": 2, "sha256": digest}
    manifest = json.loads(checkpoint(new.path, 1).with_suffix(".json").read_text())["body"]
    assert manifest["ema_updates"] == 4 + 2
    assert manifest["progress"]["optimizer_steps"] == 2
    (said,) = [text for text in recorder.of(RunStarted)[0].decisions if text.startswith("continues ")]
    for part in (str(ended), "after epoch 2", "1 more", "3 in all", "lr 0.01 to 0.0001", "seed 4"):
        assert part in said


def test_the_schedule_is_that_of_a_run_of_the_epochs_that_remain(ended: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    extend(ended, scenes(), 4, tmp_path / "new", recorder)
    steps = recorder.of(StepDone)
    assert [(step.epoch, step.batch) for step in steps] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    # Four optimizer steps, the first alone of the warm-up: rates of 0, then of the cosine at 1/3, 2/3 and 3/3.
    cosine = [0.01 * (0.01 + 0.99 * share) for share in (0.75, 0.25, 0.0)]
    expected = [0.0, cosine[0], cosine[1], cosine[2]]
    after_steps = [steps[1], steps[2], steps[4], steps[5]]
    assert [step.lr for step in after_steps] == pytest.approx(expected)
    assert [step.bias_lr for step in after_steps] == pytest.approx(expected)
    ours, theirs = load_recipe(tmp_path / "new" / "recipe.yaml"), load_recipe(ended / "recipe.yaml")
    assert (ours.epochs, ours.seed, ours.optimizer.warmup_bias_lr) == (2, 4, 0.0)
    optimizer = ours.optimizer.model_copy(update={"warmup_bias_lr": theirs.optimizer.warmup_bias_lr})
    assert ours.model_copy(update={"epochs": 2, "seed": 3, "optimizer": optimizer}) == theirs


def test_a_run_that_continues_another_goes_on_bit_for_bit_without_it(own: Path, tmp_path: Path) -> None:
    straight, broken, early = (tmp_path / name for name in ("straight", "broken", "early"))
    extend(own, scenes(), 4, straight, Recorder())

    class Stop(Exception):
        """Stands for whatever ends a run without a chance to save anything."""

    def stop_at(epoch: int, batch: int) -> object:
        def listen(event: object) -> None:
            if isinstance(event, StepDone) and (event.epoch, event.batch) == (epoch, batch):
                raise Stop

        return listen

    for folder, epoch, batch in ((broken, 2, 2), (early, 1, 1)):
        with pytest.raises(Stop):
            extend(own, scenes(), 4, folder, stop_at(epoch, batch))  # type: ignore[arg-type]
    shutil.rmtree(own)
    for folder in (broken, early):
        recorder = Recorder()
        resume(folder, scenes(), recorder)
        assert any(text.startswith("continues ") for text in recorder.of(RunStarted)[0].decisions)
        assert checkpoint(folder, 2).read_bytes() == checkpoint(straight, 2).read_bytes()
        assert (folder / "last.safetensors").read_bytes() == (straight / "last.safetensors").read_bytes()


def test_a_continued_run_is_continued_by_epochs_in_all(ended: Path, tmp_path: Path) -> None:
    extend(ended, scenes(), 3, tmp_path / "second", Recorder())
    recipe, continues = extended_recipe(RunFolder(tmp_path / "second"), 10)
    assert (recipe.epochs, recipe.seed, continues["epochs"]) == (7, 5, 3)
    with pytest.raises(InputError, match="has trained 3 already"):
        extended_recipe(RunFolder(tmp_path / "second"), 3)


@pytest.mark.parametrize("epochs", [2, 1, 0, -1])
def test_no_more_epochs_than_it_has_are_refused(ended: Path, tmp_path: Path, epochs: int) -> None:
    with pytest.raises(InputError, match=rf"epochs {epochs}: .* has trained 2 already; give a number above 2"):
        extend(ended, scenes(), epochs, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_continued_says_what_to_do(own: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whole number"):
        extend(own, scenes(), "5", tmp_path / "new")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a run folder"):
        extend(tmp_path, scenes(), 5, tmp_path / "new")
    with pytest.raises(InputError, match="exists already"):
        extend(own, scenes(), 5, own)
    (own / "summary.json").rename(own / "elsewhere.json")
    with pytest.raises(InputError, match=f"has not ended.*anchorite train --resume {own}"):
        extend(own, scenes(), 5, tmp_path / "new")
    (own / "elsewhere.json").rename(own / "summary.json")
    for path in (own / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(StorageError, match=r"no valid checkpoint.*--weights .*last.safetensors"):
        extend(own, scenes(), 5, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(own: Path, tmp_path: Path) -> None:
    checkpoint(own, 2).write_bytes(b"")
    recorder = Recorder()
    extend(own, scenes(), 3, tmp_path / "new", recorder)
    assert RunFolder(tmp_path / "new").read_facts()["continues"]["epochs"] == 1
    assert load_recipe(tmp_path / "new" / "recipe.yaml").epochs == 2
    assert any("epoch-0002.safetensors: damaged" in text for text in recorder.of(RunStarted)[0].decisions)


def test_changes_are_refused_unless_allowed_but_not_of_the_epochs(own: Path, tmp_path: Path) -> None:
    def edit(recipe: Recipe) -> None:
        (own / "recipe.yaml").write_text(recipe.to_yaml())

    recipe = RunFolder(own).read_recipe()
    fewer = replace(scenes(), splits={**scenes().splits, "train": scenes().splits["train"][:8]})
    with pytest.raises(InputError, match=r"train: 10 images.*8 images.*(?s:.)*--allow data"):
        extend(own, fewer, 3, tmp_path / "new")
    edit(recipe.model_copy(update={"epochs": 3, "batch": 5}))
    with pytest.raises(InputError, match=r"batch was 4, now it is 5") as caught:
        extend(own, scenes(), 3, tmp_path / "new")
    assert "epochs" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    recorder = Recorder()
    extend(own, fewer, 3, tmp_path / "new", recorder, allow=["data", "recipe"])
    with pytest.raises(InputError, match="batch was 4"):
        extend(own, fewer, 3, tmp_path / "other", allow="data")  # a word is a list of one
    facts = RunFolder(tmp_path / "new").read_facts()
    assert (facts["splits"]["train"]["images"], facts["recipe"]["batch"], facts["recipe"]["epochs"]) == (8, 5, 1)
    assert any("batch was 4" in text for text in recorder.of(RunStarted)[0].decisions)


def test_a_run_of_other_classes_is_never_continued(ended: Path, tmp_path: Path) -> None:
    other: DatasetIndex = replace(scenes(), class_names=(*scenes().class_names[:-1], "other"))
    with pytest.raises(InputError, match="class_names"):
        extend(ended, other, 3, tmp_path / "new", allow=["data", "recipe", "ranks"])
