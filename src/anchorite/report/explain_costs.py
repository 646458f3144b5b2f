"""What an image costs: the loss of the image alone, by object, anchor cell, level and background, as plain numbers.

Legend: L levels, A anchors, K classes, P matched anchor cells of a level, H, W grid rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anchorite.anchors import decode_level
from anchorite.boxes import Targets, cxcywh_to_xyxy, pairwise_iou_xyxy
from anchorite.errors import DivergedError
from anchorite.loss import DetectionLoss, LevelBreakdown, break_down
from anchorite.model import Detector
from anchorite.predict import images_not_finite

_NUM_BACKGROUND = 10
_PARTS = (("box", slice(0, 4)), ("objectness", slice(4, 5)), ("classification", slice(5, None)))


def image_costs(
    detector: Detector, criterion: DetectionLoss, image: Tensor, targets: Targets, name: str
) -> dict[str, Any]:
    """Plain numbers for the page: terms, levels, anchor cells, background of one image (1, 3, H, W) uint8.

    The loss is that of a batch of this image alone, in float64 from the network's float32 logits. Raises DivergedError
    naming the image when the network's output is not finite.
    """
    with torch.no_grad():
        outputs = detector(image.float() / 255)
    if images_not_finite(outputs):
        raise DivergedError(
            f"{name}: the network's output for this image is not finite: its training diverged or its weights are "
            "damaged. Use earlier weights"
        )
    logits = [level.double().requires_grad_() for level in outputs]
    terms = criterion(logits, targets)
    gradients = torch.autograd.grad(terms.total, logits)
    logits = [level.detach() for level in logits]
    levels = break_down(criterion, logits, targets)
    return {
        "terms": {term: _rounded(value.detach()) for term, value in terms._asdict().items()},
        "levels": [_level_sums(level, gradient) for level, gradient in zip(levels, gradients, strict=True)],
        "anchor_cells": [
            row
            for number, (level, of_level) in enumerate(zip(levels, logits, strict=True))
            for row in _anchor_cells(number, level, of_level, criterion)
        ],
        "background": _background(levels, logits, criterion, targets),
    }


def _rounded(value: Tensor | float) -> float:
    """Six significant digits: more than a page can show, and short to write."""
    return float(f"{float(value):.6g}")


def _level_sums(level: LevelBreakdown, gradient: Tensor) -> dict[str, float]:
    """Terms of one level; gradient: (1, A, 5 + K, H, W), of the image's total by the level's logits."""
    return {
        "box": _rounded(level.box.sum()),
        "objectness": _rounded(level.objectness.sum()),
        "background": _rounded(level.objectness[~_matched(level)].sum()),
        "classification": _rounded(level.classification.sum()),
        "gradient": _rounded(gradient.norm()),
        **{f"gradient_{name}": _rounded(gradient[:, :, part].norm()) for name, part in _PARTS},
    }


def _matched(level: LevelBreakdown) -> Tensor:
    """(1, A, H, W) bool: anchor cells that are assigned to an object."""
    found = level.assignment
    matched = torch.zeros_like(level.objectness, dtype=torch.bool)
    matched[found.image, found.anchor, found.row, found.column] = True
    return matched


def _anchor_cells(number: int, level: LevelBreakdown, logits: Tensor, criterion: DetectionLoss) -> list[list[float]]:
    """A row for each of P anchor cells: level, anchor, row, column, target, IoU, objectness target, predicted
    objectness, predicted probability of the true class, costs of box, objectness and class, whether the objectness
    target is this object's IoU, and the predicted box (cx, cy, w, h) in pixels.

    Where several objects have an anchor cell, its objectness cost counts for the one whose IoU is the target there.
    """
    found, stride = level.assignment, criterion.anchors.strides[number]
    cells = (found.image, found.anchor, found.row, found.column)
    predicted = logits[found.image, found.anchor, :, found.row, found.column].sigmoid()
    own_class = predicted[torch.arange(len(predicted)), 5 + found.class_index]
    corners = torch.stack([found.column, found.row], dim=1)
    boxes = torch.cat([level.predicted[:, :2] + corners, level.predicted[:, 2:]], dim=1) * stride
    winner: dict[tuple[int, int, int], int] = {}
    for p, cell in enumerate(zip(found.anchor.tolist(), found.row.tolist(), found.column.tolist(), strict=True)):
        if criterion.config.collision != "best" or cell not in winner or level.iou[p] >= level.iou[winner[cell]]:
            winner[cell] = p
    wins = torch.zeros(len(found.target))
    wins[list(winner.values())] = 1
    whole = torch.stack([torch.full_like(found.row, number), found.anchor, found.row, found.column, found.target], 1)
    costs = [level.box, level.objectness[cells] * wins, level.classification]
    values = torch.stack([level.iou, level.objectness_target[cells], predicted[:, 4], own_class, *costs], 1)
    return [
        [*ints, *map(_rounded, floats), int(win), *(round(side, 1) for side in box)]
        for ints, floats, win, box in zip(whole.tolist(), values.tolist(), wins.tolist(), boxes.tolist(), strict=True)
    ]


def _background(
    levels: list[LevelBreakdown], logits: list[Tensor], criterion: DetectionLoss, targets: Targets
) -> list[dict[str, Any]]:
    """The unmatched anchor cells with the highest objectness cost of all levels, most expensive first."""
    strides = criterion.anchors.strides
    height, width = (logits[0].shape[axis] * strides[0] for axis in (3, 4))
    labels_px = cxcywh_to_xyxy(targets.rows[:, 2:].double() * torch.tensor([width, height, width, height]))
    anchors_cells = criterion.anchors.cells(torch.float64)
    found = []
    for number, (level, of_level) in enumerate(zip(levels, logits, strict=True)):
        costs = level.objectness.masked_fill(_matched(level), -1).flatten()
        boxes, others = decode_level(of_level, anchors_cells[number], strides[number])
        top = costs.topk(min(_NUM_BACKGROUND, len(costs)))
        _, _, rows, columns = level.objectness.shape
        for cost, cell in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if cost <= 0:
                continue
            box, probabilities = boxes[0, cell], others[0, cell].sigmoid()
            near = pairwise_iou_xyxy(cxcywh_to_xyxy(box[None]), labels_px)[0]
            likeliest = int(probabilities[1:].argmax())
            found.append(
                {
                    "level": number,
                    "anchor": cell // (rows * columns),
                    "row": cell // columns % rows,
                    "column": cell % columns,
                    "cost": _rounded(cost),
                    "predicted": _rounded(probabilities[0]),
                    "class": likeliest,
                    "class_predicted": _rounded(probabilities[1 + likeliest]),
                    "box": [round(side, 1) for side in box.tolist()],
                    "near": int(near.argmax()) if len(near) else None,
                    "near_iou": _rounded(near.max()) if len(near) else 0,
                }
            )
    return sorted(found, key=lambda one: -one["cost"])[:_NUM_BACKGROUND]
