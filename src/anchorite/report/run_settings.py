"""What a run really trains with, as training recorded it in run.json, beside what its recipe says."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from anchorite.report.charts import Chart, Line, format_number, make_chart
from anchorite.report.run_data import RunFiles, flatten, none_if_absent

_UNKNOWN, _NOT_RECORDED = "-", "not recorded"  # of recipes that do not tell; of runs of earlier releases
# A line a setting: name, what the recipe says (r), what was derived (d), from what; values by their dotted keys.
_ROWS = """\
box gain | {r[loss.box_gain]} | {d[gains.box]} | box_gain x 3/L: the term is a sum over L levels
objectness gain | {r[loss.objectness_gain]} | {d[gains.objectness]} | \
objectness_gain x (image_size/640)^2 x 3/L, for {r[image_size]} px: fewer cells make a smaller term
class gain | {r[loss.class_gain]} | {d[gains.class]} | \
class_gain x K/80 x 3/L, for K classes: each class is a binary decision of its own
objectness balance | {r[balance]} | {d[balance]} | weights of the levels, finest level first{d[balance_at]}
images per step | batch {r[batch]} | {d[images_per_step]} | \
batches a step: {d[accumulation]}, by nominal_batch {r[optimizer.nominal_batch]} / batch, at least 1
optimizer steps | {r[epochs]} epochs | {d[num_steps]} | \
an epoch has {d[batches_per_epoch]} batches and {d[steps_per_epoch]} steps
warm-up | {r[optimizer.warmup_epochs]} epochs | {d[warmup_steps]} steps | \
lr of weights from 0, of biases from {d[warmup_bias_lr]}, momentum from {r[optimizer.warmup_momentum]}
last learning rate | {r[optimizer.lr]} x {r[optimizer.lr_final]} | {d[lr_last]} | \
the peak falls to lr x lr_final, schedule {r[optimizer.schedule]}
EMA decay | {r[ema.decay]} | {d[ema_decay_last]} | \
at the last step: decay x (1 - exp(-steps / {r[ema.ramp_steps]})); the EMA is validated and saved
mosaic | share {r[augment.mosaic]} | {d[mosaic]} | \
the last {r[augment.close_mosaic_epochs]} epochs see single images, as prediction does"""


def effective_settings(files: RunFiles) -> list[tuple[str, str, str, str]]:
    """The derived settings of a run, without those of which neither recipe nor run.json tells anything: name, what the
    recipe says, what the run uses, and what that derives from."""
    recipe, derived, start = dict(flatten(files.recipe)), files.facts.get("derived"), files.facts.get("start")
    recorded = dict(flatten(derived)) if isinstance(derived, dict) else {}
    settings = []
    if isinstance(start, dict):
        weights, digest, transferred = (str(start.get(key, _UNKNOWN)) for key in ("weights", "sha256", "kept"))
        settings = [("starting weights", weights, f"SHA-256 {digest[:12]}...", transferred)]
    at = ", at the start"
    if saved := files.from_newest_checkpoint(_saved_balance):
        recorded["balance"], at = saved
    recorded["balance_at"] = ""
    if (is_automatic := recipe.get("loss.automatic_balance")) is not None:
        recipe["balance"] = "automatic" if is_automatic == "yes" else "fixed"
        recorded["balance_at"] = f"{at}; they follow each level's loss" if is_automatic == "yes" else ""
    if (epochs := recorded.get("mosaic_epochs")) is not None:
        recorded["mosaic"] = "never" if epochs == "0" else f"epochs 1 to {epochs}"
    for row in _ROWS.splitlines():
        name, written, effective, why = row.split(" | ")
        cells = _filled(written, recipe, recorded, _UNKNOWN), _filled(effective, recipe, recorded, _NOT_RECORDED)
        if cells != (_UNKNOWN, _NOT_RECORDED):
            reason = why.format(r=defaultdict(lambda: _UNKNOWN, recipe), d=defaultdict(lambda: _UNKNOWN, recorded))
            settings.append((name, *cells, reason))
    return settings


def _filled(template: str, recipe: dict[str, Any], derived: dict[str, Any], missing: str) -> str:
    try:
        return template.format(r=recipe, d=derived)
    except KeyError:
        return missing


def _saved_balance(checkpoint: Path) -> tuple[str, str]:
    """The balance of the levels in a checkpoint, and words on where it is from."""
    with safe_open(checkpoint.with_suffix(".safetensors"), framework="np") as file:
        values = [format_number(float(value)) for value in file.get_tensor("criterion.balance")]
    return ", ".join(values), f", as in {checkpoint.stem}"


@none_if_absent
def lr_plan(files: RunFiles) -> Chart:
    """The learning rates planned over the epochs; None where run.json does not tell them."""
    plan = files.facts["derived"]["lr_plan"]
    lines = [Line(name, plan["epochs"], plan[key]) for name, key in (("weights", "lr"), ("biases", "bias_lr"))]
    return make_chart("learning rate, as planned", lines, x_name="epochs")
