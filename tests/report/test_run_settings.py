"""Effective settings: what the page says is what the training code does, formula by formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from anchorite.loss import LossConfig
from anchorite.loss.criterion import initial_balance
from anchorite.report.run_data import RunFiles
from anchorite.report.run_settings import (
    effective_gains,
    effective_settings,
    plan_of,
    rate_plan,
    rates_at,
    saved_balance,
)
from anchorite.train import Recipe
from anchorite.train.optim import OptimizerConfig, decay_after, settings_at
from tests.report.fake_run import make_full_run


@given(st.floats(0, 10), st.integers(3, 5), st.integers(1, 300), st.integers(32, 2000))
def test_gains_are_those_of_the_loss(gain: float, levels: int, classes: int, size: int) -> None:
    config = LossConfig(box_gain=gain, objectness_gain=gain, class_gain=gain)
    facts = {"anchors": [[]] * levels, "class_names": [""] * classes}
    scaled = config.scaled(levels, classes, size)
    gains = effective_gains({"loss": config.model_dump(), "image_size": size}, facts)
    assert gains == pytest.approx((scaled.box_gain, scaled.objectness_gain, scaled.class_gain), rel=1e-12)


@given(
    st.sampled_from(["sgd", "adamw"]),
    st.sampled_from(["cosine", "linear"]),
    st.one_of(st.none(), st.floats(0, 1)),
    st.floats(0, 9),
    st.integers(1, 40),
    st.integers(1, 300),
)
def test_rates_are_those_of_the_schedule(
    name: str, decay: str, bias: float | None, warmup: float, epochs: int, images: int
) -> None:
    config = OptimizerConfig(name=name, schedule=decay, warmup_bias_lr=bias, warmup_epochs=warmup, nominal_batch=32)  # type: ignore[arg-type]
    recipe = {"optimizer": config.model_dump(), "batch": 8, "epochs": epochs}
    plan = plan_of(recipe, {"splits": {"train": {"images": images}}})
    assert plan.accumulation == config.accumulation(8) == 4
    for step in {0, plan.num_steps // 3, plan.num_steps - 1}:
        said = settings_at(step, plan.num_steps, plan.steps_per_epoch, config)
        assert rates_at(step, plan, config.model_dump()) == pytest.approx((said.lr, said.bias_lr), rel=1e-12)


def test_each_setting_says_what_it_derives_from(tmp_path: Path) -> None:
    files = RunFiles(make_full_run(tmp_path / "run"))
    rows = {row.name: row for row in effective_settings(files)}
    assert (rows["objectness gain"].written, rows["objectness gain"].effective) == ("1", "0.25")
    assert rows["class gain"].effective == f"{Recipe().loss.class_gain * 2 / 80:g}"
    assert rows["images per step"].effective == "64"
    assert rows["optimizer steps"].effective == "24"  # 15 batches, 4 a step, 6 epochs
    assert rows["warm-up"].effective == "12 steps"
    assert float(rows["average of weights"].effective) == pytest.approx(decay_after(24, Recipe().ema), rel=1e-5)
    assert rows["mosaic"].effective == "never"
    assert all(row.why for row in rows.values())
    assert rate_plan(files) is not None


def test_the_balance_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("automatic_balance: false", "automatic_balance: true"))
    folder = run / "checkpoints"
    folder.mkdir()

    def shown() -> tuple[str, str]:
        row = next(row for row in effective_settings(RunFiles(run)) if row.name == "objectness balance")
        return row.effective, row.why

    assert shown()[0] == ", ".join(f"{value:g}" for value in initial_balance(3))
    for number in (1, 2):
        balance = torch.tensor([4.0, 1.0, 0.3 + number / 100], dtype=torch.float64)
        save_file({"criterion.balance": balance, "model.x": torch.ones(3)}, folder / f"epoch-000{number}.safetensors")
        (folder / f"epoch-000{number}.json").write_text("{}")
    assert shown()[0] == "4, 1, 0.32"
    assert "epoch-0002" in shown()[1]
    (folder / "epoch-0002.safetensors").write_bytes(b"\0" * 20)
    assert saved_balance(folder) == ("epoch-0001", [4.0, 1.0, 0.31])


def test_a_recipe_of_another_shape_loses_only_what_it_does_not_tell(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    (run / "recipe.yaml").write_text("epochs: 3\nbatch: 0\nloss: [1]\naverage: {decay: x}\n")
    assert effective_settings(RunFiles(run)) == []
    assert rate_plan(RunFiles(run)) is None
