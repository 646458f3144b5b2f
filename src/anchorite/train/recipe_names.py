"""Names and texts of recipes, without torch: the built-in ones, earlier names of fields, and names of other trainers.

docs/other-trainers.md has the table of other trainers' names with what differs. `HYPERPARAMETERS` are the names that
stand in a file of hyperparameters of the original family, which is taken as a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from anchorite.reading import one_line, printable, shorten


def built_in_recipes() -> dict[str, str]:
    """Names and YAML texts of the recipes that come with the package."""
    folder = resources.files("anchorite.train") / "recipes"
    texts = {
        entry.name: entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }
    return {name.removesuffix(".yaml"): texts[name] for name in sorted(texts)}


RENAMED_FIELDS = MappingProxyType(
    {
        "average": "ema",
        "optimizer.rate": "optimizer.lr",
        "optimizer.final_rate": "optimizer.lr_final",
        "optimizer.decay": "optimizer.schedule",
        "optimizer.warmup_bias_rate": "optimizer.warmup_bias_lr",
        "validation.iou_limit": "validation.iou_threshold",
    }
)
"""Earlier names of fields and groups of a recipe to the current ones; files, settings and runs with them are read."""

RENAMED_COLUMNS = MappingProxyType({"rate": "lr"})
"""The same for the columns of metrics.csv."""


def current_name(name: str) -> str:
    """The current dotted name of a recipe field or group."""
    for old, new in RENAMED_FIELDS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def with_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested recipe values with the current names of their fields, and the earlier names that were replaced.

    An earlier name beside the current one stays, to be refused as an unknown field.
    """
    renamed = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    found = []
    for old, new in RENAMED_FIELDS.items():
        group, _, name = old.rpartition(".")
        fields = renamed.get(group) if group else renamed
        new_name = new.rpartition(".")[2]
        if isinstance(fields, dict) and name in fields and new_name not in fields:
            fields[new_name] = fields.pop(name)
            found.append(old)
    return renamed, found


FAMILIAR_NAMES = MappingProxyType(
    {
        "agnostic_nms": "validation.class_agnostic",
        "amp": "precision",
        "anchor_t": "loss.ratio_limit",
        "anchors": "anchors.rows",
        "autobalance": "loss.automatic_balance",
        "batch_size": "batch",
        "box": "loss.box_gain",
        "cache": "store",
        "cfg": "model",
        "close_mosaic": "augment.close_mosaic_epochs",
        "cls": "loss.class_gain",
        "cls_pw": "loss.class_pos_weight",
        "conf_thres": "validation.confidence",
        "cos_lr": "optimizer.schedule",
        "degrees": "augment.rotation",
        "fl_gamma": "loss.focal_gamma",
        "fliplr": "augment.flip_horizontal",
        "flipud": "augment.flip_vertical",
        "freeze": "optimizer.freeze",
        "gr": "loss.objectness_iou_ratio",
        "half": "precision",
        "hsv_h": "augment.hue",
        "hsv_s": "augment.saturation",
        "hsv_v": "augment.value",
        "img": "image_size",
        "img_size": "image_size",
        "imgsz": "image_size",
        "iou_thres": "validation.iou_threshold",
        "label_smoothing": "loss.label_smoothing",
        "learning_rate": "optimizer.lr",
        "lr": "optimizer.lr",
        "lr0": "optimizer.lr",
        "lrf": "optimizer.lr_final",
        "max_det": "validation.max_detections",
        "mixup": "augment.mixup",
        "momentum": "optimizer.momentum",
        "mosaic": "augment.mosaic",
        "nbs": "optimizer.nominal_batch",
        "obj": "loss.objectness_gain",
        "obj_pw": "loss.objectness_pos_weight",
        "optimizer": "optimizer.name",
        "pretrained": "weights",
        "rect": "validation.rectangular",
        "scale": "augment.scale",
        "shear": "augment.shear",
        "sort_obj_iou": "loss.collision",
        "translate": "augment.translation",
        "warmup_bias_lr": "optimizer.warmup_bias_lr",
        "warmup_epochs": "optimizer.warmup_epochs",
        "warmup_momentum": "optimizer.warmup_momentum",
        "weight_decay": "optimizer.weight_decay",
    }
)
"""Their name, with underscores, to the dotted name of our field."""

WITHOUT_FIELD = MappingProxyType(
    {
        "copy_paste": "it needs masks, and labels here are boxes",
        "dropout": "the network has no such layer",
        "image_weights": "loss.class_weights weighs classes in the loss instead",
        "iou_t": "the ratio of the sides alone decides which anchors match: loss.ratio_limit",
        "loss_ota": "assignment is by ratio and neighbour cells alone, never by cost",
        "paste_in": "it needs masks, and labels here are boxes",
        "perspective": "images are rotated, sheared, scaled and shifted only",
        "single_cls": "give the data one class: docs/how-to/one-class.md",
    }
)
"""Their names for what no field here does: why, or what does it instead."""

