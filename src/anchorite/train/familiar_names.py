"""What other trainers call the fields of a recipe, so that who comes from one is told the name here.

Names alone; docs/other-trainers.md has the same table with what differs.
"""

from __future__ import annotations

from types import MappingProxyType

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
        "cos_lr": "optimizer.decay",
        "degrees": "augment.rotation",
        "fl_gamma": "loss.focal_gamma",
        "fliplr": "augment.flip_horizontal",
        "flipud": "augment.flip_vertical",
        "gr": "loss.objectness_iou_ratio",
        "half": "precision",
        "hsv_h": "augment.hue",
        "hsv_s": "augment.saturation",
        "hsv_v": "augment.value",
        "img": "image_size",
        "img_size": "image_size",
        "imgsz": "image_size",
        "iou_thres": "validation.iou_limit",
        "label_smoothing": "loss.label_smoothing",
        "learning_rate": "optimizer.rate",
        "lr": "optimizer.rate",
        "lr0": "optimizer.rate",
        "lrf": "optimizer.final_rate",
        "max_det": "validation.max_detections",
        "nbs": "optimizer.nominal_batch",
        "obj": "loss.objectness_gain",
        "obj_pw": "loss.objectness_pos_weight",
        "optimizer": "optimizer.name",
        "rect": "validation.rectangular",
        "scale": "augment.scale",
        "shear": "augment.shear",
        "sort_obj_iou": "loss.collision",
        "translate": "augment.translation",
        "warmup_bias_lr": "optimizer.warmup_bias_rate",
    }
)
"""Their name, with underscores, to the dotted name of our field."""

WITHOUT_FIELD = MappingProxyType(
    {
        "copy_paste": "it needs masks, and labels here are boxes",
        "dropout": "the network has no such layer",
        "freeze": "all of the network is trained",
        "image_weights": "loss.class_weights weighs classes in the loss instead",
        "iou_t": "the ratio of the sides alone decides which anchors match: loss.ratio_limit",
        "perspective": "images are rotated, sheared, scaled and shifted only",
        "pretrained": "runs start from random weights",
        "single_cls": "give the data one class: docs/how-to/one-class.md",
        "weights": "runs start from random weights",
    }
)
"""Their names for what no field here does: why, or what does it instead."""
