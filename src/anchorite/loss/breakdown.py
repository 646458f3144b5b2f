"""What each matched anchor cell adds to the loss, and each anchor cell to objectness: the three terms broken down.

Legend: B images, L levels, A anchors, K classes, H, W grid rows and columns, P matched anchor cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anchorite.anchors import decode_boxes
from anchorite.boxes import Targets, paired_iou
from anchorite.loss.assign import Assignment, assign_to
from anchorite.loss.criterion import DetectionLoss
from anchorite.loss.logits import LevelLogits, as_levels, in_loss_precision
from anchorite.loss.terms import bce_with_focus, class_targets, objectness_targets, share_of_each


class LevelBreakdown(NamedTuple):
    """One level's part of the loss by anchor cell; everything detached, in the loss's precision.

    assignment: compact, in canonical order. predicted: (P, 4) boxes as centre relative to the cell's corner and sides,
    in cells, as in assignment.box. iou: (P,) `config.box_iou` of predicted and target box. box, classification: (P,)
    what each anchor cell adds to `LossTerms.box` and `.classification`, gains included. objectness: (B, A, H, W) what
    every anchor cell adds to `LossTerms.objectness`, balance and gain included; objectness_target: (B, A, H, W).
    """

    assignment: Assignment
    predicted: Float[Tensor, "P 4"]
    iou: Float[Tensor, " P"]
    box: Float[Tensor, " P"]
    classification: Float[Tensor, " P"]
    objectness: Float[Tensor, "B A H W"]
    objectness_target: Float[Tensor, "B A H W"]


@torch.no_grad()
def break_down(
    criterion: DetectionLoss, logits: Sequence[Tensor | LevelLogits], targets: Targets
) -> list[LevelBreakdown]:
    """The loss of one batch, one `LevelBreakdown` per level; summed over levels, it gives the criterion's terms.

    Called like the criterion, whose state is unchanged (automatic balance is not updated). Raises InputError when
    the number of levels is wrong. Source: docs/objective.md, section 4.
    """
    levels = as_levels(logits, criterion.anchors.num_levels)
    maps = [in_loss_precision(level.objectness()) for level in levels]
    grid_sizes = [(int(objectness.shape[2]), int(objectness.shape[3])) for objectness in maps]
    # Compact: masked rows of padded targets have no anchor cells.
    rows = targets.compact()
    anchors_cells = criterion.anchors.cells(torch.float64, rows.rows.device)
    found = assign_to(rows, anchors_cells, grid_sizes, criterion.config.ratio_limit)
    return [
        _level(criterion, number, objectness, in_loss_precision(level.at(f.image, f.anchor, f.row, f.column)), f)
        for number, (level, objectness, f) in enumerate(zip(levels, maps, found, strict=True))
    ]


def _level(
    criterion: DetectionLoss, number: int, objectness_map: Tensor, logits: Tensor, found: Assignment
) -> LevelBreakdown:
    """One level from its objectness logits (B, A, H, W) and the logits (P, 5 + K) of its matched anchor cells."""
    config = criterion.config
    shares = share_of_each(found.valid, logits.dtype)
    sides = criterion.anchors.cells(torch.float64, logits.device)[number].to(logits.dtype)
    predicted = decode_boxes(logits[:, :4], sides[found.anchor])
    iou = paired_iou(predicted, found.box.to(logits.dtype), config.box_iou)
    by_cell = objectness_map.permute(0, 2, 3, 1)
    batch, height, width, num_anchors = by_cell.shape
    shape = (batch, height, width, num_anchors)
    goals = objectness_targets(found, iou, shape, config.objectness_iou_ratio, config.collision).view(shape)
    cost = bce_with_focus(by_cell, goals, config.objectness_pos_weight, config.focal_gamma)
    class_goals = class_targets(found.class_index, criterion.num_classes, config.label_smoothing, logits.dtype)
    class_cost = bce_with_focus(logits[:, 5:], class_goals, config.class_pos_weight, config.focal_gamma)
    if criterion.num_classes == 1:  # which has no class term
        class_cost = torch.zeros_like(class_cost)
    elif config.class_weights is not None:
        class_cost = class_cost * class_cost.new_tensor(config.class_weights)
    weight = config.objectness_gain * criterion.balance[number].to(cost.dtype) / goals.numel()
    return LevelBreakdown(
        assignment=found,
        predicted=predicted,
        iou=iou,
        box=config.box_gain * (1 - iou) * shares,
        classification=config.class_gain * class_cost.sum(dim=1) * shares / criterion.num_classes,
        objectness=(cost * weight).permute(0, 3, 1, 2),
        objectness_target=goals.permute(0, 3, 1, 2),
    )
