"""`anchorite suspects`: what it writes, what it refuses, and that the data stay as they are."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from anchorite.cli import run
from tests.cli.commands import contents, data_folder, weights
from tests.cli.test_usage import refused

pytestmark = pytest.mark.slow


def test_page_and_table_of_all_splits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = contents(data_folder())
    words = ["suspects", str(data_folder()), "--weights", weights(), "--out", str(tmp_path / "a")]
    capsys.readouterr()
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "in 16 images" in out
    assert f"page:  {tmp_path / 'a' / 'suspects.html'}" in out
    assert {path.name for path in contents(tmp_path / "a")} == {"suspects.html", "suspects.csv"}
    with (tmp_path / "a" / "suspects.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["split"] for row in rows} <= {"train", "val", "test"}
    assert contents(data_folder()) == before
    assert run([*words[:-1], str(tmp_path / "b")]) == 0
    assert contents(tmp_path / "b")[tmp_path / "b" / "suspects.csv"] == (tmp_path / "a" / "suspects.csv").read_bytes()


def test_chosen_splits_and_a_default_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, data = weights(), str(data_folder())
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for folder in ("suspects", "suspects-2"):
        assert run(["suspects", data, "--weights", known, "--split", "val", "--split", "test", "--top", "1"]) == 0
        out = capsys.readouterr().out
        assert "in 6 images" in out
        assert (tmp_path / folder / "suspects.html").read_text(encoding="utf-8").count('class="card"') <= 1


def test_what_does_not_fit_is_refused_and_nothing_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["suspects", data_folder(), "--weights", weights(), "--out"]
    capsys.readouterr()
    code, message = refused(capsys, *words, tmp_path / "a", "--split", "valid")
    assert code == 2
    assert "--split valid: is not there; the splits of" in message
    assert "train (10 images), val (4 images), test (2 images)" in message
    code, message = refused(capsys, *words, tmp_path / "a", "--image-size", "100")
    assert code == 2
    assert "--image-size 100: must be a multiple of 32" in message
    code, message = refused(capsys, *words, data_folder() / "suspects")
    assert code == 2
    assert "lies in the dataset" in message
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("x")
    code, message = refused(capsys, *words, taken)
    assert code == 2
    assert "nothing is ever overwritten" in message
    assert contents(tmp_path) == {taken / "mine.txt": b"x"}
    assert not (data_folder() / "suspects").exists()
    other = tmp_path / "other"
    for name in ("images/train/a.png", "labels/train/a.txt"):
        (other / name).parent.mkdir(parents=True)
    (other / "data.yaml").write_text("train: images/train\nnames: [zebra]\n")
    code, message = refused(capsys, "suspects", other, "--weights", weights(), "--out", tmp_path / "a")
    assert code == 2
    assert "zebra" in message or "no image" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["suspects", "data"], "WEIGHTS is missing"),
        (["suspects", "data", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["suspects", "data", "--weights", "w.safetensors", "--top", "0"], "--top"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refused(capsys, *words)
    assert code == 2
    assert said in message
