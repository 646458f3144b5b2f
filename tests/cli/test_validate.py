"""`anchorite validate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anchorite.cli import run
from tests.cli.commands import contents, data_folder, outside_config, weights
from tests.cli.test_usage import refused

pytestmark = pytest.mark.slow


def test_the_table_has_a_line_for_every_class(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["validate", weights(), str(data_folder())]
    capsys.readouterr()
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["class", "images", "labels", "AP", "AP50"]
    assert lines[1].split()[:2] == ["all", "4"]
    assert lines[7] == ""
    assert run([*words, "--split", "test"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["all", "2"]


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["validate", weights(), str(data_folder()), "--json", "--out", str(tmp_path / "plots")]
    capsys.readouterr()
    assert run(words) == 0
    output = capsys.readouterr().out
    assert json.loads(output)["images"] == 4
    assert output.count("\n") == 1
    assert {path.name for path in contents(tmp_path / "plots")} == {
        "pr_curve.png", "f1_curve.png", "confusion_matrix.png"
    }  # fmt: skip


def test_height_and_width_may_be_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["validate", weights(), str(data_folder())]
    capsys.readouterr()
    scores = []
    for size in ("64", "64,64", "64x64"):
        assert run([*words, "--image-size", size, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"]["map"])
    # The images are 64 x 64, so all of these show the network the same pixels.
    assert scores[1:] == pytest.approx(scores[:1] * 2)
    assert run([*words, "--image-size", "64,96"]) == 0
    assert "network input 64 x 96 px" in capsys.readouterr().out
    code, message = refused(capsys, *words, "--image-size", "60,96")
    assert code == 2
    assert "image size 60 x 96" in message
    assert "take 64 x 96" in message
    code, message = refused(capsys, "suspects", data_folder(), "--weights", weights(), "--image-size", "64,96")
    assert code == 2
    assert "give one number, such as 96" in message
    image = next((data_folder() / "images" / "val").iterdir())
    assert run(["predict", weights(), str(image), "--image-size", "64,96", "--out", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "detections.json").is_file()


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["validate", weights(), data_folder()]
    capsys.readouterr()
    code, message = refused(capsys, *words, "--split", "valid")
    assert code == 2
    assert "train (10 images), val (4 images), test (2 images)" in message
    code, message = refused(capsys, *words, "--image-size", "100")
    assert code == 2
    assert "--image-size 100: must be a multiple of 32" in message
    data = Path(shutil.copytree(data_folder(), tmp_path / "data"))
    config = (data / "data.yaml").read_text()
    name = config.splitlines()[-1].split(": ")[1]
    (data / "data.yaml").write_text(config.replace(f": {name}", ": zebra"))
    code, message = refused(capsys, "validate", weights(), data)
    assert code == 2
    assert f"class 4 is {name!r} and 'zebra'" in message
    (data / "data.yaml").write_text(config + "  5: extra\n")
    code, message = refused(capsys, "validate", weights(), data)
    assert code == 2
    assert "5 and 6 of them" in message


def test_data_that_leads_outside_needs_leave(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = outside_config(tmp_path)
    capsys.readouterr()
    code, message = refused(capsys, "validate", weights(), config)
    assert code == 2
    assert "--allow-outside" in message
    assert run(["validate", weights(), str(config), "--allow-outside"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["all", "4"]


def test_sources_are_told_and_alone_are_measured_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    yaml = tmp_path / "merged.yaml"
    yaml.write_text(f"sources: [{{data: {data_folder()}, background_weight: 0.5}}]\n")
    words = ["validate", weights(), str(yaml), "--allow-outside"]
    capsys.readouterr()
    assert run(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("source ")
    assert first.endswith("val 4, test 2; covers all classes; background counts 0.5")
    scores = []
    for data in (yaml, data_folder()):
        assert run(["validate", weights(), str(data), "--allow-outside", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0]["metrics"] == scores[1]["metrics"]
    assert scores[0]["images_covering"] is None
