"""The network as it is exported: a folded detector with its input conversion and its decoding inside.

Legend: B images, H, W of the input in pixels, N places of all levels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchorite.anchors import decode_level
from anchorite.boxes import cxcywh_to_xyxy
from anchorite.model import Detector, fold_batch_norm


class DecodedNetwork(nn.Module):
    """Images in, boxes and scores of every place out; the convolutions in `dtype`, the decoding in float32.

    takes_bytes: images are uint8 (B, H, W, 3) in 0..255 instead of float32 (B, 3, H, W) in 0..1.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype = torch.float32, takes_bytes: bool = False) -> None:
        super().__init__()
        self.detector = fold_batch_norm(detector).to(dtype=dtype).requires_grad_(False)
        self.dtype = dtype
        self.takes_bytes = takes_bytes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 4), xyxy in pixels of the input, and scores (B, N, K), objectness times class; float32.

        Places are ordered by level, anchor, row and column.
        """
        if self.takes_bytes:
            images = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits = self.detector(images.to(self.dtype))
        boxes, scores = [], []
        # Pixels of the input do not fit half precision: beyond 512 its steps are half a pixel.
        for level, anchors, stride in zip(
            logits, self.detector.anchors.cells().unbind(), self.detector.strides, strict=True
        ):
            boxes_px, others = decode_level(level.to(torch.float32), anchors, stride)
            probabilities = others.sigmoid()
            boxes.append(cxcywh_to_xyxy(boxes_px))
            scores.append(probabilities[..., :1] * probabilities[..., 1:])
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def as_input(images: Tensor, takes_bytes: bool) -> Tensor:
    """uint8 RGB images (B, 3, H, W) as an exported network takes them, contiguous."""
    if takes_bytes:
        return images.permute(0, 2, 3, 1).contiguous()
    return images.to(torch.float32).div_(255).contiguous()