_WITHOUT_NOTE = (
    "anchor_t anchors cls_pw copy_paste degrees fl_gamma fliplr flipud hsv_h hsv_s hsv_v iou_t "
    "label_smoothing loss_ota lr0 momentum obj_pw paste_in perspective scale shear translate "
    "warmup_bias_lr warmup_momentum"
)
HYPERPARAMETERS = MappingProxyType(
    dict.fromkeys(_WITHOUT_NOTE.split(), "")
    | {
        "box": "scaled by levels, there as here",
        "cls": "scaled by levels and classes, there as here",
        "lrf": "a share of the peak, there as here",
        "mixup": "off in the last augment.close_mosaic_epochs",
        "mosaic": "off in the last augment.close_mosaic_epochs",
        "obj": "scaled by levels and image size, there as here",
        "warmup_epochs": "at most half the run",
        "weight_decay": "of convolution weights alone, not rescaled with the batch",
    }
)
"""The names that a file of hyperparameters of the family may have, each with the note that is printed for it."""


_ANCHORS_A_LEVEL = 3  # of the default tables


@dataclass
class TakenOver:
    """A recipe made of such a file. values: as nested mappings; notes: a sentence on each name of the file.

    sources: for each field that was set, where the file sets it, for messages.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def is_foreign(values: Mapping[str, Any], fields: Collection[str]) -> bool:
    """Whether the top level of a YAML file has names of the family's hyperparameters, and none that is a field here.

    fields: the names at the top level of our recipes. "anchors" is one of both: a group here, a number or table there.
    """
    theirs, ours = _sorted_out(values, fields)
    return bool(theirs) and not ours


def mixed_note(values: Mapping[str, Any], fields: Collection[str], where: str) -> str:
    """What to add to the faults of a file that has both; empty where it has not."""
    theirs, ours = _sorted_out(values, fields)
    if not theirs or not ours:
        return ""
    return (
        f"\n{where}: names of another trainer's hyperparameters ({', '.join(theirs)}) beside fields of a recipe "
        f"({', '.join(ours)}): a file is read as one or the other; rename theirs, or give ours by flags or --set"
    )


def _sorted_out(values: Mapping[str, Any], fields: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of the family's hyperparameters, and those of our fields that are no such."""
    theirs = [name for name, value in values.items() if name in HYPERPARAMETERS and not isinstance(value, dict)]
    return theirs, [name for name in values if name in fields and name not in theirs]


def taken_over(
    values: Mapping[str, Any], where: str, line_of: Callable[[str], str], overruled: Collection[str]
) -> TakenOver:
    """The recipe that a file of the family's hyperparameters stands for, name by name.

    where: the file, for messages; line_of: ":LINE" of a name in it; overruled: dotted names of the fields that the
    user sets otherwise. A name that is not of the family is handed on, to be refused as a field that there is not.
    """
    taken = TakenOver({"name": printable(Path(where).stem, 100)})
    taken.notes.append(
        f"recipe {one_line(where)}: hyperparameters of another trainer, {len(values)} names; what they leave open has "
        "the defaults of docs/recipes.md. They are taken so:"
    )
    for name, value in values.items():
        if name == "anchors":
            ours, note = _anchors(value)
        elif name in FAMILIAR_NAMES and name in HYPERPARAMETERS:
            ours, note = FAMILIAR_NAMES[name], HYPERPARAMETERS[name]
        elif name in WITHOUT_FIELD:
            taken.notes.append(_without(name, value))
            continue
        else:
            ours, note = name, ""
        shown = f"{name} {_shown(value)}"
        if ours is None:
            taken.notes.append(f"{shown}: {note}")
            continue
        _put(taken.values, ours, value)
        taken.sources[ours] = f"{where}{line_of(name)}: {name}"
        over = "; overruled by what was set beside the file" if ours in overruled else ""
        taken.notes.append(f"{shown} -> {ours}{f' ({note})' if note else ''}{over}")
    return taken


def _anchors(value: Any) -> tuple[str | None, str]:
    """The field of what a file says of anchors, a table or a number of them; None for a number, and why."""
    if isinstance(value, list):
        return "anchors.rows", "never refitted"
    if isinstance(value, int | float) and round(value) in (0, _ANCHORS_A_LEVEL):
        return None, f"so many a level have the default tables, {_ANCHORS_A_LEVEL}" if value else "the default tables"
    return None, (
        "warning: ignored, for a number alone is no table, and the default ones have "
        f"{_ANCHORS_A_LEVEL} a level; give a table by anchors.rows"
    )


def _without(name: str, value: Any) -> str:
    """A sentence on a name that no field answers to."""
    if not value:
        return f"{name} {_shown(value)}: there is no such thing here, and off it is there, too"
    return f"warning: {name} {_shown(value)} is ignored: {WITHOUT_FIELD[name]}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"(a table of {len(value)} rows)"
    return f"{value:g}" if isinstance(value, float) else shorten(value)


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, last = dotted.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[last] = value
