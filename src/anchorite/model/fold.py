"""Folding batch normalisation into the convolutions before it, for prediction and export."""

from __future__ import annotations

import copy

import torch
from torch import nn

from anchorite.model.blocks import ConvBlock
from anchorite.model.detector import Detector


@torch.no_grad()
def fold_batch_norm(detector: Detector) -> Detector:
    """A copy in evaluation mode, its batch normalisations folded into convolutions with bias.

    Its outputs are those of `detector.eval()` to rounding; `detector` itself stays as it is. The copy cannot be
    trained on as before, since the normalisation is gone.
    """
    folded = copy.deepcopy(detector).eval()
    for block in folded.modules():
        if isinstance(block, ConvBlock):
            _fold(block)
    return folded


def is_folded(detector: Detector) -> bool:
    """Whether the detector came from `fold_batch_norm`."""
    return not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())


def _fold(block: ConvBlock) -> None:
    norm = block.norm
    if not isinstance(norm, nn.BatchNorm2d):
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution = block.convolution
    weight = convolution.weight
    # In float64, so that folding adds one rounding of each weight and no more.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * scale
    folded_weight = weight.double() * scale.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(folded_weight.to(weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    block.norm = nn.Identity()
