"""Yardstick (a): head and loss the plain way, to be measured against, written from docs/objective.md alone.

Every logit of every place is computed; the map is reordered so that a place's logits lie side by side; objects are
assigned with boolean masks; matched places are gathered, and the loss goes back through that by autograd. Nothing is
shared with anchorite.loss, so that the two can be held against each other.

Legend: B images, L levels, A anchors, K classes, H, W grid rows and columns, T objects, M matches of object and anchor,
P candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anchorite.benchmark.subjects import Predictors
from anchorite.loss import LossConfig

_BALANCE = (4.0, 1.0, 0.4)
_EPS = 1e-7


@dataclass(frozen=True)
class Candidates:
    """Places of one level that answer for an object, (P,) indices, with what they should say: box (P, 4) in cells."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box: Tensor
    class_index: Tensor


def dense_logits(features: Sequence[Tensor], predictors: Predictors, num_anchors: int) -> list[Tensor]:
    """Logits of every level by place, (B, A, H, W, 5 + K), contiguous."""
    logits = []
    for feature, predictor in zip(features, predictors, strict=True):
        batch, _, height, width = feature.shape
        output = functional.conv2d(feature, predictor.weight, predictor.bias)
        by_anchor = output.view(batch, num_anchors, -1, height, width)
        logits.append(by_anchor.permute(0, 1, 3, 4, 2).contiguous())
    return logits


class DenseLoss:
    """The objective of three levels over logits (B, A, H, W, 5 + K), with the default options and given gains.

    anchors_cells: (3, A, 2). Called with logits and rows (T, 6): image, class, cx, cy, w, h, normalised; returns the
    total with the factor B. Box, objectness and classes are taken in float32, or in float64 for float64 logits.
    """

    def __init__(self, anchors_cells: Tensor, config: LossConfig) -> None:
        assert anchors_cells.shape[0] == len(_BALANCE)
        self.anchors_cells = anchors_cells
        self.config = config

    def __call__(self, logits: Sequence[Tensor], rows: Tensor) -> Tensor:
        box_loss = objectness_loss = class_loss = torch.zeros((), device=rows.device)
        for level, place_logits in enumerate(logits):
            anchors_cells = self.anchors_cells[level].to(rows)
            found = assign_by_masks(rows, anchors_cells, place_logits.shape[2:4], self.config.ratio_limit)
            goals = torch.zeros(place_logits.shape[:4], dtype=_loss_dtype(place_logits), device=rows.device)
            if len(found.image):
                matched = _in_loss_precision(place_logits[found.image, found.anchor, found.row, found.column])
                box, objectness, classes = matched.split((4, 1, matched.shape[1] - 5), dim=1)
                centres = box[:, :2].sigmoid() * 2 - 0.5
                sides = (box[:, 2:].sigmoid() * 2) ** 2 * anchors_cells[found.anchor].to(box)
                iou = complete_iou(torch.cat([centres, sides], dim=1), found.box.to(box))
                box_loss = box_loss + (1 - iou).mean()
                # Written in canonical order, so that the last of several candidates for a place stays.
                goals[found.image, found.anchor, found.row, found.column] = iou.detach().clamp(min=0)
                if classes.shape[1] > 1:
                    one_hot = torch.zeros_like(classes)
                    one_hot[torch.arange(len(classes), device=rows.device), found.class_index] = 1.0
                    class_loss = class_loss + functional.binary_cross_entropy_with_logits(classes, one_hot)
            everywhere = _in_loss_precision(place_logits[..., 4])
            objectness = functional.binary_cross_entropy_with_logits(everywhere, goals)
            objectness_loss = objectness_loss + _BALANCE[level] * objectness
        config = self.config
        summed = config.box_gain * box_loss + config.objectness_gain * objectness_loss + config.class_gain * class_loss
        return summed * logits[0].shape[0]


def assign_by_masks(rows: Tensor, anchors_cells: Tensor, grid_size: Sequence[int], ratio_limit: float) -> Candidates:
    """The candidates of one level in canonical order; rows (T, 6), anchors_cells (A, 2)."""
    height, width = grid_size
    num_anchors, num_rows = len(anchors_cells), len(rows)
    grid = rows.new_tensor([width, height])
    boxes = rows[:, 2:] * grid.repeat(2)
    ratio = boxes[None, :, 2:] / anchors_cells[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=2) < ratio_limit  # (A, T)
    of_match = torch.arange(num_rows, device=rows.device).expand(num_anchors, num_rows)[fits]  # (M,)
    anchor = torch.arange(num_anchors, device=rows.device)[:, None].expand(num_anchors, num_rows)[fits]
    centres = boxes[of_match, :2]
    near_start = (centres % 1 < 0.5) & (centres > 1)
    near_end = ((grid - centres) % 1 < 0.5) & (grid - centres > 1)
    holds = torch.ones_like(near_start[:, 0])
    answers = torch.stack([holds, near_start[:, 0], near_start[:, 1], near_end[:, 0], near_end[:, 1]])  # (5, M)
    shifts = rows.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
    shift = shifts[:, None].expand(5, len(of_match), 2)[answers]
    of_match = of_match.expand_as(answers)[answers]
    anchor = anchor.expand_as(answers)[answers]
    cells = (boxes[of_match, :2] - shift).long()
    column, row = cells[:, 0].clamp(0, width - 1), cells[:, 1].clamp(0, height - 1)
    box = torch.cat([boxes[of_match, :2] - torch.stack([column, row], dim=1), boxes[of_match, 2:]], dim=1)
    return Candidates(rows[of_match, 0].long(), anchor, row, column, box, rows[of_match, 1].long())


def complete_iou(boxes_cxcywh: Tensor, goals_cxcywh: Tensor) -> Tensor:
    """CIoU (P,) of boxes (P, 4) and (P, 4) at equal positions."""
    x1, y1, w1, h1 = boxes_cxcywh.unbind(dim=1)
    x2, y2, w2, h2 = goals_cxcywh.unbind(dim=1)
    left1, right1, top1, bottom1 = x1 - w1 / 2, x1 + w1 / 2, y1 - h1 / 2, y1 + h1 / 2
    left2, right2, top2, bottom2 = x2 - w2 / 2, x2 + w2 / 2, y2 - h2 / 2, y2 + h2 / 2
    overlap_x = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    overlap_y = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = overlap_x * overlap_y
    iou = intersection / (w1 * h1 + w2 * h2 - intersection + _EPS)
    hull_x = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_y = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    distance = ((x2 - x1) ** 2 + (y2 - y1) ** 2) / (hull_x**2 + hull_y**2 + _EPS)
    aspect = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)) ** 2
    with torch.no_grad():
        alpha = aspect / (aspect - iou + 1 + _EPS)
    return iou - distance - alpha * aspect


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _in_loss_precision(logits: Tensor) -> Tensor:
    return logits.to(_loss_dtype(logits))
