"""What a run really trains with: each derived value, what was written, and a sentence on what it derives from.

The formulas are those of LossConfig.scaled, OptimizerConfig, settings_at and decay_after, said again without torch, so
that a page takes no seconds; tests hold both equal.

Legend: L levels, K classes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorite.report.charts import Chart, Line, format_number, make_chart
from anchorite.report.run_data import RunFiles

_FIXED_BALANCE = {3: "4, 1, 0.4", 4: "4, 1, 0.25, 0.06"}


@dataclass(frozen=True, slots=True)
class Setting:
    """name: of what is derived; written: in the recipe; effective: what the run uses; why: what it derives from."""

    name: str
    written: str
    effective: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How many batches and optimizer steps a run takes."""

    batches: int
    accumulation: int
    steps_per_epoch: int
    num_steps: int
    warmup_steps: int


def effective_settings(files: RunFiles) -> list[Setting]:
    """The derived settings of a run, as far as its recipe and facts tell them; those that they do not are left out."""
    recipe, facts = files.recipe, files.facts
    settings: list[Setting] = []
    for part in (_start, _gains, _balance, _steps, _rates, _average, _augmentation):
        try:
            settings += part(recipe, facts, files.folder)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError):
            continue  # a recipe of another release, or edited by hand; what it says is shown as it stands
    return settings


def rate_plan(files: RunFiles) -> Chart | None:
    """The learning rates planned over the epochs; None where recipe or facts do not tell them."""
    try:
        optimizer, plan = files.recipe["optimizer"], plan_of(files.recipe, files.facts)
        count = min(400, plan.num_steps)
        steps = sorted({round(i * (plan.num_steps - 1) / max(1, count - 1)) for i in range(count)})
        pairs = [rates_at(step, plan, optimizer) for step in steps]
        epochs = [step / plan.steps_per_epoch for step in steps]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError):
        return None
    lines = [Line("weights", epochs, [rate for rate, _ in pairs]), Line("biases", epochs, [bias for _, bias in pairs])]
    return make_chart("learning rate, as planned", lines, x_name="epochs")


