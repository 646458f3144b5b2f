"""Checkpoints cut short, with single bits flipped, or all bad: rows 8 and 9."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from anchorite.errors import StorageError
from anchorite.train import RunFolder, RunStarted, resume, train
from anchorite.train.checkpoint import Progress, found_checkpoints, load_latest, save_checkpoint
from anchorite.train.step import TrainState
from tests.train.runs import Recorder, scenes, small_recipe, tiny_state

pytestmark = pytest.mark.usefixtures("small_networks")

NUM_CUTS, NUM_FLIPS = 20, 200


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(small_recipe(), scenes(), folder, Recorder())
    return folder


@pytest.fixture
def newest(finished: Path) -> Iterator[Path]:
    """Tensors of the newest checkpoint, put right afterwards."""
    path = finished / "checkpoints" / "epoch-0002.safetensors"
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@pytest.fixture
def two(tmp_path: Path) -> tuple[TrainState, Path]:
    """A state, and the folder of its checkpoints after epochs 1 and 2."""
    state = tiny_state(2)
    for epoch in (1, 2):
        save_checkpoint(tmp_path, state, Progress(epoch=epoch))
    return state, tmp_path


def assert_passed_over(folder: Path, train_state: TrainState) -> None:
    progress, said = load_latest(folder, train_state)
    assert progress.epoch == 1
    assert len(said) == 1
    assert said[0].startswith(f"{folder / 'epoch-0002.safetensors'}: damaged, passed over: ")
    assert [one.fault is None for one in found_checkpoints(folder)] == [False, True]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_checkpoint_cut_anywhere_is_passed_over(two: tuple[TrainState, Path], suffix: str) -> None:
    state, folder = two
    path = folder / f"epoch-0002.{suffix}"
    content = path.read_bytes()
    for number in range(NUM_CUTS):
        path.write_bytes(content[: number * (len(content) - 1) // (NUM_CUTS - 1)])
        assert_passed_over(folder, state)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_every_flipped_bit_is_noticed(two: tuple[TrainState, Path], suffix: str) -> None:
    state, folder = two
    path = folder / f"epoch-0002.{suffix}"
    chances, content = random.Random(suffix), path.read_bytes()
    for _ in range(NUM_FLIPS):
        damaged = bytearray(content)
        damaged[chances.randrange(len(content))] ^= 1 << chances.randrange(8)
        path.write_bytes(damaged)
        assert_passed_over(folder, state)


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        ("[" * 100_000, "damaged|no JSON"),
        ("[]", "damaged"),
        ('{"body": 3}', "damaged"),
        ('{"format_version": 1}', "format version 1; this anchorite reads version 2"),
    ],
)
def test_a_manifest_of_another_shape_or_format_is_named(
    two: tuple[TrainState, Path], manifest: str, fault: str
) -> None:
    state, folder = two
    (folder / "epoch-0002.json").write_text(manifest)
    assert_passed_over(folder, state)
    assert re.search(fault, str(next(iter(found_checkpoints(folder))).fault))


def test_a_resume_says_how_much_is_done_again(finished: Path, newest: Path) -> None:
    newest.write_bytes(newest.read_bytes()[:-1])
    recorder = Recorder()
    resume(finished, scenes(), recorder)
    decisions = recorder.of(RunStarted)[0].decisions
    assert "resumed after epoch 1 of 2" in decisions
    assert any("epoch-0002.safetensors: damaged, passed over" in text for text in decisions)


def test_where_all_are_bad_nothing_is_deleted_and_nothing_started(finished: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for path in (run / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(StorageError, match="nothing was deleted or started") as caught:
        resume(run, scenes(), Recorder())
    assert caught.value.exit_code == 4
    assert all(path.name in str(caught.value) for path in (run / "checkpoints").glob("*.safetensors"))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len(RunFolder(run).read_rows()) == 2
