"""The exponential moving average of the weights, which is what gets validated and saved."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class EMAConfig(BaseModel):
    """How fast the average follows: decay d after n updates is decay * (1 - exp(-n / ramp_steps))."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    decay: float = Field(0.9999, ge=0, lt=1, description="share of the old average kept at each step, in the long run")
    ramp_steps: float = Field(2000.0, gt=0, allow_inf_nan=False, description="optimizer steps over which decay builds")


class EMA(Generic[Network]):
    """Exponential moving average of a model's parameters and floating-point buffers.

    `model` is the averaged copy, in evaluation mode and without gradients; `updates` counts the steps seen.
    """

    def __init__(self, model: Network, config: EMAConfig) -> None:
        self.config = config
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = _matching(self.model, model)

    @torch.no_grad()
    def update(self, is_fine: Tensor | None = None) -> None:
        """Take in the model's weights as they are now, unless is_fine, a scalar bool on their device, is false."""
        self.updates += 1
        keep = decay_after(self.updates, self.config)
        averaged, current = self._pairs
        if is_fine is None:
            torch._foreach_lerp_(averaged, current, 1 - keep)
            return
        steps = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(steps, is_fine * (1 - keep))
        torch._foreach_add_(averaged, steps)


def decay_after(updates: int, config: EMAConfig) -> float:
    """The share of the old average kept at update number `updates` (1-based)."""
    return config.decay * (1 - math.exp(-updates / config.ramp_steps))


def _matching(averaged: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The floating-point tensors of both models, in equal order."""
    theirs = model.state_dict(keep_vars=True)
    ours = averaged.state_dict(keep_vars=True)
    names = [name for name, tensor in ours.items() if tensor.is_floating_point()]
    return [ours[name].detach() for name in names], [theirs[name].detach() for name in names]
