"""Coordinate frames of boxes and the conversions between them.

Frames are named by their last axis: `cxcywh` centre and sides, `xyxy` corners. All functions are pure, keep dtype and
device, and take any leading shape (..., 4).
"""

from __future__ import annotations

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
