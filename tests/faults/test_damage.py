"""Checkpoints cut short, with single bits flipped, or all bad: rows 8 and 9."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from anchorite.errors import StorageError
from anchorite.train import RunFolder, RunStarted, resume, train
from anchorite.train.checkpoint import found_checkpoints, load_latest
from anchorite.train.setup import prepare
from anchorite.train.step import TrainState
from tests.train.runs import Recorder, scenes, small_recipe

NUM_CUTS, NUM_FLIPS = 20, 200


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(small_recipe(), scenes(), folder, Recorder())
    return folder


@pytest.fixture(scope="module")
def train_state() -> TrainState:
    return prepare(small_recipe(), scenes()).train_state


@pytest.fixture
def newest(finished: Path) -> Iterator[tuple[Path, Path]]:
    """Tensors and manifest of the newest checkpoint, put right afterwards."""
    pair = finished / "checkpoints" / "epoch-0002.safetensors", finished / "checkpoints" / "epoch-0002.json"
    contents = [path.read_bytes() for path in pair]
    yield pair
    for path, content in zip(pair, contents, strict=True):
        path.write_bytes(content)


def assert_passed_over(folder: Path, train_state: TrainState) -> None:
    progress, said = load_latest(folder / "checkpoints", train_state)
    assert progress.epoch == 1
    assert len(said) == 1
    assert said[0].startswith(f"{folder / 'checkpoints' / 'epoch-0002.safetensors'}: damaged, passed over: ")
    assert [one.fault is None for one in found_checkpoints(folder / "checkpoints")] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["tensors", "manifest"])
def test_a_checkpoint_cut_anywhere_is_passed_over(
    finished: Path, train_state: TrainState, newest: tuple[Path, Path], which: int
) -> None:
    content = newest[which].read_bytes()
    for number in range(NUM_CUTS):
        newest[which].write_bytes(content[: number * (len(content) - 1) // (NUM_CUTS - 1)])
        assert_passed_over(finished, train_state)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["tensors", "manifest"])
def test_every_flipped_bit_is_noticed(
    finished: Path, train_state: TrainState, newest: tuple[Path, Path], which: int
) -> None:
    chances = random.Random(which)
    content = newest[which].read_bytes()
    for number in range(NUM_FLIPS):
        damaged = bytearray(content)
        # Half of them in the header of the tensors, which is small.
        end = len(content) if chances.random() < 0.5 else min(len(content), 20_000)
        damaged[chances.randrange(end)] ^= 1 << chances.randrange(8)
        newest[which].write_bytes(damaged)
        assert next(found_checkpoints(finished / "checkpoints")).fault is not None
        if number % 20 == 0:  # a load takes ten times as long
            assert_passed_over(finished, train_state)


def test_a_resume_says_how_much_is_done_again(finished: Path, newest: tuple[Path, Path]) -> None:
    newest[0].write_bytes(newest[0].read_bytes()[:-1])
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
