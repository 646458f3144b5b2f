"""Schedules by hand, at the points where the formulas are easy."""

from __future__ import annotations

import pytest

from anchorite.train.optim import OptimizerConfig, decay_factor, settings_at

CONFIG = OptimizerConfig(lr=0.1, lr_final=0.1, warmup_epochs=2, warmup_bias_lr=0.5, momentum=0.9, schedule="linear")


def test_decay_by_hand() -> None:
    assert decay_factor(0, 0.1, "cosine") == decay_factor(0, 0.1, "linear") == 1
    assert decay_factor(1, 0.1, "cosine") == pytest.approx(0.1)
    assert decay_factor(0.5, 0.1, "cosine") == pytest.approx(0.55)
    assert decay_factor(0.25, 0.2, "linear") == pytest.approx(0.8)
    # cos(pi / 3) = 1 / 2, so three quarters of the way down remain.
    assert decay_factor(1 / 3, 0.0, "cosine") == pytest.approx(0.75)


def test_warm_up_starts_where_it_should_and_meets_the_decay() -> None:
    start = settings_at(0, 101, 10, CONFIG)
    assert (start.lr, start.bias_lr, start.momentum) == (0.0, 0.5, 0.8)
    half = settings_at(10, 101, 10, CONFIG)
    decayed = 0.1 * (1 - 0.9 * 0.1)
    assert half.lr == pytest.approx(decayed / 2)
    assert half.bias_lr == pytest.approx((0.5 + decayed) / 2)
    assert half.momentum == pytest.approx(0.85)
    after = settings_at(20, 101, 10, CONFIG)
    assert after.lr == after.bias_lr == pytest.approx(0.1 * (1 - 0.9 * 0.2))
    assert after.momentum == 0.9
    end = settings_at(100, 101, 10, CONFIG)
    assert end.lr == pytest.approx(0.01)


def test_warm_up_takes_at_most_half_of_a_short_run() -> None:
    assert settings_at(5, 10, 10, CONFIG).momentum == 0.9
    assert settings_at(4, 10, 10, CONFIG).momentum < 0.9
    assert settings_at(0, 1, 1, CONFIG).lr > 0


def test_accumulation_reaches_about_the_nominal_batch() -> None:
    assert [OptimizerConfig(nominal_batch=64).accumulation(batch) for batch in (1, 16, 24, 64, 128)] == [64, 4, 3, 1, 1]


def test_biases_start_fast_with_sgd_and_at_rest_with_adamw() -> None:
    for name, first in (("sgd", 0.1), ("adamw", 0.0)):
        config = OptimizerConfig(name=name, warmup_epochs=2)
        assert settings_at(0, num_steps=20, steps_per_epoch=5, config=config).bias_lr == first
