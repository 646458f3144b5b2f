"""Equal bits from equal seeds, and from runs that were interrupted anywhere: rows 1, 2, 3, 24 and 29."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anchorite.data import DatasetIndex
from anchorite.errors import InputError, StorageError
from anchorite.interrupts import HeldInterrupts
from anchorite.model import load_weights
from anchorite.train import Recipe, RunFolder, RunStarted, StepDone, resume, train
from anchorite.train.checkpoint import found_checkpoints
from tests.train.runs import Recorder, held_elsewhere, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")

TIMED = ("seconds", "images_per_second")


def outcome(run: Path, epoch: int) -> tuple[dict[str, torch.Tensor], bytes, list[dict[str, str]]]:
    rows = [
        {name: value for name, value in row.items() if not any(word in name for word in TIMED)}
        for row in RunFolder(run).read_rows()
    ]
    tensors = load_file(run / "checkpoints" / f"epoch-{epoch:04d}.safetensors")
    return tensors, (run / "best.safetensors").read_bytes(), rows


def assert_equal(one: Path, other: Path, epoch: int) -> None:
    ours, theirs = outcome(one, epoch), outcome(other, epoch)
    assert ours[0].keys() == theirs[0].keys()
    assert [name for name in ours[0] if not torch.equal(ours[0][name], theirs[0][name])] == []
    assert ours[1:] == theirs[1:]


class InterruptAt:
    """Raises what Ctrl-C raises after a batch, or, for batch None, when the epoch's validation would be told of."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def __call__(self, event: object) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.batch) == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe with either optimizer, and a run of it that nothing interrupts."""
    optimizer, precision = request.param
    # 10 images in batches of 4 and steps of 8: after batch 1 or 3 of an epoch, gradients are under way.
    recipe = small_recipe(epochs=3, optimizer__name=optimizer, optimizer__lr=0.001, precision=precision, patience=3)
    run = tmp_path_factory.mktemp(optimizer) / "straight"
    train(recipe, scenes(), run, Recorder())
    return recipe, run


