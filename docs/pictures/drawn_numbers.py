"""The numbers behind the pictures of docs/objective.md, each computed by the package itself.

`python docs/pictures/make.py` draws them and writes them to numbers.json.
tests/docs/test_pictures.py computes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import SCENE_SIDE, counted, scene_targets, shares_of_places
from precision_numbers import precision_numbers
from torch import Tensor

from anchorite.anchors import AnchorSet, decode_boxes
from anchorite.boxes import LabelCoverage, Targets
from anchorite.loss import Assignment, DetectionLoss, LossConfig, assign, break_down
from anchorite.loss.assign import ignored_cells
from anchorite.loss.terms import bce_with_focus, class_targets, objectness_targets, smoothed_targets, winning_cells

# The cells picture: a grid of its own, and objects (centre, sides) in cells of it, each with an anchor that matches.
GRID = 4
OBJECTS = {
    "upper left of its cell": ((2.3, 1.25), (1.6, 1.2)),
    "lower right of its cell": ((1.7, 2.8), (1.6, 1.2)),
    "at the border": ((0.4, 2.2), (0.7, 1.2)),
}
# The picture of what labels do not know: cx, cy, w, h in cells of a grid with one anchor of 2.5 x 2.5 cells.
UNKNOWN_GRID, OBJECT_OF_HALF = 8, (5.3, 2.7, 2.0, 2.4)
REGIONS = {"crowd": (2.8, 5.0, 5.0, 5.0), "difficult": (6.7, 6.6, 1.2, 1.4)}
SMOOTHINGS, GRS = (0.0, 0.1, 0.2), (0.0, 0.5, 1.0)


def anchor_numbers() -> dict[str, Any]:
    """The default table, in pixels and in cells of each level."""
    anchors = AnchorSet.coco_p5()
    return {"strides": list(anchors.strides), "px": anchors.to_rows(), "cells": anchors.cells(torch.float64).tolist()}


def decode_numbers() -> dict[str, Any]:
    """What a box logit becomes: centre in cells, side in anchors."""
    t = torch.linspace(-6, 6, 49, dtype=torch.float64)
    boxes = decode_boxes(t[:, None].expand(-1, 4), torch.ones(1, 2, dtype=torch.float64))
    ends = decode_boxes(torch.tensor([[-1e4] * 4, [1e4] * 4], dtype=torch.float64), torch.ones(1, 2).double())
    return {
        "logit": t.tolist(),
        "centre": boxes[:, 0].tolist(),
        "side": boxes[:, 2].tolist(),
        "centre_range": ends[:, 0].tolist(),
        "side_range": ends[:, 2].tolist(),
    }


def _answering(centre: tuple[float, float], sides: tuple[float, float] = (1.0, 1.0)) -> Assignment:
    anchors = AnchorSet.from_rows([[side * 8 for side in sides]], [8])
    rows = torch.tensor([[0, 0, *(value / GRID for value in (*centre, *sides))]], dtype=torch.float64)
    return assign(Targets.from_rows(rows), anchors, [(GRID, GRID)])[0]


def cell_numbers() -> dict[str, Any]:
    """Which cells answer for three centres, and how many do for every centre of a small grid."""
    examples = {}
    for name, (centre, sides) in OBJECTS.items():
        found = _answering(centre, sides)
        cells = torch.stack([found.column, found.row], dim=1).tolist()
        examples[name] = {"centre": list(centre), "sides": list(sides), "cells": cells}
    steps = [(index + 0.5) / 10 for index in range(10 * GRID)]
    counts = [[len(_answering((x, y)).row) for x in steps] for y in steps]
    return {"grid": GRID, "examples": examples, "counts": counts}


def three_cells_numbers() -> dict[str, Any]:
    """Matched places per object with and without the neighbours, and their share of all places, on drawn scenes."""
    targets, images = scene_targets()
    return {
        "images": images,
        "objects": len(targets),
        "side": SCENE_SIDE,
        **counted(targets),
        "shares": shares_of_places(targets, images),
    }


def balance_numbers() -> dict[str, Any]:
    """Objectness loss of each level for a detector that says the same everywhere: the start of training."""
    targets, images = scene_targets()
    anchors, num_classes = AnchorSet.coco_p5(), 5
    criterion = DetectionLoss(anchors, num_classes, LossConfig())
    logits = []
    for stride in anchors.strides:
        level = torch.zeros(images, 3, 5 + num_classes, SCENE_SIDE // stride, SCENE_SIDE // stride)
        level[:, :, 4] = torch.log(torch.tensor(8 / (640 / stride) ** 2))
        logits.append(level)
    weighted = [float(level.objectness.double().sum()) for level in break_down(criterion, logits, targets)]
    balance = criterion.balance.tolist()
    return {
        "balance": balance,
        "places": [3 * (SCENE_SIDE // stride) ** 2 for stride in anchors.strides],
        "plain": [value / weight for value, weight in zip(weighted, balance, strict=True)],
        "weighted": weighted,
    }


def gr_numbers() -> dict[str, Any]:
    """Objectness target of a matched place against the IoU of its predicted box, for three values of gr."""
    iou = torch.linspace(-0.5, 1, 31)
    places = len(iou)
    index, zero = torch.arange(places), torch.zeros(places, dtype=torch.int64)
    found = Assignment(
        zero, zero, zero, index, index, zero, torch.zeros(places, 4).double(), torch.ones(places, dtype=torch.bool)
    )
    cells = winning_cells(found, iou, (1, 1, places, 1), "last")
    targets = {str(gr): objectness_targets(cells, iou, places, gr).tolist() for gr in GRS}
    goals = (0.3, 0.7, 1.0)
    answer = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    losses = {str(goal): _bce(torch.logit(answer), torch.full_like(answer, goal)).tolist() for goal in goals}
    return {"iou": iou.tolist(), "targets": targets, "answer": answer.tolist(), "losses": losses}


def smoothing_numbers() -> dict[str, Any]:
    """Class targets of an object of class 1 of 4, and the loss of its own class against the logit."""
    logit = torch.linspace(-2, 8, 51, dtype=torch.float64)
    targets, losses, lowest = {}, {}, {}
    for smoothing in SMOOTHINGS:
        key = str(smoothing)
        targets[key] = class_targets(torch.tensor([1]), 4, smoothing, torch.float64)[0].tolist()
        positive, _ = smoothed_targets(smoothing)
        losses[key] = _bce(logit, torch.full_like(logit, positive)).tolist()
        if smoothing > 0:
            lowest[key] = float(torch.logit(torch.tensor(positive, dtype=torch.float64)))
    return {"targets": targets, "logit": logit.tolist(), "losses": losses, "lowest": lowest}


def unknown_numbers() -> dict[str, Any]:
    """Which cells of a small grid two regions ignore, and by which rule; what every cell counts there beside an object
    of weight .6, in a mosaic of two tiles, in the right one of which labels may be missing; and what a cell costs."""
    anchors = AnchorSet.from_rows([[20, 20]], (8,))
    rows, side = [[0, 0, *(value / UNKNOWN_GRID for value in OBJECT_OF_HALF)]], UNKNOWN_GRID
    regions = torch.tensor([[0, *(value / side for value in box)] for box in REGIONS.values()], dtype=torch.float64)
    shape, cells = (1, side, side, 1), anchors.cells(torch.float64)[0]
    as_objects = torch.cat([regions[:, :1], torch.zeros(len(regions), 1), regions[:, 1:]], dim=1)
    by_shape = assign(Targets.from_rows(as_objects), anchors, [(side, side)])[0]
    by_half = ignored_cells(regions, cells, shape, ratio_limit=1.0)  # which no shape passes
    targets = Targets.from_rows(torch.tensor(rows, dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64))
    coverage = LabelCoverage(regions, None, torch.tensor([[[1, 0.5]]], dtype=torch.float64))
    config = LossConfig(box_gain=1, objectness_gain=1, class_gain=1)
    logits = [torch.zeros(1, 1, 6, side, side, dtype=torch.float64)]
    (level,) = break_down(DetectionLoss(anchors, 1, config), logits, targets, coverage)
    answer = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    return {
        "grid": side,
        "anchor": cells[0].tolist(),
        "object": list(OBJECT_OF_HALF),
        "regions": {name: list(box) for name, box in REGIONS.items()},
        "by_shape": torch.stack([by_shape.column, by_shape.row], dim=1).tolist(),
        "by_half": by_half[0, :, :, 0].nonzero().flip(1).tolist(),
        "candidates": torch.stack([level.assignment.column, level.assignment.row], dim=1).tolist(),
        "weights": level.objectness_weight[0, 0].tolist(),
        "answer": answer.tolist(),
        "losses": {str(u): (u * _bce(torch.logit(answer), torch.zeros_like(answer))).tolist() for u in (1.0, 0.5, 0.0)},
    }


def _bce(logits: Tensor, targets: Tensor) -> Tensor:
    return bce_with_focus(logits, targets, pos_weight=1, focal_gamma=0)


PICTURES: dict[str, Callable[[], dict[str, Any]]] = {
    "anchors": anchor_numbers,
    "decode": decode_numbers,
    "cells": cell_numbers,
    "three-cells": three_cells_numbers,
    "balance": balance_numbers,
    "gr": gr_numbers,
    "smoothing": smoothing_numbers,
    "unknown": unknown_numbers,
    "precision": precision_numbers,
}


def rounded(value: Any) -> Any:
    """The same with every float to six digits: the numbers as numbers.json has them."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
