"""`anchorite convert`, `anchorite split` and `anchorite anchors`: what they write, say and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anchorite.cli import run
from anchorite.data import open_dataset
from anchorite.train import load_recipe
from tests.cli.commands import contents
from tests.inspect.samples import healthy, yolo_folder


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_a_round_trip_through_all_formats_keeps_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = healthy(tmp_path / "data")
    before = contents(first)
    place = first
    for format in ("voc", "coco", "yolo"):
        code, out, err = called(capsys, "convert", place, tmp_path / format, "--to", format)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1].startswith(f"{format} copy: {tmp_path / format}, train 2 images / 3 boxes")
        place = tmp_path / format
    assert contents(first) == before
    one, other = open_dataset(first), open_dataset(place)
    assert one.class_names == other.class_names
    for split, records in one.splits.items():
        for record, copy in zip(records, other.splits[split], strict=True):
            assert record.path.read_bytes() == copy.path.read_bytes()
            assert record.class_ids.tolist() == copy.class_ids.tolist()
            np.testing.assert_allclose(record.boxes_xyxy, copy.boxes_xyxy, atol=2e-4)


def test_what_reading_changed_is_listed_in_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = yolo_folder(tmp_path / "data", {"train": {"a": "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0 0.1\n"}})
    code, out, _ = called(capsys, "convert", folder, tmp_path / "out", "--to", "coco")
    assert code == 0
    assert f"error: 1 box without area, dropped ({folder / 'labels/train/a.txt'}:2)" in out.splitlines()
    assert "a.txt:2" in (tmp_path / "out/changes.txt").read_text()


def test_a_copy_is_never_written_into_the_data_or_over_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = healthy(tmp_path / "data")
    before = contents(tmp_path)
    for words in (["convert", folder, folder / "copy", "--to", "voc"], ["split", folder, folder / "copy"]):
        code, _, err = called(capsys, *words)
        assert code == 2
        assert "lies in the dataset" in err
    for words in (["convert", folder, folder, "--to", "voc"], ["split", folder, folder]):
        code, _, err = called(capsys, *words)
        assert code == 2
        assert "exists already, and nothing is ever overwritten" in err
    assert contents(tmp_path) == before


def test_split_says_what_each_split_gets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {f"{number:02d}": f"{number % 2} 0.5 0.5 0.3 0.3\n" for number in range(20)}
    folder = yolo_folder(tmp_path / "data", {"train": rows})
    code, out, err = called(capsys, "split", folder, tmp_path / "out", "--val", "0.3", "--test", "0.1", "--to", "voc")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "images 12 60.0% 6 30.0% 2 10.0%" in lines
    assert "cat 6 60.0% 3 30.0% 1 10.0%" in lines
    made = open_dataset(tmp_path / "out")
    assert (made.format, {name: len(one) for name, one in made.splits.items()}) == (
        "voc",
        {"train": 12, "val": 6, "test": 2},
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--val", "1.2"], "--val 1.2: a share of the images from 0 to under 1"),
        (["--val", "0.6", "--test", "0.4"], "nothing is left to train on"),
        (["--keep", "train"], "--keep train"),
        (["--keep", "test"], "has no such split, but train, val"),
    ],
)
def test_impossible_splits_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = called(capsys, "split", healthy(tmp_path / "data"), tmp_path / "out", *words)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def small_boxes(folder: Path) -> Path:
    """40 boxes of 6 x 2 to 12 x 4 px at 640 px; the least wide is 5 times flatter than any default anchor."""
    rng = np.random.default_rng(0)
    rows = {
        f"{image}": "".join(
            f"0 0.5 {row / 24:.4f} {width:.5f} {width / 3:.5f}\n"
            for row, width in enumerate(rng.uniform(6, 12, 10) / 640, start=1)
        )
        for image in range(4)
    }
    return yolo_folder(folder, {"train": rows})


def test_anchors_are_fitted_compared_and_can_be_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_boxes(tmp_path / "data")
    code, out, err = called(capsys, "anchors", folder, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    table = {words[0]: words for words in (line.split() for line in out.splitlines()) if words}
    assert table["fitted"][1] == "100.00%"
    assert float(table["default"][3].rstrip("%")) < 60
    assert "the fitted ones 0.00%: take these." in out
    assert (tmp_path / "out/anchors.png").read_bytes().startswith(b"\x89PNG")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((tmp_path / "out/anchors.yaml").read_text())
    rows = load_recipe(str(recipe)).anchors.rows
    assert rows is not None
    assert len(rows) == 3
    assert all(
        3 < width < 15 and 1 < height < 6 for row in rows for width, height in zip(*[iter(row)] * 2, strict=True)
    )


def test_anchors_that_lose_nothing_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {f"{n}": f"0 0.5 0.5 0.{n + 10} 0.{n + 10}\n" for n in range(15)}
    code, out, _ = called(capsys, "anchors", yolo_folder(tmp_path / "data", {"train": rows}))
    assert code == 0
    assert "keep them" in out


def test_too_few_boxes_and_odd_sizes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = called(capsys, "anchors", healthy(tmp_path / "data"))
    assert code == 2
    assert "9 anchors cannot be fitted to" in err
    code, _, err = called(capsys, "anchors", tmp_path / "data", "--image-size", "100")
    assert code == 2
    assert "must be a multiple of 32" in err
