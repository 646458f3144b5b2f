"""`Detector`: backbone, neck and head of one size.

Legend: B images, L levels, A anchors per level, K classes, C_l channels, H, W of the network input, H_l, W_l cells.
"""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model.backbone import Backbone
from anchorite.model.backbone_config import BackboneConfig
from anchorite.model.head import Head
from anchorite.model.hf_backbone import HFBackbone
from anchorite.model.neck import Neck
from anchorite.model.table import plan


class Detector(nn.Module):
    """A detector of one size ("n" to "x", "n6" to "x6") for K classes.

    borrowed: what backbone of transformers it has in the place of its own; neck and head are those of the size.
    Raises InputError when there is no such size, K < 1, or the anchors' strides are not those of the size.
    """

    def __init__(self, size: str, num_classes: int, anchors: AnchorSet, borrowed: BackboneConfig | None = None) -> None:
        super().__init__()
        parts = plan(size)
        if num_classes < 1:
            raise InputError(f"a detector needs at least 1 class, got {num_classes}")
        if anchors.strides != parts.strides:
            raise InputError(
                f"size {size!r} predicts at strides {parts.strides}, the anchors are for {anchors.strides}; "
                f"give anchors of {len(parts.strides)} levels or another size"
            )
        self.size = size
        self.num_classes = num_classes
        self.anchors = anchors
        self.strides = anchors.strides
        self.frozen: tuple[str, ...] = ()  # names of parts that `train` leaves in evaluation mode
        self.borrowed = borrowed
        self.backbone = Backbone(parts) if borrowed is None else HFBackbone(parts, borrowed)
        self.neck = Neck(parts)
        self.head = Head(parts.output_widths, num_classes, anchors.num_anchors, anchors.strides)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but the parts named in `frozen` stay in evaluation mode: their statistics keep still."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def features(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """L maps (B, C_l, H_l, W_l), fine to coarse, of floating point images (B, 3, H, W) in 0..1.

        Fastest with images and weights in channels_last memory. Raises InputError when H or W is not a positive
        multiple of the coarsest stride.
        """
        height, width = images.shape[-2:]
        coarsest = self.strides[-1]
        if height % coarsest or width % coarsest or not height or not width:
            raise InputError(
                f"images of {height} x {width} pixels (height x width) do not fit a network of stride {coarsest}; "
                f"letterbox them to multiples of {coarsest}, such as "
                f"{_next_multiple(height, coarsest)} x {_next_multiple(width, coarsest)}"
            )
        return self.neck(self.backbone(images))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B A 5+{self.num_classes} _ _"]]:
        """All logits of every level, each (B, A, 5 + K, H_l, W_l), of images as `features` takes them."""
        return self.head.dense(self.features(images))


def to_channels_last(detector: nn.Module) -> None:
    """Lay convolution weights out as channels_last, in place, the order in which CPU and GPU kernels are fastest."""
    for parameter in detector.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _next_multiple(side: int, step: int) -> int:
    return max(-(-side // step), 1) * step
