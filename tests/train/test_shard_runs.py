"""Runs from shards, and with labels that do not know everything: the same bits whoever draws the batches and wherever
they stop; damage is left out and told.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from safetensors.torch import load_file

from anchorite.data import DatasetIndex, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.data.shards.format import read_table
from anchorite.errors import InputError
from anchorite.train import RunFolder, RunStarted, StepDone, listeners, resume, train
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")


@cache
def unknown() -> DatasetIndex:
    """The scenes, those of train with weights, regions without a class, and two sources of which one covers less."""
    dataset, records = scenes(), []
    num_classes = len(dataset.class_names)
    sources = LabelSource("a"), LabelSource("b", (*[True] * (num_classes - 1), False), 0.5)
    for number, record in enumerate(dataset.splits["train"]):
        source, ids = sources[number % 2], record.class_ids
        ignored = (np.arange(len(ids)) % 3 == 1) | (ids == num_classes - 1) * number % 2
        weights = np.linspace(0.2, 1, len(ids), dtype=np.float32)
        ids = np.where(ignored, NO_CLASS, ids)
        records.append(replace(record, ignored=ignored.astype(bool), class_ids=ids, weights=weights, source=source))
    return replace(dataset, splits={**dataset.splits, "train": records})


@cache
def shards_folder() -> Path:
    """The same as shards, of about two images each."""
    out = Path(mkdtemp()) / "shards"
    write_dataset(unknown(), out, "shards", shard_bytes=12_000)
    return out


def sharded() -> DatasetIndex:
    return open_dataset(shards_folder())


def bits(run_folder: Path) -> dict[str, bytes]:
    tensors = load_file(run_folder / "checkpoints" / "epoch-0002.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def interrupt(event: object) -> None:
    if isinstance(event, StepDone) and (event.epoch, event.batch) == (1, 2):
        raise KeyboardInterrupt


def interrupt_at_start(event: object) -> None:
    if isinstance(event, RunStarted):
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("opened", [sharded, unknown])
def test_a_run_goes_on_bit_for_bit_and_workers_change_nothing(
    opened: Callable[[], DatasetIndex], tmp_path: Path
) -> None:
    recorder = Recorder()
    train(small_recipe(), opened(), tmp_path / "straight", recorder)
    (started,) = recorder.of(RunStarted)
    assert opened is unknown or any("shards as a stream; 0 loader processes" in line for line in started.decisions)
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(workers=2), opened(), tmp_path / "broken", interrupt)
    resume(tmp_path / "broken", opened(), Recorder())
    assert bits(tmp_path / "broken") == bits(tmp_path / "straight")


def test_anchors_and_facts_are_those_of_the_files(tmp_path: Path) -> None:
    recorders = [Recorder(), Recorder()]
    for recorder, dataset, name in zip(recorders, (unknown(), sharded()), ("files", "shards"), strict=True):
        with pytest.raises(KeyboardInterrupt):
            train(small_recipe(), dataset, tmp_path / name, listeners(recorder, interrupt_at_start))
    chosen = [
        [line for line in recorder.of(RunStarted)[0].decisions if line.startswith("anchors")] for recorder in recorders
    ]
    assert chosen[0] == chosen[1] != []
    facts = [RunFolder(tmp_path / name).read_facts() for name in ("files", "shards")]
    for split in ("train", "val", "test"):
        counts = [(one["splits"][split]["images"], one["splits"][split]["boxes"]) for one in facts]
        assert counts[0] == counts[1]


def test_other_shards_than_a_run_was_started_with_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), sharded(), tmp_path / "run", interrupt_at_start)
    write_dataset(unknown(), tmp_path / "others", "shards", shard_bytes=20_000)
    with pytest.raises(InputError, match="data: train: other labels or names"):
        resume(tmp_path / "run", open_dataset(tmp_path / "others"), Recorder())


@pytest.mark.slow
def test_with_skip_bad_a_damaged_sample_is_left_out_noted_and_stays_out(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards_folder(), tmp_path / "damaged"))
    for split in ("train", "val"):
        path = folder / f"{split}-000001.tar"
        content = bytearray(path.read_bytes())
        content[int(read_table(path).rows[0][3]) + 50] ^= 1
        path.write_bytes(content)
    recorder = Recorder()
    train(small_recipe(), open_dataset(folder, skip_bad=True), tmp_path / "straight", recorder)
    said = "\n".join(recorder.of(RunStarted)[0].decisions)
    assert "train, 10 images: 1 image that cannot be decoded, left out" in said
    assert "train-000001-000000" in said
    facts = json.loads((tmp_path / "straight" / "run.json").read_text())
    assert [(one["split"], one["image"].partition(".tar")[0]) for one in facts["left_out"]] == [
        ("train", "train-000001"),
        ("val", "val-000001"),
    ]
    assert facts["splits"]["train"]["images"] == 9
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), open_dataset(folder, skip_bad=True), tmp_path / "broken", interrupt)
    resume(tmp_path / "broken", open_dataset(folder, skip_bad=True), Recorder())
    assert bits(tmp_path / "broken") == bits(tmp_path / "straight")
    left = RunFolder(tmp_path / "straight").as_trained(open_dataset(folder, skip_bad=True))
    assert len(left.splits["train"]) == 9
