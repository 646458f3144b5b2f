"""Effective settings: what training recorded, beside what the recipe says."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from anchorite.report.run_data import RunFiles
from anchorite.report.run_page import effective_settings, lr_plan
from tests.report.fake_run import make_full_run


def shown(run: Path) -> dict[str, tuple[str, str]]:
    return {name: (written, effective) for name, written, effective, _ in effective_settings(RunFiles(run))}


def test_each_setting_is_shown_as_training_recorded_it(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    rows = shown(run)
    assert rows["objectness gain"] == ("1", "0.25")
    assert rows["objectness balance"] == ("fixed", "4, 1, 0.4")
    assert rows["images per step"] == ("batch 16", "64")
    assert rows["optimizer steps"] == ("6 epochs", "24")
    assert rows["warm-up"] == ("3 epochs", "12 steps")
    assert rows["last learning rate"] == ("0.01 x 0.01", "0.0001")
    assert rows["EMA decay"] == ("0.9999", "0.0119")
    assert rows["mosaic"] == ("share 1", "never")
    plan = lr_plan(RunFiles(run))
    assert plan is not None
    assert [stroke.name for stroke in plan.strokes] == ["weights", "biases"]


def test_runs_of_earlier_releases_recorded_nothing(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    del facts["derived"]
    (run / "run.json").write_text(json.dumps(facts))
    rows = shown(run)
    assert rows["class gain"][0] == "0.5"
    assert {effective for _, effective in rows.values()} == {"not recorded"}
    assert lr_plan(RunFiles(run)) is None


def test_the_balance_is_that_of_the_newest_readable_checkpoint(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    folder = run / "checkpoints"
    folder.mkdir()
    for number in (1, 2):
        balance = torch.tensor([4.0, 1.0, 0.3 + number / 100], dtype=torch.float64)
        save_file({"criterion.balance": balance, "model.x": torch.ones(3)}, folder / f"epoch-000{number}.safetensors")
        (folder / f"epoch-000{number}.json").write_text("{}")
    assert shown(run)["objectness balance"][1] == "4, 1, 0.32"
    (folder / "epoch-0002.safetensors").write_bytes(b"\0" * 20)
    assert shown(run)["objectness balance"][1] == "4, 1, 0.31"


def test_facts_of_another_shape_leave_the_rest(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    (run / "recipe.yaml").write_text("epochs: 3\nloss: [1]\nema: {decay: x}\n")
    (run / "run.json").write_text(json.dumps({"derived": [1], "start": {}}))
    rows = shown(run)
    assert rows["optimizer steps"] == ("3 epochs", "not recorded")
    assert rows["EMA decay"] == ("x", "not recorded")
    assert "box gain" not in rows
    assert lr_plan(RunFiles(run)) is None
