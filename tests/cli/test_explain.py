"""`anchorite explain`: what it writes and says, what it refuses, and that it touches nothing of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchorite.cli import run
from anchorite.data import open_dataset
from anchorite.model import WeightsInfo, save_weights
from tests.cli.commands import contents, outside_config
from tests.cli.test_usage import refused
from tests.report.explained import dataset_in, setting_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dataset_in(tmp_path / "it's data").root


def facts_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
    return facts


def names_of(page: Path) -> list[str]:
    return [image["name"] for image in facts_of(page)["images"]]


def called(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_without_weights_the_page_shows_the_assignment(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(data)
    monkeypatch.chdir(tmp_path)
    words = ("explain", data, "--image-size", 128)
    out = called(capsys, *words)
    assert "images: 4 of the 4 of split val" in out
    assert "explain.html: 4 images" in out
    assert names_of(tmp_path / "explain.html")[0] == "lost.png"
    assert facts_of(tmp_path / "explain.html")["loss"] is None
    called(capsys, *words)  # nothing is overwritten
    assert (tmp_path / "explain-2.html").is_file()
    assert contents(data) == before


def test_weights_add_costs_and_named_images_are_shown(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = setting_of(open_dataset(data), costs=True).detector
    assert detector is not None
    weights, page = tmp_path / "w.safetensors", tmp_path / "new" / "page.html"
    save_weights(weights, detector, WeightsInfo("n", ("cat", "dog"), detector.anchors, 128))
    words = ("explain", data, "--weights", weights, "--image", "many.png", "--image", "lost", "--out", page)
    out = called(capsys, *words)
    assert "recipe small-data, for there is no recipe.yaml beside the weights" in out
    assert names_of(page) == ["many.png", "lost.png"]
    assert all(image["costs"]["terms"]["total"] > 0 for image in facts_of(page)["images"])
    before = page.read_bytes()
    code, message = refused(capsys, *words)
    assert (code, "exists already" in message) == (2, True)
    assert page.read_bytes() == before
    other = dataset_in(tmp_path / "other", "[cat, zebra]").root
    code, message = refused(capsys, "explain", other, "--weights", weights, "--out", tmp_path / "other.html")
    assert code == 2
    assert "class 1 is 'dog' and 'zebra'" in message
    assert not (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--split test", "--split test: is not there; the splits of"),
        ("--image mny", "near are many.png"),
        ("--image t", "add --split train"),
        ("--image-size 100", "--image-size 100: must be a multiple of 32"),
        ("--image-size 0", "--image-size"),
        ("--weights nowhere.safetensors", "nowhere.safetensors: cannot be read"),
        ("--recipe smal-data", "did you mean small-data?"),
        ("--out page.png", "name it page.html"),
        ("--out DATA/sub/page.html", "lies in the dataset"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: str,
    said: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    code, message = refused(capsys, "explain", data, *(word.replace("DATA", str(data)) for word in words.split()))
    assert code == 2
    assert said in message
    assert contents(tmp_path) == before
    assert not (data / "sub").exists()


def test_an_unreadable_image_is_named_and_left_out_on_demand(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = data / "images" / "val" / "lost.png"
    broken.write_bytes(broken.read_bytes()[:200])
    page = tmp_path / "page.html"
    code = run(["explain", str(data), "--image-size", "128", "--out", str(page)])
    message = capsys.readouterr().err
    assert code == 2
    assert "lost.png" in message
    assert "--skip-bad" in message
    assert not page.exists()
    out = called(capsys, "explain", data, "--image-size", 128, "--out", page, "--skip-bad")
    assert "lost.png" in out.split("left out: ")[1]
    assert len(names_of(page)) == 3


def test_data_that_leads_outside_needs_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, page = outside_config(tmp_path), tmp_path / "page.html"
    code, message = refused(capsys, "explain", config, "--image-size", 64, "--out", page)
    assert (code, "--allow-outside" in message) == (2, True)
    called(capsys, "explain", config, "--image-size", 64, "--out", page, "--allow-outside")
    assert len(names_of(page)) == 4
