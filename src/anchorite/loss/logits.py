"""`LevelLogits`, what the criterion reads of a level's logits, and its implementation for a dense tensor.

Legend: B images, A anchors, K classes, H, W grid rows and columns, P candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from anchorite.errors import InputError

Indices = Int64[Tensor, " P"]


@runtime_checkable
class LevelLogits(Protocol):
    """Logits of one level, dense or computed on request."""

    def objectness(self) -> Float[Tensor, "B A H W"]:
        """(B, A, H, W) objectness logits of all anchor cells."""

    def at(self, image: Indices, anchor: Indices, row: Indices, column: Indices) -> Float[Tensor, "P logits"]:
        """(P, 5 + K) logits at the given anchor cells, index tensors (P,) int64."""


@dataclass(frozen=True)
class DenseLogits:
    """`LevelLogits` of a dense tensor (B, A, 5 + K, H, W), a view of the head's convolution."""

    logits: Tensor

    def objectness(self) -> Float[Tensor, "B A H W"]:
        """(B, A, H, W) objectness logits, a view."""
        return self.logits[:, :, 4]

    def at(self, image: Indices, anchor: Indices, row: Indices, column: Indices) -> Float[Tensor, "P logits"]:
        """(P, 5 + K) logits at the given anchor cells."""
        batch, num_anchors, channels, height, width = self.logits.shape
        by_cell = self.logits.permute(0, 1, 3, 4, 2).reshape(batch * num_anchors * height * width, channels)
        index = ((image * num_anchors + anchor) * height + row) * width + column
        if batch == 0:  # padded targets, all of them masked, look up cells of a first image
            by_cell = by_cell.new_zeros((num_anchors * height * width, channels))
        # index_select: its backward adds in a fixed order; that of indexing races on several threads.
        return by_cell.index_select(0, index)


def as_levels(logits: Sequence[Tensor | LevelLogits], num_levels: int) -> list[LevelLogits]:
    """The logits of each level, dense tensors as `DenseLogits`; InputError when there are not `num_levels`."""
    if len(logits) != num_levels:
        raise InputError(f"{len(logits)} levels of logits for {num_levels} levels of anchors")
    return [DenseLogits(level) if isinstance(level, Tensor) else level for level in logits]


def in_loss_precision(logits: Tensor) -> Tensor:
    """As float64 if they are, else as float32."""
    return logits if logits.dtype == torch.float64 else logits.float()
