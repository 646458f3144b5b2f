"""`anchorite train --weights`: what is printed, noted and shown of a run that starts from weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from anchorite.cli import run
from tests.cli.commands import data_folder, quick_recipe, weights

pytestmark = pytest.mark.slow


def test_a_run_from_weights_says_so_and_its_page_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--epochs", "1", "--weights", weights()]
    assert (
        run([*words, "--set", "optimizer.freeze=backbone", "--set", "optimizer.layer_decay=0.5", "--out", str(out)])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    (kept,) = [line for line in lines if line.startswith(f"weights {weights()} (size n, 5 classes): ")]
    assert kept.endswith("300 of 300 tensors kept; head: rows of box and objectness kept, and of all 5 classes by name")
    assert any(line.startswith("anchors: of the weights; best possible recall ") for line in lines)
    assert any(line.startswith("frozen: backbone; ") for line in lines)
    assert any(line.startswith("rates by depth: head 1, neck 0.5, backbone.pool 0.25, ") for line in lines)
    digest = hashlib.sha256(Path(weights()).read_bytes()).hexdigest()
    assert json.loads((out / "run.json").read_text())["start"] == {"weights": weights(), "sha256": digest, "kept": kept}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "starting weights" in page
    assert f"SHA-256 {digest[:12]}" in page


def test_the_folder_of_a_run_is_named_after_the_size_of_its_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchorite.anchors import AnchorSet
    from anchorite.model import Detector, WeightsInfo, save_weights

    monkeypatch.chdir(tmp_path)
    save_weights(
        Path("s.safetensors"), Detector("s", 1, AnchorSet.coco_p5()), WeightsInfo("s", ("x",), AnchorSet.coco_p5(), 64)
    )
    (tmp_path / "own.yaml").write_text("image_size: 64\nepochs: 1\nbatch: 8\n")
    assert run(["train", str(data_folder()), "--recipe", "own.yaml", "--weights", "s.safetensors"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-s")
    assert "weights: s.safetensors" in (folder / "recipe.yaml").read_text()
    assert "model: s" in (folder / "recipe.yaml").read_text()
    capsys.readouterr()
    assert run(["train", str(data_folder()), "--weights", "s.safetensors", "--model", "n"]) == 2
    message = capsys.readouterr().err
    assert "weights s.safetensors are of size s, and the model is to be of size n" in message
