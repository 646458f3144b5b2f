"""Coordinate frames of boxes and the IoU family: pairs of boxes, differentiable, and every box with every other.

Frames are named by their last axis: `cxcywh` centre and sides, `xyxy` corners. All functions are pure and keep dtype
and device. Source: docs/objective.md, section 4 (IoU; GIoU arXiv:1902.09630; DIoU and CIoU arXiv:1911.08287).

Legend: N boxes, M boxes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Corners (..., 4) of boxes given by centre and sides (..., 4), in the same unit."""
    centres, sides = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Centre and sides (..., 4) of boxes given by corners (..., 4), in the same unit."""
    lows, highs = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(lows + highs) / 2, highs - lows], dim=-1)


def clip_xyxy(boxes_xyxy: Float[Tensor, "*batch 4"], width: float, height: float) -> Float[Tensor, "*batch 4"]:
    """Boxes (..., 4) cut to the rectangle 0..width, 0..height."""
    limits = boxes_xyxy.new_tensor([width, height, width, height])
    return boxes_xyxy.clamp(min=0).minimum(limits)


IouKind = Literal["iou", "giou", "diou", "ciou"]


def paired_iou(
    boxes_a_cxcywh: Float[Tensor, "*batch 4"],
    boxes_b_cxcywh: Float[Tensor, "*batch 4"],
    kind: IouKind = "ciou",
    eps: float = 1e-7,
) -> Float[Tensor, "*batch"]:
    """IoU, GIoU, DIoU or CIoU (...) of the boxes (..., 4) at equal positions, in any common unit.

    Gradients reach both arguments. The weight alpha of CIoU's shape term carries no gradient.
    """
    a_xyxy, b_xyxy = cxcywh_to_xyxy(boxes_a_cxcywh), cxcywh_to_xyxy(boxes_b_cxcywh)
    overlap = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    intersection = _area(overlap.clamp(min=0))
    union = _area(boxes_a_cxcywh[..., 2:]) + _area(boxes_b_cxcywh[..., 2:]) - intersection + eps
    iou = intersection / union
    if kind == "iou":
        return iou
    enclosing = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    if kind == "giou":
        hull = _area(enclosing) + eps
        return iou - (hull - union) / hull
    diagonal = enclosing.square().sum(dim=-1) + eps
    distance = (boxes_a_cxcywh[..., :2] - boxes_b_cxcywh[..., :2]).square().sum(dim=-1)
    diou = iou - distance / diagonal
    if kind == "diou":
        return diou
    shape = (4 / math.pi**2) * (_aspect_angle(boxes_b_cxcywh) - _aspect_angle(boxes_a_cxcywh)).square()
    with torch.no_grad():
        # Rounding can make 1 - IoU negative where boxes are almost equal, which would cancel eps.
        alpha = shape / (shape + (1 - iou).clamp(min=0) + eps)
    return diou - shape * alpha


def _area(sides: Tensor) -> Tensor:
    # Not Tensor.prod: its backward looks for zeros on the host, which would stall a GPU.
    return sides[..., 0] * sides[..., 1]


def _aspect_angle(boxes_cxcywh: Tensor) -> Tensor:
    """atan(w / h) (...) for sides however small, with a finite gradient where they underflow.

    The derivative h / (w^2 + h^2) squares the sides; divided by the longer one first, no relevant square underflows.
    Sides near the smallest number are clamped in the gradient alone, which could otherwise overflow.
    """
    sides = boxes_cxcywh[..., 2:]
    clamped = sides.clamp(min=torch.finfo(sides.dtype).tiny * 2**30)
    unit = clamped / clamped.detach().amax(dim=-1, keepdim=True)
    slope = torch.atan2(unit[..., 0], unit[..., 1])
    value = torch.atan2(sides[..., 0], sides[..., 1]).detach()
    return value + (slope - slope.detach())


def pairwise_overlap_xyxy(
    boxes_xyxy: Float[Tensor, "*batch N 4"], others_xyxy: Float[Tensor, "*batch M 4"]
) -> tuple[Float[Tensor, "*batch N M"], Float[Tensor, "*batch N M"]]:
    """Areas of intersection and of union, each (..., N, M), of boxes (..., N, 4) with boxes (..., M, 4).

    Inverted boxes have no area.
    """
    overlap = _overlap_along(boxes_xyxy, others_xyxy, axis=0).mul_(_overlap_along(boxes_xyxy, others_xyxy, axis=1))
    union = (_areas(boxes_xyxy)[..., None] + _areas(others_xyxy)[..., None, :]).sub_(overlap)
    return overlap, union


def pairwise_iou_xyxy(boxes_xyxy: Float[Tensor, "N 4"], others_xyxy: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union (N, M) of boxes (N, 4) with boxes (M, 4); 0 where both boxes are empty."""
    overlap, union = pairwise_overlap_xyxy(boxes_xyxy, others_xyxy)
    return torch.where(union > 0, overlap / union, 0.0)


def _overlap_along(boxes_xyxy: Tensor, others_xyxy: Tensor, axis: int) -> Tensor:
    # Contiguous columns: across strided ones, minimum and maximum are several times slower.
    low, high = (boxes_xyxy[..., edge, None].contiguous() for edge in (axis, axis + 2))
    other_low, other_high = (others_xyxy[..., None, :, edge].contiguous() for edge in (axis, axis + 2))
    return torch.minimum(high, other_high).sub_(torch.maximum(low, other_low)).clamp_(min=0)


def _areas(boxes_xyxy: Tensor) -> Tensor:
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]