# Each optimizer is interrupted with gradients under way and with a state; the other moments do not depend on it.
@pytest.mark.parametrize(
    ("straight", "epoch", "batch"),
    [
        pytest.param(("sgd", "bf16"), 1, 1, id="sgd-first batch"),
        pytest.param(("sgd", "bf16"), 2, 2, id="sgd-within a step"),
        pytest.param(("sgd", "bf16"), 2, 3, id="sgd-last batch"),
        pytest.param(("adamw", "fp32"), 2, 3, id="adamw-last batch"),
        pytest.param(("adamw", "fp32"), 3, 1, id="adamw-later"),
    ],
    indirect=["straight"],
)
def test_a_run_interrupted_within_an_epoch_goes_on_bit_for_bit(
    straight: tuple[Recipe, Path], tmp_path: Path, epoch: int, batch: int
) -> None:
    recipe, run = straight
    with pytest.raises(KeyboardInterrupt):
        train(recipe, scenes(), tmp_path / "broken", InterruptAt(epoch, batch))
    recorder = Recorder()
    resume(tmp_path / "broken", scenes(), recorder)
    assert f"resumed after batch {batch} of 3 of epoch {epoch} of 3" in recorder.of(RunStarted)[0].decisions
    told = [(event.epoch, event.batch) for event in recorder.of(StepDone)]
    assert (told[0] if told else None) == ((epoch, batch + 1) if batch < 3 else (epoch + 1, 1))
    assert_equal(run, tmp_path / "broken", 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small recipe, two epochs."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_recipe(), scenes(), run, Recorder())
    return run


def test_a_run_interrupted_in_validation_begins_again_there(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("anchorite.evaluate.Validator.run_shared", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small_recipe(), scenes(), tmp_path / "broken", Recorder())
    recorder = Recorder()
    resume(tmp_path / "broken", scenes(), recorder)
    assert [event.epoch for event in recorder.of(StepDone)] == [2, 2, 2]
    assert_equal(undisturbed, tmp_path / "broken", 2)


def test_no_thread_outlives_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        train(small_recipe(), scenes(), tmp_path / "run", InterruptAt(1, 1))
    # While the error is held, so are all frames that it came through, and what they iterate over.
    assert caught.value is not None
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("anchorite")] == []


@pytest.mark.slow
def test_interrupted_at_every_batch_a_run_still_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"

    def interrupt(event: object) -> None:
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), scenes(), broken, interrupt)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            resume(broken, scenes(), interrupt)
    resume(broken, scenes(), interrupt)
    assert_equal(undisturbed, broken, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_equal_seeds_give_equal_bits_whatever_the_workers(undisturbed: Path, tmp_path: Path, workers: int) -> None:
    train(small_recipe(workers=workers), scenes(), tmp_path / "again", Recorder())
    assert_equal(undisturbed, tmp_path / "again", 2)


def test_the_first_interrupt_waits_for_the_end_of_the_block_and_the_second_does_not() -> None:
    seen = []

    def interrupted(times: int) -> None:
        with HeldInterrupts():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            seen.append(times)

    with pytest.raises(KeyboardInterrupt):
        interrupted(1)
    assert seen == [1]
    with pytest.raises(KeyboardInterrupt):
        interrupted(2)
    assert seen == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with HeldInterrupts():
        pass


# Row 24: what a run is resumed with.


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    train(small_recipe(epochs=1), scenes(), run, Recorder())
    return run


@pytest.fixture
def run(one_epoch: Path, tmp_path: Path) -> Path:
    """A run of one epoch, to be changed."""
    return Path(shutil.copytree(one_epoch, tmp_path / "run"))


def with_a_moved_box() -> DatasetIndex:
    first, *others = scenes().splits["train"]
    moved = dataclasses.replace(first, boxes_xyxy=first.boxes_xyxy + np.array([1.0, 0.0, 1.0, 0.0]))
    return dataclasses.replace(scenes(), splits={**scenes().splits, "train": (moved, *others)})


def test_an_edited_label_is_noticed_and_can_be_allowed(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"(?s)data: train: other labels or names .*--allow data"):
        resume(run, with_a_moved_box(), Recorder())
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    recorder = Recorder()
    resume(run, with_a_moved_box(), recorder, allow=["data"])
    assert any(text.startswith("allowed: data: train") for text in recorder.of(RunStarted)[0].decisions)


def test_another_number_of_images_is_told_with_both(run: Path) -> None:
    fewer = dataclasses.replace(
        scenes(), splits={**scenes().splits, "train": scenes().splits["train"][:-1], "val": scenes().splits["val"]}
    )
    with pytest.raises(InputError, match=r"data: train: 10 images, \d+ boxes then, 9 images, \d+ boxes now"):
        resume(run, fewer, Recorder())


@pytest.mark.parametrize("names", [("a", "b", "c", "d", "e"), ("disc ", "ring", "square", "triangle", "cross")])
def test_other_classes_are_refused_whatever_is_allowed(run: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"class_names: the run has \['disc'"):
        resume(run, dataclasses.replace(scenes(), class_names=names), Recorder(), allow=["data", "recipe"])


def edit(run: Path, old: str, new: str) -> None:
    text = (run / "recipe.yaml").read_text()
    assert old in text
    (run / "recipe.yaml").write_text(text.replace(old, new))


def test_an_edited_recipe_is_refused_with_both_values_unless_allowed(run: Path) -> None:
    edit(run, "epochs: 1\n", "epochs: 2\n")
    with pytest.raises(InputError, match=r"(?s)recipe.yaml: epochs was 1, now it is 2\n.*--allow recipe"):
        resume(run, scenes(), Recorder())
    recorder = Recorder()
    resume(run, scenes(), recorder, allow=["recipe"])
    assert "allowed: recipe.yaml: epochs was 1, now it is 2" in recorder.of(RunStarted)[0].decisions
    assert len(RunFolder(run).read_rows()) == 2


def test_fields_that_change_no_bit_may_change(run: Path) -> None:
    edit(run, "workers: 0", "workers: 1")
    resume(run, scenes(), Recorder())


def test_another_model_or_kind_of_optimizer_is_always_refused(run: Path) -> None:
    edit(run, "model: n", "model: s")
    with pytest.raises(InputError, match=r"recipe.yaml: model was n, now it is s"):
        resume(run, scenes(), Recorder(), allow=["recipe"])


def test_another_world_size_is_refused(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "world_size": 4}))
    with pytest.raises(InputError, match=r"ranks: 4 then, 1 now(.|\n)*--allow ranks"):
        resume(run, scenes(), Recorder(), allow=["data", "recipe"])


def test_a_folder_in_use_is_refused(run: Path) -> None:
    with held_elsewhere(run), pytest.raises(InputError, match="another process is training in this folder"):
        resume(run, scenes(), Recorder())
    resume(run, scenes(), Recorder())


# Row 29: files of another version.


def test_a_checkpoint_of_another_version_is_refused_naming_both(run: Path) -> None:
    manifest = run / "checkpoints" / "epoch-0001.json"
    # Version 1 had the fields at the top, and no hash of itself.
    manifest.write_text(json.dumps({"format_version": 1, "sha256": "0" * 64, "progress": {"epoch": 1}}))
    (found,) = found_checkpoints(run / "checkpoints")
    assert found.fault == "format version 1; this anchorite reads version 2"
    with pytest.raises(StorageError, match="format version 1; this anchorite reads version 2"):
        resume(run, scenes(), Recorder())


def test_weights_of_a_later_version_are_refused_naming_both(run: Path) -> None:
    from safetensors import safe_open

    from anchorite.model.weights import FORMAT_VERSION

    path = run / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["anchorite"])
    later = path.with_name("later.safetensors")
    save_file(load_file(path), later, {"anchorite": json.dumps({**header, "format_version": FORMAT_VERSION + 1})})
    with pytest.raises(
        InputError, match=rf"version {FORMAT_VERSION + 1}, but this release reads up to {FORMAT_VERSION}"
    ):
        load_weights(later)