def plan_of(recipe: dict[str, Any], facts: dict[str, Any]) -> Plan:
    """The steps of a run; KeyError and the like where recipe and facts do not tell them."""
    optimizer, batch = recipe["optimizer"], recipe["batch"]
    batches = math.ceil(facts["splits"]["train"]["images"] / batch)
    accumulation = max(1, round(optimizer["nominal_batch"] / batch))
    steps_per_epoch = math.ceil(batches / accumulation)
    num_steps = steps_per_epoch * recipe["epochs"]
    warmup_steps = min(round(optimizer["warmup_epochs"] * steps_per_epoch), num_steps // 2)
    return Plan(batches, accumulation, steps_per_epoch, num_steps, warmup_steps)


def rates_at(step: int, plan: Plan, optimizer: dict[str, Any]) -> tuple[float, float]:
    """The learning rates of weights and of biases at an optimizer step (from 0)."""
    progress = step / max(plan.num_steps - 1, 1)
    left = (1 + math.cos(math.pi * progress)) / 2 if optimizer["schedule"] == "cosine" else 1 - progress
    final = optimizer["lr_final"]
    rate = optimizer["lr"] * (final + (1 - final) * left)
    if step >= plan.warmup_steps:
        return rate, rate
    share, first = step / plan.warmup_steps, first_bias_lr(optimizer)
    return rate * share, first + (rate - first) * share


def first_bias_lr(optimizer: dict[str, Any]) -> float:
    """The rate of biases at the start of the warm-up."""
    given = optimizer["warmup_bias_lr"]
    return float(given) if given is not None else (0.1 if optimizer["name"] == "sgd" else 0.0)


def effective_gains(recipe: dict[str, Any], facts: dict[str, Any]) -> tuple[float, float, float]:
    """Gains of box, objectness and class; KeyError and the like where recipe and facts do not tell them."""
    loss, share = recipe["loss"], 3 / len(facts["anchors"])
    return (
        loss["box_gain"] * share,
        loss["objectness_gain"] * (recipe["image_size"] / 640) ** 2 * share,
        loss["class_gain"] * len(facts["class_names"]) / 80 * share,
    )


def _start(_recipe: dict[str, Any], facts: dict[str, Any], _folder: Path) -> list[Setting]:
    start = facts.get("start")
    if not start:
        return []
    return [
        Setting("starting weights", str(start["weights"]), f"SHA-256 {start['sha256'][:12]}...", str(start["kept"]))
    ]


def _gains(recipe: dict[str, Any], facts: dict[str, Any], _folder: Path) -> list[Setting]:
    loss, levels, classes = recipe["loss"], len(facts["anchors"]), len(facts["class_names"])
    size = recipe["image_size"]
    whys = (
        f"box_gain x 3/L, for L = {levels} levels: the term is a sum over the levels",
        f"objectness_gain x (image_size/640)^2 x 3/L, for {size} px: fewer cells make a smaller term",
        f"class_gain x K/80 x 3/L, for K = {classes} classes: each class is a yes or no of its own",
    )
    names, gains = ("box", "objectness", "class"), effective_gains(recipe, facts)
    return [
        Setting(f"{name} gain", format_number(loss[f"{name}_gain"]), format_number(gain), why)
        for name, gain, why in zip(names, gains, whys, strict=True)
    ]


def _balance(recipe: dict[str, Any], facts: dict[str, Any], folder: Path) -> list[Setting]:
    automatic, levels = recipe["loss"]["automatic_balance"], len(facts["anchors"])
    written = "automatic" if automatic else "fixed"
    fixed = _FIXED_BALANCE.get(levels, "-")
    saved = saved_balance(folder / "checkpoints")
    if not automatic:
        why = "weights of the levels' objectness, finest level first, as the objective has them"
        return [Setting("objectness balance", written, fixed, why)]
    name, values = saved if saved is not None else ("", None)
    if values is None:
        why = "starts here and follows the inverse of each level's loss; no checkpoint says yet how far it is"
        return [Setting("objectness balance", written, fixed, why)]
    shown = ", ".join(format_number(value) for value in values)
    return [
        Setting(
            "objectness balance",
            written,
            shown,
            f"began at {fixed} and followed the inverse of each level's loss; as in {name}",
        )
    ]


def saved_balance(checkpoints: Path) -> tuple[str, list[float]] | None:
    """The newest finished checkpoint's name and (L,) balance; None where none can be read."""
    from safetensors import SafetensorError, safe_open

    for manifest in sorted(checkpoints.glob("epoch-*.json"), key=lambda path: path.stem, reverse=True):
        path = manifest.with_suffix(".safetensors")
        try:
            with safe_open(path, framework="np") as file:
                return path.stem, [float(value) for value in file.get_tensor("criterion.balance")]
        except (OSError, SafetensorError, ValueError, TypeError):
            continue
    return None


def saved_environment(checkpoints: Path) -> dict[str, Any]:
    """What the newest finished checkpoint says of the machine; empty where none does."""
    for manifest in sorted(checkpoints.glob("epoch-*.json"), key=lambda path: path.stem, reverse=True):
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))["body"]["environment"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _steps(recipe: dict[str, Any], facts: dict[str, Any], _folder: Path) -> list[Setting]:
    plan, batch, nominal = plan_of(recipe, facts), recipe["batch"], recipe["optimizer"]["nominal_batch"]
    batches = "batch" if plan.accumulation == 1 else "batches"
    images = facts["splits"]["train"]["images"]
    return [
        Setting(
            "images per step",
            f"batch {batch}",
            str(batch * plan.accumulation),
            f"{plan.accumulation} {batches} of {batch} a step: nominal_batch {nominal} / batch, rounded, at least 1",
        ),
        Setting(
            "optimizer steps",
            f"{recipe['epochs']} epochs",
            str(plan.num_steps),
            f"{images} images make {plan.batches} batches and {plan.steps_per_epoch} steps an epoch",
        ),
    ]


def _rates(recipe: dict[str, Any], facts: dict[str, Any], _folder: Path) -> list[Setting]:
    optimizer, plan = recipe["optimizer"], plan_of(recipe, facts)
    last, momentum = rates_at(plan.num_steps - 1, plan, optimizer)[0], format_number(optimizer["momentum"])
    curve = "a cosine" if optimizer["schedule"] == "cosine" else "a line"
    first = format_number(first_bias_lr(optimizer))
    return [
        Setting(
            "warm-up",
            f"{format_number(optimizer['warmup_epochs'])} epochs",
            f"{plan.warmup_steps} steps",
            f"weights from rate 0, biases from {first}, momentum from "
            f"{format_number(optimizer['warmup_momentum'])} to {momentum}; never more than half the run",
        ),
        Setting(
            "last learning rate",
            f"{format_number(optimizer['lr'])} x {format_number(optimizer['lr_final'])}",
            format_number(last),
            f"the peak rate falls to lr x lr_final by {curve}",
        ),
    ]


def _average(recipe: dict[str, Any], facts: dict[str, Any], _folder: Path) -> list[Setting]:
    average, steps = recipe["ema"], plan_of(recipe, facts).num_steps
    last = average["decay"] * (1 - math.exp(-steps / average["ramp_steps"]))
    return [
        Setting(
            "average of weights",
            format_number(average["decay"]),
            f"{last:.6g}",
            f"share kept at the last of {steps} steps, decay x (1 - exp(-steps / "
            f"{format_number(average['ramp_steps'])})); the averaged weights are what is measured and saved",
        )
    ]


def _augmentation(recipe: dict[str, Any], _facts: dict[str, Any], _folder: Path) -> list[Setting]:
    augment, epochs = recipe["augment"], recipe["epochs"]
    last = epochs - augment["close_mosaic_epochs"]
    if not augment["mosaic"]:
        return []
    effective = f"epochs 1 to {last}" if last > 0 else "never"
    why = f"the last {augment['close_mosaic_epochs']} epochs see single images, as prediction does"
    return [Setting("mosaic", f"share {format_number(augment['mosaic'])}", effective, why)]
