"""How runs begin again and end: without a score, before a checkpoint, on a full disk; what recipes tell of flags."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from anchorite.data import DatasetIndex, Record
from anchorite.errors import InputError, StorageError
from anchorite.train import RunFinished, RunFolder, RunStarted, load_recipe, resume, train
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")


def without_labels(record: Record) -> Record:
    return dataclasses.replace(
        record,
        boxes_xyxy=np.zeros((0, 4)),
        class_ids=np.zeros(0, np.int64),
        ignored=np.zeros(0, bool),
        areas=np.zeros(0),
        origins=(),
        weights=np.zeros(0, np.float32),
    )


def unscored(kind: str) -> DatasetIndex:
    """The scenes without a val split, or with one that has no labels."""
    splits = {"train": scenes().splits["train"]}
    if kind == "unlabelled":
        splits["val"] = tuple(without_labels(record) for record in scenes().splits["val"])
    return dataclasses.replace(scenes(), splits=splits)


@pytest.mark.parametrize("kind", ["missing", "unlabelled"])
def test_without_a_score_the_newest_weights_are_the_best_and_patience_waits(kind: str, tmp_path: Path) -> None:
    recorder, out = Recorder(), tmp_path / "run"
    finished = train(small_recipe(epochs=3, patience=1), unscored(kind), out, recorder)
    assert (finished.reason, finished.best_epoch) == ("complete", None)
    assert (out / "best.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()
    said = "no val split" if kind == "missing" else "the val split has no labels"
    assert any(said in text for text in recorder.of(RunStarted)[0].decisions)


def test_a_run_stopped_before_its_first_checkpoint_starts_over_with_the_same_bits(tmp_path: Path) -> None:
    train(small_recipe(), scenes(), tmp_path / "straight", Recorder())
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "straight", broken)
    rows = RunFolder(broken).read_rows()
    for path in (broken / "checkpoints").iterdir():
        path.unlink()
    (broken / "checkpoints" / "epoch-0001.safetensors").write_bytes(b"its manifest was never written")
    RunFolder(broken).write_rows(rows[:1])
    recorder = Recorder()
    resume(broken, scenes(), recorder)
    assert "stopped before its first checkpoint: starts over" in recorder.of(RunStarted)[0].decisions
    assert len(recorder.of(RunFinished)) == 1
    ours, theirs = (folder / "checkpoints" / "epoch-0002.safetensors" for folder in (broken, tmp_path / "straight"))
    assert ours.read_bytes() == theirs.read_bytes()
    # Two epochs of metrics without any checkpoint: these were lost, and going on would replace best.safetensors.
    for path in (broken / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="no checkpoint to resume from"):
        resume(broken, scenes(), Recorder())


def test_a_checkpoint_that_cannot_be_written_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("anchorite.train.checkpoint.save_file", full)
    with pytest.raises(StorageError, match=r"epoch-0001.safetensors: cannot be written: .*No space left"):
        train(small_recipe(epochs=1), scenes(), tmp_path / "run", Recorder())
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_worker_processes_end_with_the_run(tmp_path: Path) -> None:
    import multiprocessing

    train(small_recipe(epochs=1, workers=2), scenes(), tmp_path / "run", Recorder())
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("model", "side", "choice"), [("n", 100, "96 or 128"), ("s6", 96, "64 or 128"), ("n6", 32, "64")]
)
def test_an_image_size_that_the_strides_do_not_divide_is_refused(model: str, side: int, choice: str) -> None:
    with pytest.raises(InputError, match=rf"--set image_size: must be a multiple of \d+.*take {choice} \(got {side}\)"):
        load_recipe("small-data", {"model": model, "image_size": side})


def test_flags_are_called_by_their_own_name() -> None:
    with pytest.raises(InputError, match=r"--image-size: must .*\n--set batch: must be greater"):
        load_recipe("small-data", {"image_size": 1, "batch": 0}, flags=["image_size"])
