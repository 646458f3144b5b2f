"""What would go wrong if the loss were computed in bf16, measured against float64."""

from __future__ import annotations

from typing import Any

import torch
from measure import SCENE_SIDE, scene_targets
from torch import Tensor

from anchorite.anchors import AnchorSet, decode_boxes
from anchorite.boxes import Targets, paired_iou
from anchorite.loss import DetectionLoss, LossConfig, assign
from anchorite.loss.terms import bce_with_focus, class_targets, objectness_targets, winning_cells

NUM_CLASSES, NUM_IMAGES = 5, 4


def precision_numbers() -> dict[str, Any]:
    """The box term as a box slides off its target, and the error of each term's gradient, by number format."""
    return {**_sliding_box(), "errors": _gradient_errors()}


def _sliding_box() -> dict[str, Any]:
    """1 - CIoU of a box of 4 x 4 cells whose centre is moved, in float64, float32 and bf16."""
    moved = torch.linspace(0, 0.2, 81, dtype=torch.float64)
    target = torch.tensor([0.5, 0.5, 4.0, 4.0], dtype=torch.float64).expand(len(moved), 4)
    boxes = target.clone()
    boxes[:, 0] += moved
    formats = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}
    losses = {
        name: (1 - paired_iou(boxes.to(dtype), target.to(dtype))).double().tolist() for name, dtype in formats.items()
    }
    return {"moved": moved.tolist(), "losses": losses}


def _gradient_errors() -> dict[str, dict[str, float]]:
    """Largest error of the logits' gradient over its largest entry, by term: the package's way, and bf16 throughout.

    Both start from the same bf16 logits, of a detector that is nearly right. The truth is float64 from those logits.
    """
    targets = Targets.from_rows(scene_targets()[0].rows[scene_targets()[0].rows[:, 0] < NUM_IMAGES])
    logits = _good_logits(targets)
    gains = {"box": (1.0, 0.0, 0.0), "objectness": (0.0, 1.0, 0.0), "class": (0.0, 0.0, 1.0)}
    errors: dict[str, dict[str, float]] = {"float32 loss": {}, "bf16 loss": {}}
    for term, (box, objectness, classification) in gains.items():
        config = LossConfig(box_gain=box, objectness_gain=objectness, class_gain=classification)
        criterion = DetectionLoss(AnchorSet.coco_p5(), NUM_CLASSES, config)
        truth = _gradients(lambda levels, c=criterion: c(levels, targets).total, [x.double() for x in logits])
        ours = _gradients(lambda levels, c=criterion: c(levels, targets).total, [x.float() for x in logits])
        rough = _gradients(lambda levels, t=term: NUM_IMAGES * _bf16_loss(levels, targets, t), logits)
        for name, found in (("float32 loss", ours), ("bf16 loss", rough)):
            errors[name][term] = float((found.double() - truth).abs().max() / truth.abs().max())
    return errors


def _good_logits(targets: Targets) -> list[Tensor]:
    """bf16 logits of a detector whose boxes are a little off and whose scores are mostly right; no random numbers."""
    anchors = AnchorSet.coco_p5()
    levels = []
    for number, stride in enumerate(anchors.strides):
        side = SCENE_SIDE // stride
        level = torch.zeros(NUM_IMAGES, 3, 5 + NUM_CLASSES, side, side, dtype=torch.float64)
        level[:, :, 4:] = -5
        found = assign(targets, anchors, [(SCENE_SIDE // s, SCENE_SIDE // s) for s in anchors.strides])[number]
        sides = anchors.cells(torch.float64)[number][found.anchor]
        unit = torch.cat([(found.box[:, :2] + 0.5) / 2, (found.box[:, 2:] / sides).sqrt() / 2], dim=1)
        wobble = 0.1 * torch.sin(torch.arange(unit.numel(), dtype=torch.float64)).view_as(unit)
        level[found.image, found.anchor, :4, found.row, found.column] = torch.logit(unit) + wobble
        level[found.image, found.anchor, 4, found.row, found.column] = 2.0
        level[found.image, found.anchor, 5 + found.class_index, found.row, found.column] = 3.0
        levels.append(level.bfloat16())
    return levels


def _gradients(loss: Any, logits: list[Tensor]) -> Tensor:
    leaves = [level.clone().requires_grad_() for level in logits]
    loss(leaves).backward()
    return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])


def _bf16_loss(levels: list[Tensor], targets: Targets, term: str) -> Tensor:
    """One term of the objective with every step in bf16: what the package does not do."""
    anchors = AnchorSet.coco_p5()
    assigned = assign(targets, anchors, [(int(x.shape[3]), int(x.shape[4])) for x in levels])
    total = levels[0].new_zeros(())
    for logits, found, sides, balance in zip(levels, assigned, anchors.cells(), (4.0, 1.0, 0.4), strict=True):
        if len(found.row) == 0:
            total = total + logits.sum() * 0
            continue
        picked = logits[found.image, found.anchor, :, found.row, found.column]
        iou = paired_iou(decode_boxes(picked[:, :4], sides[found.anchor].to(logits.dtype)), found.box.to(logits.dtype))
        if term == "box":
            total = total + (1 - iou).mean()
        elif term == "class":
            goals = class_targets(found.class_index, NUM_CLASSES, 0, logits.dtype)
            total = total + bce_with_focus(picked[:, 5:], goals, 1, 0).mean()
        else:
            answers = logits[:, :, 4].permute(0, 2, 3, 1)
            batch, height, width, num_anchors = answers.shape
            shape = (batch, height, width, num_anchors)
            cells = winning_cells(found, iou.detach(), shape, "last")
            goals = objectness_targets(cells, iou.detach(), answers.numel(), 1.0).view(shape)
            total = total + balance * bce_with_focus(answers, goals, 1, 0).mean()
    return total
