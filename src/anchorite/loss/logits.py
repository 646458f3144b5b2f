"""`LevelLogits`, what the criterion reads of a level's logits, and its implementation for a dense tensor.

Legend: B images, A anchors, K classes, H, W grid rows and columns, P candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

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
        # index_select: its backward adds in a fixed order; that of indexing races on several threads.
        return by_cell.index_select(0, index)


def as_level_logits(logits: Tensor | LevelLogits) -> LevelLogits:
    """The logits themselves, or a dense tensor as `DenseLogits`."""
    return DenseLogits(logits) if isinstance(logits, Tensor) else logits
