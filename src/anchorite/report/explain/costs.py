"""What an image costs: the loss of the image alone, by object, place, level and background cell, as plain numbers.

Legend: L levels, A anchors, K classes, P matched places of a level, H, W grid rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anchorite.anchors import AnchorSet, decode_level
from anchorite.boxes import Targets, cxcywh_to_xyxy, pairwise_iou_xyxy
from anchorite.errors import DivergedError
from anchorite.loss import DetectionLoss, LevelBreakdown, break_down
from anchorite.model import Detector

NUM_BACKGROUND = 10
_PARTS = (("box", slice(0, 4)), ("objectness", slice(4, 5)), ("classification", slice(5, None)))


def image_costs(
    detector: Detector, criterion: DetectionLoss, image: Tensor, targets: Targets, name: str
) -> dict[str, Any]:
    """Plain numbers for the page: terms, levels, places, background of one image (1, 3, H, W) uint8.

    The loss is that of a batch of this image alone, in float64 from the network's float32 logits. Raises DivergedError
    naming the image when the network's output is not finite.
    """
    with torch.no_grad():
        answers = detector(image.float() / 255)
    if not all(bool(level.isfinite().all()) for level in answers):
        raise DivergedError(
            f"{name}: the network's output for this image is not finite: its training diverged or its weights are "
            "damaged. Use earlier weights"
        )
    logits = [level.double().requires_grad_() for level in answers]
    terms = criterion(logits, targets)
    gradients = torch.autograd.grad(terms.total, logits)
    levels = break_down(criterion, [level.detach() for level in logits], targets)
    total = terms.total.detach()
    return {
        "terms": {
            "box": rounded(terms.box),
            "objectness": rounded(terms.objectness),
            "classification": rounded(terms.classification),
            "total": rounded(total),
        },
        "levels": [_level_sums(level, gradient) for level, gradient in zip(levels, gradients, strict=True)],
        "places": [
            place
            for number, (level, answer) in enumerate(zip(levels, logits, strict=True))
            for place in _places(number, level, answer.detach(), criterion.anchors, criterion.config.collision)
        ],
        "background": _background(levels, logits, criterion.anchors, targets),
    }


def rounded(value: Tensor | float) -> float:
    """Six significant digits: more than a page can show, and short to write."""
    return float(f"{float(value):.6g}")


def _matched(level: LevelBreakdown) -> Tensor:
    """(1, A, H, W) bool: places that answer for an object."""
    found = level.assignment
    matched = torch.zeros_like(level.objectness, dtype=torch.bool)
    matched[found.image, found.anchor, found.row, found.column] = True
    return matched


def _level_sums(level: LevelBreakdown, gradient: Tensor) -> dict[str, float]:
    """Terms of one level; gradient: (1, A, 5 + K, H, W), of the image's total by the level's logits."""
    parts = {f"gradient_{name}": rounded(gradient[:, :, part].norm()) for name, part in _PARTS}
    return {
        "box": rounded(level.box.sum()),
        "objectness": rounded(level.objectness.sum()),
        "background": rounded(level.objectness[~_matched(level)].sum()),
        "classification": rounded(level.classification.sum()),
        "gradient": rounded(gradient.norm()),
        **parts,
    }


def _places(number: int, level: LevelBreakdown, logits: Tensor, anchors: AnchorSet, collision: str) -> list[list[Any]]:
    """A row a matched place: level, anchor, row, column, target, IoU, objectness target, answers, costs, box.

    Where several objects claim a place, its objectness cost is booked on the one whose IoU is the target there.
    """
    found, stride = level.assignment, anchors.strides[number]
    if not len(found.target):
        return []
    at = logits[found.image, found.anchor, :, found.row, found.column].sigmoid()
    place = (found.image, found.anchor, found.row, found.column)
    costs, goals = level.objectness[place], level.objectness_target[place]
    winners = _winners(level, collision)
    corners = torch.stack([found.column, found.row], dim=1)
    boxes = torch.cat([(level.predicted[:, :2] + corners), level.predicted[:, 2:]], dim=1) * stride
    own_class = at[torch.arange(len(at)), 5 + found.class_index]
    rows = []
    for p in range(len(found.target)):
        wins = p in winners
        rows.append(
            [
                number,
                *(int(tensor[p]) for tensor in (found.anchor, found.row, found.column, found.target)),
                rounded(level.iou[p]),
                rounded(goals[p]),
                rounded(at[p, 4]),
                rounded(own_class[p]),
                rounded(level.box[p]),
                rounded(costs[p]) if wins else 0,
                rounded(level.classification[p]),
                int(wins),
                *(round(side, 1) for side in boxes[p].tolist()),
            ]
        )
    return rows


def _winners(level: LevelBreakdown, collision: str) -> set[int]:
    """Candidates whose IoU is their place's target: the last of each place, or the one with the highest IoU."""
    found = level.assignment
    best: dict[tuple[int, int, int], int] = {}
    for p in range(len(found.target)):
        place = (int(found.anchor[p]), int(found.row[p]), int(found.column[p]))
        holder = best.get(place)
        if collision != "best" or holder is None or level.iou[p] >= level.iou[holder]:
            best[place] = p
    return set(best.values())


def _background(
    levels: list[LevelBreakdown], logits: list[Tensor], anchors: AnchorSet, targets: Targets
) -> list[dict[str, Any]]:
    """The unmatched places with the highest objectness cost of all levels, most expensive first."""
    height, width = (logits[0].shape[axis] * anchors.strides[0] for axis in (3, 4))
    labels_px = cxcywh_to_xyxy(targets.rows[:, 2:].double() * torch.tensor([width, height, width, height]))
    cells = anchors.cells(torch.float64)
    found = []
    for number, (level, answer) in enumerate(zip(levels, logits, strict=True)):
        costs = level.objectness.masked_fill(_matched(level), -1).flatten()
        boxes, others = decode_level(answer.detach(), cells[number], anchors.strides[number])
        top = costs.topk(min(NUM_BACKGROUND, len(costs)))
        _, _, rows, columns = level.objectness.shape
        for cost, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if cost <= 0:
                continue
            box, answers = boxes[0, place], others[0, place].sigmoid()
            near = pairwise_iou_xyxy(cxcywh_to_xyxy(box[None]), labels_px)[0]
            likeliest = int(answers[1:].argmax())
            found.append(
                {
                    "level": number,
                    "anchor": place // (rows * columns),
                    "row": place // columns % rows,
                    "column": place % columns,
                    "cost": rounded(cost),
                    "says": rounded(answers[0]),
                    "class": likeliest,
                    "class_says": rounded(answers[1 + likeliest]),
                    "box": [round(side, 1) for side in box.tolist()],
                    "near": int(near.argmax()) if len(near) else None,
                    "near_iou": rounded(near.max()) if len(near) else 0,
                }
            )
    return sorted(found, key=lambda place: -place["cost"])[:NUM_BACKGROUND]
