"""The codec between logits and boxes, the only implementation of decoding (docs/objective.md, section 2).

Legend: B images, A anchors, K classes, C = 5 + K channels, H, W grid rows and columns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def decode_boxes(
    box_logits: Float[Tensor, "*batch 4"], anchors_cells: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 4"]:
    """Boxes (..., 4) in cells from logits tx, ty, tw, th (..., 4) and anchors (..., 2) in cells.

    The centre is relative to the cell's corner, -0.5 to 1.5; the sides are 0 to 4 anchors.
    """
    unit = box_logits.sigmoid()
    centres = 2 * unit[..., :2] - 0.5
    sides = (2 * unit[..., 2:]).square() * anchors_cells
    return torch.cat([centres, sides], dim=-1)


def encode_boxes(
    boxes_cells: Float[Tensor, "*batch 4"], anchors_cells: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 4"]:
    """Logits (..., 4) whose decoding is the given boxes; infinite at the ends of the decode range."""
    centres = (boxes_cells[..., :2] + 0.5) / 2
    sides = (boxes_cells[..., 2:] / anchors_cells).sqrt() / 2
    return torch.logit(torch.cat([centres, sides], dim=-1))


def decode_level(
    logits: Float[Tensor, "B A C H W"], anchors_cells: Float[Tensor, "A 2"], stride: int
) -> tuple[Float[Tensor, "B A*H*W 4"], Float[Tensor, "B A*H*W C-4"]]:
    """Boxes (B, A*H*W, 4) as cxcywh in pixels, and the other 1 + K logits (B, A*H*W, 1 + K), of one level.

    logits: (B, A, 5 + K, H, W); anchors_cells: (A, 2). Ordered by anchor, row, column.
    """
    batch, num_anchors, channels, height, width = logits.shape
    by_cell = logits.permute(0, 1, 3, 4, 2)
    boxes_cells = decode_boxes(by_cell[..., :4], anchors_cells.view(num_anchors, 1, 1, 2).to(logits))
    rows, columns = torch.meshgrid(
        torch.arange(height, device=logits.device), torch.arange(width, device=logits.device), indexing="ij"
    )
    corners = torch.stack([columns, rows], dim=-1).to(logits.dtype)
    boxes_px = torch.cat([boxes_cells[..., :2] + corners, boxes_cells[..., 2:]], dim=-1) * stride
    num_cells = num_anchors * height * width
    return boxes_px.reshape(batch, num_cells, 4), by_cell[..., 4:].reshape(batch, num_cells, channels - 4)
