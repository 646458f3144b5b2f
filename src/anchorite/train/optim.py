"""The optimizer, its learning-rate schedule, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from anchorite.recipe_names import with_current_names

Network = TypeVar("Network", bound=nn.Module)


class OptimizerConfig(BaseModel):
    """Settings of the optimizer. Learning rates are for `SGD` with Nesterov momentum unless `name` says otherwise."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd (with Nesterov momentum) or adamw")
    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="peak learning rate")
    lr_final: float = Field(0.01, ge=0, le=1, description="learning rate at the end, as a share of lr")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how the learning rate falls")
    momentum: float = Field(0.937, ge=0, lt=1, description="momentum of sgd, beta 1 of adamw")
    weight_decay: float = Field(0.0005, ge=0, allow_inf_nan=False, description="decay of convolution weights alone")
    warmup_epochs: float = Field(3.0, ge=0, allow_inf_nan=False, description="length of the warm-up in epochs")
    warmup_momentum: float = Field(0.8, ge=0, lt=1, description="momentum at the start of the warm-up")
    warmup_bias_lr: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="rate of biases at its start; null: 0.1 for sgd, 0 for adamw"
    )
    nominal_batch: int = Field(64, ge=1, description="images per optimizer step; smaller batches are accumulated")
    clip_norm: float = Field(10.0, ge=0, allow_inf_nan=False, description="maximum gradient norm; 0 is no clipping")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each part of the network as a share of that of the part after it"
    )
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="parts of the network that are not trained, such as [backbone]"
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, freeze: Any) -> Any:
        if isinstance(freeze, int):
            raise ValueError("parts go by name, such as [backbone] or [backbone.stem, backbone.stage2], not by number")
        return (freeze,) if isinstance(freeze, str) else freeze

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, given: Any) -> Any:
        return with_current_names({"optimizer": given})[0]["optimizer"]

    @property
    def first_bias_lr(self) -> float:
        """Learning rate of biases at the start of the warm-up; 0 for AdamW, whose steps are as long as its rate."""
        if self.warmup_bias_lr is not None:
            return self.warmup_bias_lr
        return 0.1 if self.name == "sgd" else 0.0

    def accumulation(self, batch: int) -> int:
        """Batches per optimizer step, for about `nominal_batch` images."""
        return max(1, round(self.nominal_batch / batch))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer, with a group each for decayed weights, other weights and biases, in this order.

    Only weights of convolutions decay; scales of normalisation and all biases do not. With a `layer_decay` other than
    1, each of the three is several groups in a row, one for each factor on the rate; the order of the parameters is
    the same. Frozen ones are included, but get no gradient.
    """
    factors = {id(one): factor for _, part, factor in parts_by_depth(model, config) for one in part.parameters()}
    groups: list[dict[str, Any]] = []
    for kind, parameters in enumerate(parameter_groups(model)):
        common = {"weight_decay": config.weight_decay if kind == 0 else 0.0, "is_biases": kind == 2}
        runs = [(factor, list(run)) for factor, run in groupby(parameters, lambda one: factors.get(id(one), 1.0))]
        groups += [{"params": run, "lr_factor": factor, **common} for factor, run in runs or [(1.0, [])]]
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    start_momentum(optimizer)
    return optimizer


def start_momentum(optimizer: Optimizer) -> None:
    """Begin every momentum of an SGD that there is not yet with zeros, which gives the same first step.

    torch makes it in the first step, of memory as it comes; where the device skips that step (`found_inf`), the next
    one would take what lies there for the momentum.
    """
    parameters = (one for group in optimizer.param_groups for one in group["params"] if one.requires_grad)
    for parameter in parameters if isinstance(optimizer, SGD) else ():
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)


def parts_by_depth(model: nn.Module, config: OptimizerConfig) -> list[tuple[str, nn.Module, float]]:
    """Name, module and factor on the rate of each part of a network, from its first to its last.

    The parts are the children of the backbone, and the other children as they are. The last one, the head, has factor
    1, and each one before it config.layer_decay times that of the part after it. Of a child of the backbone that has
    its stages in a list, as in transformers, each stage is a part, and so is the child itself for what is left.
    """
    parts: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        for inner, part in child.named_children() if name == "backbone" else [("", child)]:
            path = f"{name}.{inner}".rstrip(".")
            parts.append((path, part))
            lists = (one for one in part.named_modules() if isinstance(one[1], nn.ModuleList) and len(one[1]) > 1)
            for there, stages in islice(lists, 1):
                within = f"{path}.{there}".rstrip(".")
                parts += [(f"{within}.{number}", stage) for number, stage in enumerate(stages)]
    parts = [(name, part) for name, part in parts if any(True for _ in part.parameters())]
    return [(name, part, config.layer_decay ** (len(parts) - 1 - at)) for at, (name, part) in enumerate(parts)]


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that decay (weights of convolutions and, in transformers, of linear layers), others, biases."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    for module in model.modules():
        decays = isinstance(module, nn.Conv2d | nn.Linear)  # not scales, however shaped
        for name, parameter in module.named_parameters(recurse=False):
            groups[2 if name == "bias" else 0 if name == "weight" and decays else 1].append(parameter)
    return groups


def apply_settings(optimizer: Optimizer, lr: float, bias_lr: float, momentum: float) -> None:
    """Set the rates, each times its group's factor, and the momentum of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = (bias_lr if group["is_biases"] else lr) * group["lr_factor"]
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their common norm is at most `limit` (0: unchanged); the norm before (scalar)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    # On the CPU reading the norm saves a pass in most steps; elsewhere it would synchronise with the device.
    if limit > 0 and not (norm.device.type == "cpu" and bool(norm <= limit)):
        nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return norm


