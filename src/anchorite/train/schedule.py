"""How rates and momentum move over a run: pure functions of the optimizer's step number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anchorite.train.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Settings:
    """What the optimizer runs with at one step: learning rate of weights and of biases, momentum (beta 1 for AdamW)."""

    lr: float
    bias_lr: float
    momentum: float


def settings_at(step: int, num_steps: int, steps_per_epoch: int, config: OptimizerConfig) -> Settings:
    """The settings of optimizer step `step` (0-based) of `num_steps`.

    The rate decays from config.lr to config.lr * config.lr_final by a cosine or a line; during the warm-up the
    rate rises from 0, the rate of biases moves from config.first_bias_lr, and the momentum rises from
    config.warmup_momentum, all linearly to where the decay stands. The warm-up never takes more than half the run.
    """
    decayed = config.lr * decay_factor(step / max(num_steps - 1, 1), config.lr_final, config.schedule)
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), num_steps // 2)
    if step >= warmup_steps:
        return Settings(decayed, decayed, config.momentum)
    share = step / warmup_steps
    return Settings(
        lr=decayed * share,
        bias_lr=config.first_bias_lr + (decayed - config.first_bias_lr) * share,
        momentum=config.warmup_momentum + (config.momentum - config.warmup_momentum) * share,
    )


def decay_factor(progress: float, final: float, decay: str) -> float:
    """The factor on the rate after the share `progress` (0..1) of the run: 1 at the start, `final` at the end."""
    left = (1 + math.cos(math.pi * progress)) / 2 if decay == "cosine" else 1 - progress
    return final + (1 - final) * left
