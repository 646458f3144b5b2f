"""The head: one 1 x 1 convolution per level, computed densely or only at the anchor cells that the loss asks for.

Legend: B images, L levels, A anchors per level, K classes, C_l or C channels, H_l, W_l or H, W cells of a level,
N = B * H * W cells, P matched anchor cells. The convolution's channels are ordered anchor-major: channel =
anchor * (5 + K) + logit; logits are tx, ty, tw, th, objectness, class 0 .. K-1. Source: docs/objective.md, section 2.

Autograd alone would make three full maps for the gradient of a level's feature: one for the objectness, one of zeros
with the matched cells filled in, and their sum. Here the second stays a handful of rows (a sparse gradient) and is
added into the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from anchorite.errors import InputError

OBJECTNESS = 4
"""Index of the objectness among the logits of an anchor cell; the box lies before it, the classes behind."""

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
        class_shift = torch.full((self.num_classes,), math.log(0.6 / (self.num_classes - 0.99999)), dtype=torch.float64)
        if class_frequencies is not None:
            counts = torch.as_tensor(class_frequencies, dtype=torch.float64)
            usable = counts.shape == class_shift.shape and bool((counts.isfinite() & (counts >= 0)).all())
            if not usable or not bool(counts.any()):
                raise InputError(
                    f"class frequencies need {self.num_classes} finite numbers, none negative, not all 0; "
                    f"got {list(class_frequencies)}"
                )
            class_shift = (counts.clamp(min=counts[counts > 0].min()) / counts.sum()).log()
        for (weight, bias), stride in zip(self._parameters_by_level(), self.strides, strict=True):
            bound = weight.shape[1] ** -0.5
            by_anchor = bias.uniform_(-bound, bound).view(self.num_anchors, -1)
            by_anchor[:, OBJECTNESS] += math.log(_OBJECTS_PER_IMAGE / (_REFERENCE_SIDE_PX / stride) ** 2)
            by_anchor[:, OBJECTNESS + 1 :] += class_shift.to(by_anchor)

    def _parameters_by_level(self) -> Iterator[tuple[Tensor, Tensor]]:
        parameters = list(self.predictors.parameters())  # weight and bias of each
        return zip(parameters[::2], parameters[1::2], strict=True)


@dataclass(frozen=True)
class MatchedCellLogits:
    """One level's logits, computed only where asked: objectness everywhere, all of them at matched anchor cells.

    feature: (B, C, H, W), best in channels_last memory, where its rows are gathered without a copy of the map;
    weight: (A * (5 + K), C, 1, 1); bias: (A * (5 + K),); num_anchors: A.
    Neither the map of A * (5 + K) channels nor its gradient ever exists. Values and gradients are those of the dense
    logits to rounding. Under autocast both have autocast's type (bfloat16, say), as the dense logits do.
    On the CPU the gradients are written by hand (no second derivatives); elsewhere, and while a compiler traces, the
    same is computed by operators whose shapes do not depend on the data.
    """

    feature: Tensor
    weight: Tensor
    bias: Tensor
    num_anchors: int

    def objectness(self) -> Tensor:
        """(B, A, H, W) objectness logits of every anchor cell."""
        if self._by_hand:
            return self._objectness_and_cells[0]
        weight = self.weight.unflatten(0, (self.num_anchors, -1))[:, OBJECTNESS]
        bias = self.bias.unflatten(0, (self.num_anchors, -1))[:, OBJECTNESS]
        return functional.conv2d(self.feature, weight, bias)

    def at(self, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """(P, 5 + K) logits at the anchor cells given by four (P,) int64 tensors, each in its range (not checked)."""
        channels, height, width = self.feature.shape[1:]
        cell = (image * height + row) * width + column
        if self._by_hand:
            _, weight, bias = self._in_one_type
            return _MatchedCells.apply(self._objectness_and_cells[1], weight, bias, cell, anchor)
        cells = self.feature.permute(0, 2, 3, 1).reshape(-1, channels)
        if len(cells) == 0:  # an empty part of a batch: padded targets, all of them masked, look up the first cell
            cells = cells.new_zeros((1, channels))
        # An embedding look-up, because several candidates share a cell and its backward, run eagerly, adds them up in a
        # fixed order on every device; those of index_select (on CUDA) and of plain indexing (on the CPU, too) do not.
        # Compiled by Inductor it becomes atomic additions, unless `torch.use_deterministic_algorithms` forbids them.
        found = functional.embedding(cell, cells)
        # All A anchors of each cell in one product, then the one asked for: it needs neither a sort nor a shape that
        # depends on the data.
        of_all_anchors = functional.linear(found, self.weight.flatten(1), self.bias)
        rows = torch.arange(anchor.shape[0], device=anchor.device) * self.num_anchors + anchor
        return of_all_anchors.view(-1, self.bias.shape[0] // self.num_anchors).index_select(0, rows)

    @property
    def _by_hand(self) -> bool:
        return self.feature.device.type == "cpu" and not torch.compiler.is_compiling()

    @cached_property
    def _in_one_type(self) -> tuple[Tensor, Tensor, Tensor]:
        """The feature, weight (A, 5 + K, C) and bias (A, 5 + K), in the type that autocast would compute in."""
        device, dtype = self.feature.device.type, self.feature.dtype
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        weight = self.weight.flatten(1).unflatten(0, (self.num_anchors, -1))
        bias = self.bias.unflatten(0, (self.num_anchors, -1))
        return self.feature.to(dtype), weight.to(dtype), bias.to(dtype)

    @cached_property
    def _objectness_and_cells(self) -> tuple[Tensor, Tensor]:
        feature, weight, bias = self._in_one_type
        result: tuple[Tensor, Tensor] = _ObjectnessAndCells.apply(feature, weight[:, OBJECTNESS], bias[:, OBJECTNESS])
        return result


class _ObjectnessAndCells(torch.autograd.Function):
    """Objectness everywhere, and the level's cells for `_MatchedCells` to pick from."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A, H, W) objectness and (N, C) cells, of feature (B, C, H, W), weight (A, C), bias (A,)."""
        ctx.save_for_backward(feature, weight)
        ctx.set_materialize_grads(False)
        cells = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])
        return functional.conv2d(feature, weight[:, :, None, None], bias), cells

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_objectness: Tensor | None, of_cells: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of feature, weight and bias; of_cells is sparse, the rows of the cells that were picked."""
        feature, weight = ctx.saved_tensors
        batch, channels, height, width = feature.shape
        of_weight, of_bias = None, None
        if of_objectness is None:
            of_feature = feature.new_zeros((batch, height, width, channels))
        else:
            # Products in place of the convolution's own backward, which takes two to six times as long (oneDNN, CPU).
            by_cell = of_objectness.permute(0, 2, 3, 1).reshape(batch, height * width, weight.shape[0])
            of_feature = (by_cell.flatten(0, 1) @ weight).view(batch, height, width, channels)
            of_weight = (by_cell.mT @ feature.permute(0, 2, 3, 1).reshape(batch, height * width, channels)).sum(dim=0)
            of_bias = by_cell.sum(dim=(0, 1))
        if of_cells is not None:
            of_feature.view(-1, channels).index_add_(0, of_cells._indices()[0], of_cells._values())
        return of_feature.permute(0, 3, 1, 2), of_weight, of_bias


class _MatchedCells(torch.autograd.Function):
    """All logits of single anchor cells, those of one anchor in one product."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, weight: Tensor, bias: Tensor, cell: Tensor, anchor: Tensor) -> Tensor:
        """(P, 5 + K) logits of cells (N, C), weight (A, 5 + K, C), bias (A, 5 + K), at cell (P,) and anchor (P,)."""
        anchor_in_order, order = anchor.sort(stable=True)
        ends = torch.searchsorted(anchor_in_order, torch.arange(weight.shape[0]), right=True).tolist()
        by_anchor = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        cell = cell[order]
        found = cells.index_select(0, cell)
        logits = cells.new_empty((cell.shape[0], weight.shape[1]))
        for which, rows in enumerate(by_anchor):
            torch.addmm(bias[which], found[rows], weight[which].t(), out=logits[rows])
        # The cells themselves, which are alive anyway, not the rows found: with a hundred objects an image those weigh
        # as much as a level's feature, and to pick them again takes little.
        ctx.save_for_backward(cells, weight, cell, order)
        ctx.by_anchor = by_anchor
        return logits.index_select(0, order.argsort())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logits: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of cells (sparse), weight and bias."""
        cells, weight, cell, order = ctx.saved_tensors
        found, of_weight = cells.index_select(0, cell), torch.empty_like(weight)
        of_bias = weight.new_empty(weight.shape[:2])
        for which, rows in enumerate(ctx.by_anchor):
            of_anchor = of_logits.index_select(0, order[rows])
            torch.mm(of_anchor.t(), found[rows], out=of_weight[which])
            torch.sum(of_anchor, dim=0, out=of_bias[which])
            torch.mm(of_anchor, weight[which], out=found[rows])  # in place of what was found, not needed any more
        of_cells = torch.sparse_coo_tensor(cell[None], found, cells.shape, check_invariants=False)
        return of_cells, of_weight, of_bias, None, None
