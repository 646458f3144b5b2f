"""Overlap of every box with every other.

Legend: N boxes, M boxes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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