@dataclass(frozen=True)
class Settings:
    """Optimizer settings of one step: learning rate of weights and of biases, momentum (beta 1 for AdamW)."""

    lr: float
    bias_lr: float
    momentum: float


def settings_at(step: int, num_steps: int, steps_per_epoch: int, config: OptimizerConfig) -> Settings:
    """The settings of optimizer step `step` (0-based) of `num_steps`.

    The rate decays from config.lr to config.lr * config.lr_final by a cosine or a line; during the warm-up the
    rate rises from 0, the rate of biases moves from config.first_bias_lr, and the momentum rises from
    config.warmup_momentum, all linearly to the value of the schedule. The warm-up never takes more than half the run.
    """
    decayed = config.lr * decay_factor(step / max(num_steps - 1, 1), config.lr_final, config.schedule)
    warmup = warmup_steps(num_steps, steps_per_epoch, config)
    if step >= warmup:
        return Settings(decayed, decayed, config.momentum)
    share = step / warmup
    return Settings(
        lr=decayed * share,
        bias_lr=config.first_bias_lr + (decayed - config.first_bias_lr) * share,
        momentum=config.warmup_momentum + (config.momentum - config.warmup_momentum) * share,
    )


def warmup_steps(num_steps: int, steps_per_epoch: int, config: OptimizerConfig) -> int:
    """Optimizer steps of the warm-up, at most half the run."""
    return min(round(config.warmup_epochs * steps_per_epoch), num_steps // 2)


def decay_factor(progress: float, final: float, decay: str) -> float:
    """The factor on the rate after the share `progress` (0..1) of the run: 1 at the start, `final` at the end."""
    left = (1 + math.cos(math.pi * progress)) / 2 if decay == "cosine" else 1 - progress
    return final + (1 - final) * left


class EMAConfig(BaseModel):
    """Speed of the EMA: after n updates its decay is decay * (1 - exp(-n / ramp_steps))."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    decay: float = Field(0.9999, ge=0, lt=1, description="decay of the average per step, in the long run")
    ramp_steps: float = Field(2000.0, gt=0, allow_inf_nan=False, description="steps over which the decay ramps up")


class EMA(Generic[Network]):
    """Exponential moving average of a model's parameters and floating-point buffers.

    `model` is the averaged copy, in evaluation mode and without gradients. `updates` counts the steps that were taken,
    without the skipped ones, on the model's device: reading it waits for that.
    """

    def __init__(self, model: Network, config: EMAConfig) -> None:
        self.config = config
        self._updates = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        ours, theirs = self.model.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
        names = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        self._pairs = [ours[name].detach() for name in names], [theirs[name].detach() for name in names]

    @property
    def updates(self) -> int:
        return int(self._updates)

    @updates.setter
    def updates(self, count: int) -> None:
        self._updates.fill_(count)

    @torch.no_grad()
    def update(self, is_fine: Tensor | None = None) -> None:
        """Update with the model's current weights, unless is_fine, a scalar bool on their device, is false."""
        averaged, current = self._pairs
        if is_fine is None:
            self._updates += 1
            torch._foreach_lerp_(averaged, current, 1 - decay_after(self.updates, self.config))
            return
        self._updates += is_fine
        decay = self.config.decay
        weight = (1 - decay) + decay * torch.exp(self._updates * (-1 / self.config.ramp_steps))  # 1 - decay_after
        steps = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(steps, weight * is_fine)
        torch._foreach_add_(averaged, steps)


def decay_after(updates: int, config: EMAConfig) -> float:
    """The decay at update number `updates` (1-based)."""
    return config.decay * (1 - math.exp(-updates / config.ramp_steps))
