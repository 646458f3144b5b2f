"""Whole small runs: equal seeds, resuming bit for bit, what a run leaves, and how it ends when it diverges."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from anchorite.errors import DivergedError, InputError, StorageError
from anchorite.model import load_weights
from anchorite.train import (
    DataChecked,
    EpochDone,
    RunFinished,
    RunFolder,
    RunStarted,
    StepDone,
    StoreProgress,
    load_recipe,
    resume,
    train,
)
from anchorite.train.checkpoint import load_latest
from anchorite.train.setup import prepare
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")

DETERMINED = ("epoch", "train/box", "train/objectness", "train/classification", "lr", "val/map", "val/map50")


def checkpoint_tensors(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load((run / "checkpoints" / f"epoch-{epoch:04d}.safetensors").read_bytes())


def assert_equal_runs(one: Path, other: Path, epoch: int) -> None:
    ours, theirs = checkpoint_tensors(one, epoch), checkpoint_tensors(other, epoch)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    assert (one / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    rows, other_rows = RunFolder(one).read_rows(), RunFolder(other).read_rows()
    for name in DETERMINED:
        assert [row.get(name) for row in rows] == [row.get(name) for row in other_rows]


@cache
def finished_run() -> tuple[Path, Recorder]:
    """A run of two epochs with its events; tests must not change it."""
    out, recorder = Path(tempfile.mkdtemp()) / "run", Recorder()
    train(small_recipe(), scenes(), out, recorder)
    return out, recorder


def test_a_run_leaves_what_it_promises() -> None:
    out, recorder = finished_run()
    (finished,) = recorder.of(RunFinished)
    assert finished.reason == "complete"
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "recipe.yaml", "run.json", "metrics.csv", "summary.json", "checkpoints", "best.safetensors", "last.safetensors"
    }  # fmt: skip
    assert load_recipe(out / "recipe.yaml") == small_recipe()
    rows = RunFolder(out).read_rows()
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(DETERMINED) <= set(rows[0])
    decoded = [
        StoreProgress(split, done, total)
        for split, total in (("train", 10), ("val", 4))
        for done in range(1, total + 1)
    ]
    checked = recorder.of(DataChecked)
    assert len(checked) == 1
    assert checked[0].dataset is scenes()
    assert recorder.events[: len(decoded) + 2] == [*checked, *decoded, *recorder.of(RunStarted)]
    started = recorder.of(RunStarted)
    assert len(started) == 1
    assert any("precision fp32: as requested" in text for text in started[0].decisions)
    assert len(recorder.of(EpochDone)) == 2
    # 10 images in batches of 4: 3 batches an epoch.
    assert [event.batch for event in recorder.of(StepDone)] == [1, 2, 3] * 2
    assert recorder.of(StepDone)[-1].seconds_left == 0
    assert recorder.events[-1] is finished
    detector, info = load_weights(out / "last.safetensors")
    assert info.class_names == scenes().class_names
    assert info.image_size == 64
    averaged = {name.removeprefix("ema."): tensor for name, tensor in checkpoint_tensors(out, 2).items()}
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in detector.state_dict().items())


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(tmp_path: Path) -> None:
    first, _ = finished_run()
    train(small_recipe(workers=2), scenes(), tmp_path / "same", Recorder())
    assert_equal_runs(first, tmp_path / "same", 2)
    train(small_recipe(seed=1, epochs=1), scenes(), tmp_path / "other", Recorder())
    ours, theirs = checkpoint_tensors(first, 1), checkpoint_tensors(tmp_path / "other", 1)
    assert not torch.equal(ours["model.head.predictors.p3.weight"], theirs["model.head.predictors.p3.weight"])


class Stop(Exception):
    """Stands for whatever ends a run without a chance to save anything."""


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_resuming_is_bit_exact(tmp_path: Path, name: str) -> None:
    recipe = small_recipe(optimizer__name=name, optimizer__lr=0.001)
    train(recipe, scenes(), tmp_path / "straight", Recorder())

    def stop_in_the_second(event: object) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.batch) == (2, 2):
            raise Stop

    with pytest.raises(Stop):
        train(recipe, scenes(), tmp_path / "broken", stop_in_the_second)
    recorder = Recorder()
    resume(tmp_path / "broken", scenes(), recorder)
    assert recorder.of(RunStarted)[0].first_epoch == 1
    assert [event.epoch for event in recorder.of(EpochDone)] == [2]
    assert_equal_runs(tmp_path / "straight", tmp_path / "broken", 2)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished_run()[0], tmp_path / "run"))
    reference = checkpoint_tensors(out, 2)
    path = out / "checkpoints" / "epoch-0002.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    recorder = Recorder()
    resume(out, scenes(), recorder)
    assert recorder.of(RunStarted)[0].first_epoch == 1
    assert any("epoch-0002.safetensors: damaged" in text for text in recorder.of(RunStarted)[0].decisions)
    again = checkpoint_tensors(out, 2)
    assert all(torch.equal(again[name], tensor) for name, tensor in reference.items())


def test_without_a_whole_checkpoint_nothing_starts_and_nothing_is_deleted(tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished_run()[0], tmp_path / "run"))
    for path in (out / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(StorageError, match="no checkpoint to resume from"):
        resume(out, scenes(), Recorder())
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_an_existing_folder_and_a_wrong_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        train(small_recipe(), scenes(), tmp_path / "run", Recorder())
    with pytest.raises(InputError, match=r"not a run folder \(no recipe.yaml"):
        resume(tmp_path / "run", scenes(), Recorder())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_resuming_with_other_classes_is_refused() -> None:
    other = dataclasses.replace(scenes(), class_names=("a", "b", "c", "d", "e"))
    with pytest.raises(InputError, match=r"class_names: the run has \["):
        resume(finished_run()[0], other, Recorder())


def test_divergence_stops_the_run_with_the_step_named(tmp_path: Path) -> None:
    unsteady = {"optimizer__lr": 1e30, "optimizer__clip_norm": 0.0, "optimizer__warmup_epochs": 0.0}
    recipe = small_recipe(epochs=3, batch=1, optimizer__nominal_batch=1, **unsteady)
    with pytest.raises(DivergedError, match=r"(?s)epoch \d, batch \d.* 5 steps in a row .*optimizer.lr") as caught:
        train(recipe, scenes(), tmp_path / "run", Recorder())
    assert caught.value.exit_code == 3


def test_patience_stops_early(tmp_path: Path) -> None:
    # A rate of next to nothing: no epoch is better than the first by mAP.
    recipe = small_recipe(epochs=9, patience=2, optimizer__lr=1e-12, optimizer__warmup_bias_lr=0.0)
    finished = train(recipe, scenes(), tmp_path / "run", Recorder())
    assert finished.reason == "no better mAP for 2 epochs"
    assert len(RunFolder(tmp_path / "run").read_rows()) == 3


def test_a_data_set_without_validation_trains(tmp_path: Path) -> None:
    alone = dataclasses.replace(scenes(), splits={"train": scenes().splits["train"]})
    recorder = Recorder()
    train(small_recipe(epochs=2), alone, tmp_path / "run", recorder)
    assert any("no val split" in text for text in recorder.of(RunStarted)[0].decisions)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == (tmp_path / "run" / "last.safetensors").read_bytes()


def test_a_data_set_without_training_images_is_refused(tmp_path: Path) -> None:
    nothing = dataclasses.replace(scenes(), splits={"val": scenes().splits["val"]})
    with pytest.raises(InputError, match="no training images"):
        train(small_recipe(), nothing, tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_the_recipes_store_is_that_of_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prepare(small_recipe(store="disk"), scenes())
    assert len(list(tmp_path.glob("*/images-*.bin"))) == 2


def test_gradients_accumulate_over_batches() -> None:
    prepared = prepare(small_recipe(), scenes())
    from anchorite.train.step import TrainingStep

    step = TrainingStep(prepared.train_state, prepared.precision, 0.0, prepared.device)
    prepared.train_state.detector.eval()  # BatchNorm must not couple the batches
    batches = list(prepared.loader)[:2]
    weight = prepared.train_state.detector.head.predictors["p3"].weight
    gradients = []
    for batch in batches:
        step.accumulate(batch)
        gradients.append(weight.grad.clone())
        weight.grad = None
    for batch in batches:
        step.accumulate(batch)
    torch.testing.assert_close(weight.grad, gradients[0] + gradients[1], rtol=1e-4, atol=1e-6)


def test_anchors_are_fitted_when_the_default_leaves_boxes_out() -> None:
    # At 2048 px the shapes of 96 px scenes grow beyond 4 times the largest anchor's match for many.
    prepared = prepare(small_recipe(anchors__recall_threshold=1.0, image_size=2048), scenes())
    sentence = next(text for text in prepared.decisions if text.startswith("anchors:"))
    assert "fitted to the data" in sentence or "default" in sentence


def test_checkpoint_restores_into_a_fresh_trainee() -> None:
    out, _ = finished_run()
    fresh = prepare(small_recipe(seed=9), scenes()).train_state
    progress, damaged = load_latest(out / "checkpoints", fresh)
    assert (progress.epoch, progress.optimizer_steps, damaged) == (2, 4, [])
    assert fresh.ema.updates == 4
    stored = checkpoint_tensors(out, 2)
    assert torch.equal(fresh.criterion.balance, stored["criterion.balance"])
    assert not torch.equal(stored["criterion.balance"], torch.tensor([4.0, 1.0, 0.4], dtype=torch.float64))
    for name, tensor in fresh.detector.state_dict().items():
        assert torch.equal(tensor, stored[f"model.{name}"])
