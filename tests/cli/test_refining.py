"""The options of `anchorite predict` and `anchorite validate` that look at an image more than once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from anchorite.cli import run
from anchorite.model import Detector, load_weights, save_weights
from tests.cli.commands import data_folder, weights
from tests.cli.test_usage import refused

pytestmark = pytest.mark.slow


@cache
def others() -> dict[str, str]:
    """Paths of other weights: for the same classes in another order, and with one class that is another."""
    folder = Path(mkdtemp())
    _, info = load_weights(Path(weights()))
    torch.manual_seed(1)
    named = {"turned": info.class_names[::-1], "zebra": ("zebra", *info.class_names[1:])}
    for name, class_names in named.items():
        detector = Detector("n", len(class_names), info.anchors)
        save_weights(folder / f"{name}.safetensors", detector, replace(info, class_names=class_names))
    shutil.copy(weights(), folder / "copy.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in (*named, "copy")}


def test_windows_views_and_several_weights_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", weights(), str(data_folder() / "images" / "val"), "--confidence", "0.0001"]
    words += ["--tile", "48", "--tile-overlap", "0.5", "--augment", "--with", others()["turned"], "--weights-of", "2,1"]
    capsys.readouterr()
    assert run([*words, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "views of each image: the whole and windows of 48 px that share 50% or more; 2 weights; "
    )
    assert "64 px, 64 px mirrored" in lines[0]
    assert len(lines) == 1 + 4 + 1
    found = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert len(found["images"]) == 4
    assert any(image["detections"] for image in found["images"])
    assert run([*words, "--out", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_validation_measures_them_with_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["validate", weights(), str(data_folder()), "--json"]
    capsys.readouterr()
    assert run(words) == 0
    plain = json.loads(capsys.readouterr().out)
    # Tiles as large as the images: each is looked at once, as a whole, which is what validation does anyway.
    assert run([*words, "--tile", "64"]) == 0
    tiled = json.loads(capsys.readouterr().out)
    assert tiled["metrics"].keys() == plain["metrics"].keys()
    assert tiled["metrics"]["map"] == pytest.approx(plain["metrics"]["map"], abs=0.02)
    assert run([*words, "--augment", "--with", others()["turned"]]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    assert run(["validate", weights(), str(data_folder()), "--tile", "32", "--tile-only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "views of each image: windows of 32 px that share 20% or more; network input 64 px"
    assert lines[1].split()[:5] == ["class", "images", "labels", "AP", "AP50"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tile", "31"], "tile 31: must be at least 32, the coarsest stride of"),
        (["--tile", "64", "--tile-overlap", "1"], "--tile-overlap 1.0: must be less than 1"),
        (["--tile", "64", "--tile-overlap", "-0.1"], "--tile-overlap -0.1: must be greater than or equal to 0"),
        (["--tile-only"], "--tile-only: without --tile SIDE there are no windows"),
        (["--tile-overlap", "0.3"], "--tile-overlap 0.3: without --tile SIDE"),
        (["--weights-of", "2,1"], "--weights-of 2,1: with one file of weights only"),
        (["--with", "turned", "--weights-of", "2"], "--weights-of 2: give 2 numbers above 0"),
        (["--with", "turned", "--weights-of", "2,0"], "--weights-of 2,0: give 2 numbers above 0"),
        (["--with", "turned", "--weights-of", "2,many"], "--weights-of 2,many: give 2 numbers"),
        (["--with", "copy"], "the same weights as"),
        (["--with", "turned", "--with", "turned"], "the same weights as"),
        (["--with", "zebra"], "lacks"),
        (["--with", "zebra"], "has 'zebra' besides"),
        (["--with", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--augment", "--image-size", "16"], "size 16: must be at least 32"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "validate"])
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    command: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [others().get(word, word) for word in words]
    code, message = refused(
        capsys, command, weights(), data_folder() / "images" / "val", *words, "--out", tmp_path / "o"
    )
    assert code == 2
    assert said in message
    assert not (tmp_path / "o").exists()
