"""The optimizer: parameter groups and the two algorithms."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim import SGD, AdamW, Optimizer


class OptimizerConfig(BaseModel):
    """How weights move. Rates are those of `SGD` with Nesterov momentum unless `name` says otherwise."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd (with Nesterov momentum) or adamw")
    rate: float = Field(0.01, gt=0, allow_inf_nan=False, description="peak learning rate")
    final_rate: float = Field(0.01, ge=0, le=1, description="rate at the end, as a share of the peak")
    decay: Literal["cosine", "linear"] = Field("cosine", description="how the rate falls")
    momentum: float = Field(0.937, ge=0, lt=1, description="momentum of sgd, beta 1 of adamw")
    weight_decay: float = Field(0.0005, ge=0, allow_inf_nan=False, description="decay of convolution weights alone")
    warmup_epochs: float = Field(3.0, ge=0, allow_inf_nan=False, description="length of the warm-up in epochs")
    warmup_momentum: float = Field(0.8, ge=0, lt=1, description="momentum at the start of the warm-up")
    warmup_bias_rate: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="rate of biases at its start; null: 0.1 for sgd, 0 for adamw"
    )
    nominal_batch: int = Field(64, ge=1, description="images per optimizer step; smaller batches are accumulated")
    clip_norm: float = Field(10.0, ge=0, allow_inf_nan=False, description="largest gradient norm; 0 is no clipping")

    @property
    def first_bias_rate(self) -> float:
        """The rate of biases at the start of the warm-up. Steps of AdamW are as long as its rate, so it starts at 0."""
        if self.warmup_bias_rate is not None:
            return self.warmup_bias_rate
        return 0.1 if self.name == "sgd" else 0.0

    def accumulation(self, batch: int) -> int:
        """Batches per optimizer step, so that about `nominal_batch` images make one."""
        return max(1, round(self.nominal_batch / batch))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer over three groups: decayed weights, other weights, biases (in this order).

    Only weights of convolutions decay; scales of normalisation and all biases do not.
    """
    decayed, plain, biases = parameter_groups(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return AdamW(groups, lr=config.rate, betas=(config.momentum, 0.999), fused=True)
    return SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that decay (convolution weights), other weights, and biases."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(parameter)
            elif name == "weight" and parameter.ndim == 4:
                decayed.append(parameter)
            else:
                plain.append(parameter)
    return decayed, plain, biases


def apply_settings(optimizer: Optimizer, rate: float, bias_rate: float, momentum: float) -> None:
    """Set the rates and the momentum of the three groups."""
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = bias_rate if number == 2 else rate
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their common norm is at most `limit` (0: as they are); the norm before (scalar)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    # On the CPU a look at the norm saves a pass in most steps; elsewhere it would wait for the device.
    if limit > 0 and not (norm.device.type == "cpu" and bool(norm <= limit)):
        nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return norm
