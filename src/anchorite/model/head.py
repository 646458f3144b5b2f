"""The head: one 1 x 1 convolution per level, answered densely or only where it is asked.

Legend: B images, L levels, A anchors per level, K classes, C_l channels, H_l, W_l cells, P matched places.
The convolution's channels are ordered anchor-major: channel = anchor * (5 + K) + logit; logits are
tx, ty, tw, th, objectness, class 0 .. K-1. Source: docs/objective.md, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anchorite.errors import InputError
from anchorite.model.matched import OBJECTNESS, MatchedCellLogits

_OBJECTS_PER_IMAGE = 8
_REFERENCE_SIDE_PX = 640


class Head(nn.Module):
    """One 1 x 1 convolution with bias per level, to A * (5 + K) channels; a child per level, "p3" being stride 8."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, num_anchors: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.strides = tuple(strides)
        self.predictors = nn.ModuleDict()
        for channels, stride in zip(in_channels, strides, strict=True):
            name = f"p{stride.bit_length() - 1}"
            self.predictors[name] = nn.Conv2d(channels, num_anchors * (5 + num_classes), kernel_size=1)
        self.start_biases()

    def dense(self, features: Sequence[Tensor]) -> list[Tensor]:
        """All logits of every level, each (B, A, 5 + K, H_l, W_l): a view of the convolution's output, not a copy."""
        return [
            predictor(feature).unflatten(1, (self.num_anchors, 5 + self.num_classes))
            for feature, predictor in zip(features, self.predictors.values(), strict=True)
        ]

    def matched(self, features: Sequence[Tensor]) -> list[MatchedCellLogits]:
        """Every level's logits, to be computed where they are asked for; for training."""
        return [
            MatchedCellLogits(feature, weight, bias, self.num_anchors)
            for feature, (weight, bias) in zip(features, self._parameters_by_level(), strict=True)
        ]

    @torch.no_grad()
    def start_biases(self, class_frequencies: Sequence[float] | None = None) -> None:
        """Draw all biases anew, with objectness and classes starting near the rates to be expected.

        Objectness expects 8 objects in a 640 px image. Classes expect 0.6 / K each, or their share where
        `class_frequencies` gives K counts or shares; a class never seen counts as the rarest seen one.
        Raises InputError when there are not K of them, one is negative or not finite, or none is positive.
        """
        class_shift = _class_shift(self.num_classes, class_frequencies)
        for (weight, bias), stride in zip(self._parameters_by_level(), self.strides, strict=True):
            bound = weight.shape[1] ** -0.5
            by_anchor = bias.uniform_(-bound, bound).view(self.num_anchors, -1)
            by_anchor[:, OBJECTNESS] += math.log(_OBJECTS_PER_IMAGE / (_REFERENCE_SIDE_PX / stride) ** 2)
            by_anchor[:, OBJECTNESS + 1 :] += class_shift.to(by_anchor)

    def _parameters_by_level(self) -> list[tuple[Tensor, Tensor]]:
        pairs: list[tuple[Tensor, Tensor]] = []
        for predictor in self.predictors.values():
            assert isinstance(predictor, nn.Conv2d)
            assert predictor.bias is not None
            pairs.append((predictor.weight, predictor.bias))
        return pairs


def _class_shift(num_classes: int, class_frequencies: Sequence[float] | None) -> Tensor:
    """What is added to the class biases, (K,) float64."""
    if class_frequencies is None:
        return torch.full((num_classes,), math.log(0.6 / (num_classes - 0.99999)), dtype=torch.float64)
    frequencies = torch.as_tensor(class_frequencies, dtype=torch.float64)
    usable = frequencies.shape == (num_classes,) and bool(frequencies.isfinite().all() and (frequencies >= 0).all())
    if not usable or not bool(frequencies.any()):
        raise InputError(
            f"class frequencies need {num_classes} finite numbers, none negative, not all 0; "
            f"got {list(class_frequencies)}"
        )
    rarest = frequencies[frequencies > 0].min()
    return (frequencies.clamp(min=rarest) / frequencies.sum()).log()
