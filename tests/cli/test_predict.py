"""`anchorite predict`."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from anchorite.cli import run
from anchorite.predict import FrameResult, PredictionWriter
from tests.cli.commands import contents, data_folder, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two images with names that need care, one file that is none, and a subfolder with one image."""
    folder = tmp_path / "my photos"
    (folder / "deeper").mkdir(parents=True)
    scenes = sorted((data_folder() / "images" / "val").iterdir())
    for scene, name in zip(scenes, ("a 'quoted' name.jpg", "\u00fcber \U0001f408.jpg", "deeper/c.jpg"), strict=False):
        shutil.copy(scene, folder / name)
    (folder / "broken.jpg").write_bytes(b"hello")
    return folder


def test_a_line_an_image_and_a_summary(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(photographs)
    out = tmp_path / "out"
    words = ["predict", weights(), str(photographs), "--out", str(out), "--confidence", "0.0001"]
    capsys.readouterr()
    assert run(words) == 2  # one of the files is no image
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    for name, line in zip(("a 'quoted' name.jpg", "\u00fcber \U0001f408.jpg"), lines, strict=False):
        assert line.startswith(f"{photographs / name}: ")
    assert lines[2].startswith("2 images, ")
    assert lines[2].endswith(f"written to {out}")
    assert f"{photographs / 'broken.jpg'}: not a JPEG" in captured.err
    assert "1 of 3 images could not be read" in captured.err
    found = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    counts = [len(image["detections"]) for image in found["images"]]
    assert f" {sum(counts)} objects" in lines[2]
    assert len(contents(out / "images")) == len(contents(out / "labels")) == 2
    assert contents(photographs) == before


def test_what_is_no_image_and_that_all_are_grey_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        Image.new("L", (64, 48), 40 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "phone.heic").touch()
    words = ["predict", weights(), str(tmp_path), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert run(words) == 0
    captured = capsys.readouterr()
    assert captured.out.count("grey") == 1
    (line,) = captured.err.splitlines()
    assert line.startswith("anchorite: 1 file is no image and was passed over: phone.heic; HEIC images are not read")


def test_subfolders_are_looked_into_when_asked(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (photographs / "broken.jpg").unlink()
    (tmp_path / "predictions").mkdir()  # empty, so it is used
    assert run(["predict", weights(), str(photographs), "--recursive", "--without", "images"]) == 0
    assert "3 images, " in capsys.readouterr().out.splitlines()[-1]
    assert len(contents(tmp_path / "predictions" / "labels")) == 3
    assert not (tmp_path / "predictions" / "images").exists()
    assert run(["predict", weights(), str(photographs / "deeper")]) == 0
    assert contents(tmp_path / "predictions-2" / "images")


def test_what_is_found_before_an_interrupt_is_written(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, out = PredictionWriter.add, tmp_path / "out"

    def interrupted(writer: PredictionWriter, result: FrameResult) -> None:
        while any(thread.name == "anchorite-prefetch" for thread in threading.enumerate()):
            time.sleep(0.01)  # until all is found
        monkeypatch.setattr(PredictionWriter, "add", add)
        add(writer, result)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(PredictionWriter, "add", interrupted)
    (photographs / "broken.jpg").unlink()
    assert run(["predict", weights(), str(photographs), "--recursive", "--out", str(out)]) == 130
    assert len(json.loads((out / "detections.json").read_text(encoding="utf-8"))["images"]) == 3


def test_what_cannot_be_done_leaves_no_folder(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["nowhere.jpg", str(photographs)], "nowhere.jpg: no such file"),
        (["empty"], "no image in this folder"),
        (["*.jpeg"], "no image matches"),
        ([str(photographs), "--image-size", "5"], "size 5: must be at least 32"),
        ([str(photographs), "--device", "tpu"], "tpu"),
    ):
        assert run(["predict", weights(), *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "predictions").exists()
