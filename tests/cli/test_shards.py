"""Shards on the command line: written, trained on and read by the other commands as files are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from anchorite.cli import run
from tests.cli.commands import data_folder, quick_recipe, weights
from tests.cli.test_copying import called


@cache
def shards() -> Path:
    """The scenes as shards."""
    out = Path(mkdtemp()) / "shards"
    assert run(["convert", str(data_folder()), str(out), "--to", "shards"]) == 0
    return out


def test_convert_writes_shards_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, "convert", data_folder(), tmp_path / "out", "--to", "shards", "--shard-mb", "1")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"shards copy: {tmp_path / 'out'}, train 10 images")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["shards.json", "test-000000.tar", "train-000000.tar", "val-000000.tar"]
    code, out, err = called(capsys, "convert", tmp_path / "out", tmp_path / "back", "--to", "yolo")
    assert (code, err) == (0, "")
    assert len(list((tmp_path / "back" / "images" / "train").iterdir())) == 10


def test_the_size_of_shards_is_for_shards_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("convert", data_folder(), tmp_path / "out")
    code, _, err = called(capsys, *words, "--to", "coco", "--shard-mb", "5")
    assert (code, "no shards" in err) == (2, True)
    code, _, err = called(capsys, *words, "--to", "shards", "--shard-mb", "0")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_weights_measure_the_same_on_shards_as_on_files(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for data in (data_folder(), shards()):
        capsys.readouterr()
        code, out, _ = called(capsys, "validate", weights(), data, "--json")
        assert code == 0
        results.append({name: value for name, value in json.loads(out).items() if "seconds" not in name})
    timed = ("speed", "images_per_second")
    one, other = ({name: value for name, value in result.items() if name not in timed} for result in results)
    assert one == other


@pytest.mark.slow
def test_a_run_is_trained_and_concluded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(
        capsys, "train", shards(), "--recipe", quick_recipe(), "--epochs", "1", "--out", tmp_path / "run"
    )
    assert (code, err) == (0, "")
    assert "images read from 1 shards as a stream" in out
    assert len(list((tmp_path / "run" / "predictions").iterdir())) == 4
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [one["images"] for one in summary["dataset"]["splits"]] == [10, 4, 2]
    code, _, err = called(capsys, "explain", shards(), "--out", tmp_path / "page.html")
    assert (code, err) == (0, "")


def test_inspect_reads_shards(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capsys, "inspect", shards())
    wanted, _, _ = called(capsys, "inspect", data_folder())
    assert code == wanted
    assert "10" in out
