"""Other names of recipe fields: those that earlier releases had, and those that other trainers use.

docs/other-trainers.md has the table of other trainers' names with what differs. `HYPERPARAMETERS` are the names that
stand in a file of hyperparameters, which `foreign_recipe` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

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

HYPERPARAMETERS = MappingProxyType(
    {
        "anchor_t": "",
        "anchors": "",
        "box": "scaled by levels, there as here",
        "cls": "scaled by levels and classes, there as here",
        "cls_pw": "",
        "copy_paste": "",
        "degrees": "",
        "fl_gamma": "",
        "fliplr": "",
        "flipud": "",
        "hsv_h": "",
        "hsv_s": "",
        "hsv_v": "",
        "iou_t": "",
        "label_smoothing": "",
        "loss_ota": "",
        "lr0": "",
        "lrf": "a share of the peak, there as here",
        "mixup": "off in the last augment.close_mosaic_epochs",
        "momentum": "",
        "mosaic": "off in the last augment.close_mosaic_epochs",
        "obj": "scaled by levels and image size, there as here",
        "obj_pw": "",
        "paste_in": "",
        "perspective": "",
        "scale": "",
        "shear": "",
        "translate": "",
        "warmup_bias_lr": "",
        "warmup_epochs": "at most half the run",
        "warmup_momentum": "",
        "weight_decay": "of convolution weights alone, not rescaled with the batch",
    }
)
"""What a file of hyperparameters of the family may hold: each name with what is to be said of it, if anything."""
