"""Greedy non-maximum suppression, exact and deterministic, in plain tensor operations.

The rule: go through the boxes from the best score to the worst (equal scores: lower index first) and keep a box unless
it overlaps one already kept, of the same class, by more than the limit. Whether a box stays depends only on boxes in
front of it, so the list is worked off in blocks: strike out what the kept ones suppress, settle the block among itself,
keep its survivors; stop as soon as enough are kept. A block costs two matrices of overlaps, not one step per kept box.

Classes are compared as numbers. Shifting the boxes of each class far apart would save that, but costs float32
coordinates the digits that decide close calls. Overlaps are float64 for the same reason: products of float32 sides
are exact there, so CPU and CUDA decide alike.

Legend: N boxes, M boxes of a block.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from anchorite.boxes.pairwise import pairwise_overlap_xyxy

# Boxes of a block: on the CPU arithmetic costs, on an accelerator each round trip does.
_BLOCK_CPU = 128
_BLOCK_ACCELERATOR = 2048


def nms(
    boxes_xyxy: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    class_ids: Int[Tensor, " N"] | None,
    iou_limit: float,
    max_detections: int,
) -> Int64[Tensor, " kept"]:
    """Indices (int64) of the boxes to keep, best first, at most `max_detections`.

    boxes_xyxy: (N, 4) in any unit; scores: (N,); class_ids: (N,), boxes of different classes never suppress each other,
    or None for one pool. A box goes when its IoU with a kept one is above `iou_limit` (equal stays).
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    boxes_xyxy = boxes_xyxy.double()
    kept = order[:0]
    for block in order.split(_BLOCK_CPU if scores.device.type == "cpu" else _BLOCK_ACCELERATOR):
        if kept.numel() >= max_detections:
            break
        free = block[~_suppresses(boxes_xyxy, class_ids, kept, block, iou_limit).any(dim=0)]
        survivors = free[_settle(_suppresses(boxes_xyxy, class_ids, free, free, iou_limit))]
        kept = torch.cat([kept, survivors])
    return kept[:max_detections]


def _suppresses(boxes_xyxy: Tensor, class_ids: Tensor | None, over: Tensor, under: Tensor, iou_limit: float) -> Tensor:
    """Whether each box of the indices `over` (N,) overlaps each of `under` (M,) too much: (N, M) bool."""
    overlap, union = pairwise_overlap_xyxy(boxes_xyxy[over], boxes_xyxy[under])
    too_much = overlap > union.mul_(iou_limit)
    if class_ids is None:
        return too_much
    return too_much & (class_ids[over][:, None] == class_ids[under])


def _settle(suppresses: Tensor) -> Tensor:
    """Which boxes (M,) survive, given whom each would suppress (M, M), in order of score.

    Repeats "a box survives if no survivor in front suppresses it", starting from all. Box 1 is right at once, box i
    at the latest in round i, so the fixed point is the greedy answer; real images take about as many rounds as their
    longest chain of overlaps, a handful.
    """
    suppresses = suppresses.triu(diagonal=1)
    survives = ~suppresses.any(dim=0)
    survives_before = torch.ones_like(survives)
    while not torch.equal(survives, survives_before):
        survives_before = survives
        survives = ~(suppresses & survives[:, None]).any(dim=0)
    return survives
