"""Caches and stores that lie in wait: pickles planted where a cache could be, and stores that do not fit."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from anchorite.cli import run
from anchorite.data import store
from tests.cli.commands import data_folder, finished_run, quick_recipe
from tests.data.format_samples import write_text
from tests.faults.test_images import failing
from tests.faults.watch import unchanged, watched


class Bait:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.slow
def test_a_pickle_where_a_cache_could_be_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, cache = tmp_path / "executed", tmp_path / "temporary"
    cache.mkdir()
    recipe, data = quick_recipe(), Path(shutil.copytree(data_folder(), tmp_path / "data"))
    monkeypatch.setattr(tempfile, "tempdir", str(cache))
    bait = pickle.dumps(Bait(mark))
    names = ("labels.cache", "labels/train.cache", "images/train.cache", "train.cache", "data.pkl", "data.yaml.cache")
    for name in (*names, "images/train/scene_00000.npy", "labels/train/scene_00000.pkl", ".cache/images.pickle"):
        write_text(data / name, bait)
    words = ["train", str(data), "--recipe", recipe, "--epochs", "1", "--set", "store=disk"]
    with unchanged(data), watched() as deeds:
        assert run([*words, "--out", str(tmp_path / "first")]) == 0
        (folder,) = cache.glob("anchorite-cache-*")
        planted = sorted(folder.glob("images-*.bin"))
        assert planted
        for path in planted:
            path.write_bytes(bait.ljust(path.stat().st_size, b"\0"))
        assert run([*words, "--out", str(tmp_path / "second")]) == 0
    assert {str(path) for path in planted} <= deeds.opened, "the planted cache was not even looked at"
    assert deeds.unpickled == set()
    assert not mark.exists()
    pickle.loads(bait)
    assert mark.exists(), "the bait does not work"


@pytest.mark.slow
def test_a_pickle_in_the_place_of_a_checkpoint_is_never_unpickled(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    folder = Path(shutil.copytree(finished_run(), tmp_path / "run"))
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(pickle.dumps(Bait(mark)))
    with watched() as deeds:
        assert run(["train", "--resume", str(folder)]) == 4
    assert "damaged" in capsys.readouterr().err
    assert deeds.unpickled == set()
    assert not mark.exists()


def test_a_store_larger_than_free_memory_is_declined_before_anything_is_allocated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 10 * 64 * 64 * 3
    monkeypatch.setattr(store, "spendable_memory", lambda: needed - 1)
    monkeypatch.setattr(store, "SharedBytes", lambda _: pytest.fail("allocated"))
    monkeypatch.setattr(store, "decode_resized", lambda *_: pytest.fail("decoded"))
    words = ["train", data_folder(), "--recipe", quick_recipe(), "--set", "store=ram", "--out", tmp_path / "run"]
    message = failing(capsys, *words)
    assert "10 images at 64 px take" in message
    assert "nothing was allocated" in message
    assert not (tmp_path / "run").exists()
