"""What a run really trains with, as training recorded it in run.json, beside what its recipe says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from anchorite.report.charts import Chart, Line, format_number, make_chart
from anchorite.report.run_data import RunFiles, flatten

_UNKNOWN, _NOT_RECORDED = "-", "not recorded"  # of recipes that do not tell; of runs of earlier releases


class EffectiveSetting(NamedTuple):
    """name: of what is derived; written: in the recipe; effective: what the run uses; why: what it derives from."""

    name: str
    written: str
    effective: str
    why: str


def effective_settings(files: RunFiles) -> list[EffectiveSetting]:
    """The derived settings of a run, without those of which neither recipe nor run.json tells anything."""
    recipe, derived = _texts(files.recipe, _UNKNOWN), _texts(files.facts.get("derived"), _NOT_RECORDED)
    is_automatic = recipe("loss.automatic_balance")
    balance, balance_at = _balance(files.folder / "checkpoints") or (derived("balance"), "at the start of the run")
    mosaic = {"0": "never", _NOT_RECORDED: _NOT_RECORDED}.get(derived("mosaic_epochs"))
    momentum = f"momentum from {recipe('optimizer.warmup_momentum')} to {recipe('optimizer.momentum')}"
    rows = [
        (
            "box gain",
            recipe("loss.box_gain"),
            derived("gains.box"),
            "box_gain x 3/L, for L levels: the term is a sum over the levels",
        ),
        (
            "objectness gain",
            recipe("loss.objectness_gain"),
            derived("gains.objectness"),
            f"objectness_gain x (image_size/640)^2 x 3/L, for {recipe('image_size')} px: fewer cells, smaller term",
        ),
        (
            "class gain",
            recipe("loss.class_gain"),
            derived("gains.class"),
            "class_gain x K/80 x 3/L, for K classes: each class is a binary decision of its own",
        ),
        (
            "objectness balance",
            {"yes": "automatic", "no": "fixed"}.get(is_automatic, _UNKNOWN),
            balance,
            "weights of the levels' objectness, finest level first"
            + (f", {balance_at}; they follow the inverse of each level's loss" if is_automatic == "yes" else ""),
        ),
        (
            "images per step",
            recipe("batch", "batch {}"),
            derived("images_per_step"),
            f"batches a step: {derived('accumulation')}, by nominal_batch {recipe('optimizer.nominal_batch')} / batch",
        ),
        (
            "optimizer steps",
            recipe("epochs", "{} epochs"),
            derived("num_steps"),
            f"an epoch has {derived('batches_per_epoch', '{} batches')}, {derived('steps_per_epoch', '{} steps')}",
        ),
        (
            "warm-up",
            recipe("optimizer.warmup_epochs", "{} epochs"),
            derived("warmup_steps", "{} steps"),
            f"lr of weights from 0, of biases from {derived('warmup_bias_lr')}, {momentum}; at most half the run",
        ),
        (
            "last learning rate",
            recipe("optimizer.lr_final", f"{recipe('optimizer.lr')} x {{}}"),
            derived("lr_last"),
            f"the peak falls to lr x lr_final, schedule {recipe('optimizer.schedule')}",
        ),
        (
            "EMA decay",
            recipe("ema.decay"),
            derived("ema_decay_last"),
            f"at the last step: decay x (1 - exp(-steps / {recipe('ema.ramp_steps')})); the EMA is validated and saved",
        ),
        (
            "mosaic",
            recipe("augment.mosaic", "share {}"),
            mosaic or derived("mosaic_epochs", "epochs 1 to {}"),
            f"the last {recipe('augment.close_mosaic_epochs')} epochs see single images, as prediction does",
        ),
    ]
    settings = [EffectiveSetting(*row) for row in rows if row[1:3] != (_UNKNOWN, _NOT_RECORDED)]
    start = files.facts.get("start")
    if isinstance(start, dict):
        digest = f"SHA-256 {str(start.get('sha256', _UNKNOWN))[:12]}..."
        weights, transferred = (str(start.get(key, _UNKNOWN)) for key in ("weights", "kept"))
        settings.insert(0, EffectiveSetting("starting weights", weights, digest, transferred))
    return settings


def _texts(mapping: Any, missing: str) -> Callable[..., str]:
    """A function that gives the value of a dotted key as text, within a template, or what is missing."""
    texts = dict(flatten(mapping)) if isinstance(mapping, dict) else {}

    def text(key: str, template: str = "{}") -> str:
        return template.format(texts[key]) if key in texts else missing

    return text


def _balance(checkpoints: Path) -> tuple[str, str] | None:
    """The balance in the newest checkpoint, and that checkpoint's name; None where none can be read."""
    from safetensors import SafetensorError, safe_open

    for manifest in sorted(checkpoints.glob("epoch-*.json"), reverse=True):
        try:
            with safe_open(manifest.with_suffix(".safetensors"), framework="np") as file:
                values = [float(value) for value in file.get_tensor("criterion.balance")]
        except (OSError, SafetensorError, ValueError, TypeError):
            continue
        return ", ".join(map(format_number, values)), f"as in {manifest.stem}"
    return None


def lr_plan(files: RunFiles) -> Chart | None:
    """The learning rates planned over the epochs; None where run.json does not tell them."""
    try:
        plan = files.facts["derived"]["lr_plan"]
        lines = [Line(name, plan["epochs"], plan[key]) for name, key in (("weights", "lr"), ("biases", "bias_lr"))]
        return make_chart("learning rate, as planned", lines, x_name="epochs")
    except (KeyError, TypeError, ValueError, IndexError):
        return None
