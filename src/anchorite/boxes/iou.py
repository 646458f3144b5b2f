"""The IoU family for matched pairs of boxes, differentiable and finite for degenerate sides.

Source: docs/objective.md, section 4 (IoU; GIoU arXiv:1902.09630; DIoU and CIoU arXiv:1911.08287).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anchorite.boxes.frames import cxcywh_to_xyxy

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
        # 1 - IoU is negative by rounding where boxes are all but equal; eps must not be used up by that.
        alpha = shape / (shape + (1 - iou).clamp(min=0) + eps)
    return diou - shape * alpha


def _area(sides: Tensor) -> Tensor:
    # Not Tensor.prod: its backward looks for zeros on the host, which would stall a GPU.
    return sides[..., 0] * sides[..., 1]


def _aspect_angle(boxes_cxcywh: Tensor) -> Tensor:
    """atan(w / h) (...) for sides however small, with a finite gradient where they underflow.

    The derivative h / (w^2 + h^2) squares the sides; measured by the longer one, no square that counts can underflow.
    Sides at the very end of the number range are held in the gradient alone, which could otherwise overflow.
    """
    sides = boxes_cxcywh[..., 2:]
    held = sides.clamp(min=torch.finfo(sides.dtype).tiny * 2**30)
    unit = held / held.detach().amax(dim=-1, keepdim=True)
    slope = torch.atan2(unit[..., 0], unit[..., 1])
    value = torch.atan2(sides[..., 0], sides[..., 1]).detach()
    return value + (slope - slope.detach())
