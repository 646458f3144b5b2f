"""The terms of the objective as pure functions, one function per formula (docs/objective.md, section 4).

Legend: B images, A anchors, K classes, H, W grid rows and columns, P candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits

from anchorite.errors import InputError
from anchorite.loss.assign import Assignment

_ELEMENTS_AT_A_TIME = 2**16


def bce_with_focus(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], pos_weight: float, focal_gamma: float
) -> Float[Tensor, "*shape"]:
    """Binary cross-entropy of each element, times the focal factor if gamma > 0; targets may be soft.

    The factor is (t*0.25 + (1-t)*0.75) * (1 - p_t)^gamma, p_t = t*p + (1-t)*(1-p) (focal loss: arXiv:1708.02002).
    """
    weight = None if pos_weight == 1 else logits.new_full((), pos_weight)
    loss = binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")
    if focal_gamma == 0:
        return loss
    p = logits.sigmoid()
    # 1 - p_t, written without the cancellation of 1 - (t*p + (1-t)*(1-p)): never negative, exact near 0.
    distance = targets * (1 - p) + (1 - targets) * p
    balance = targets * 0.25 + (1 - targets) * 0.75
    return loss * balance * _power(distance, focal_gamma)


def bce_sum(
    logits: Float[Tensor, "*shape"],
    targets: Float[Tensor, "*shape"],
    weights: Tensor | float,
    pos_weight: float = 1,
    focal_gamma: float = 0,
) -> Float[Tensor, ""]:
    """Sum of weights * `bce_with_focus`; weights, a number or a tensor as long as the logits, get no gradient.

    Without options the gradient is one pass over the logits and saves only logits and targets.
    """
    if pos_weight == 1 and focal_gamma == 0 and not torch.compiler.is_compiling():
        total: Tensor = _BceSum.apply(logits, targets, weights)
        return total
    return (bce_with_focus(logits, targets, pos_weight, focal_gamma) * weights).sum()


def _parts(logits: Tensor) -> list[slice]:
    """On a CPU slices of the first dimension, each of about `_ELEMENTS_AT_A_TIME` elements; one slice if it is empty.

    Elsewhere one slice of all: there is no such cache, and every slice would be four more kernels.
    """
    if logits.device.type != "cpu":
        return [slice(None)]
    rows = max(1, _ELEMENTS_AT_A_TIME * logits.shape[0] // max(1, logits.numel()))
    return [slice(start, start + rows) for start in range(0, max(1, logits.shape[0]), rows)]


class _BceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        weighted = isinstance(weights, Tensor)
        ctx.save_for_backward(logits, targets, *([weights] if weighted else []))
        ctx.weight = None if weighted else weights
        # A part at a time: intermediate results would take several times the memory of the logits; parts fit the cache.
        sums = []
        for part in _parts(logits):
            loss = binary_cross_entropy_with_logits(logits[part], targets[part], reduction="none")
            sums.append(loss.mul_(weights[part] if isinstance(weights, Tensor) else weights).sum())
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, *weights = ctx.saved_tensors
        factor = (weights[0] if weights else ctx.weight) * of_total
        return logits.sigmoid().sub_(targets).mul_(factor), None, None


def _power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent with a zero, not an infinite, gradient at base = 0 for exponents under 1."""
    if exponent >= 1:
        return base.pow(exponent)
    return base.clamp(min=torch.finfo(base.dtype).tiny).pow(exponent)


def smoothed_targets(label_smoothing: float) -> tuple[float, float]:
    """The class targets (positive, negative) under label smoothing e: 1 - e/2 and e/2 (arXiv:1902.04103, eq. 3)."""
    return 1 - label_smoothing / 2, label_smoothing / 2


def class_targets(
    class_index: Int64[Tensor, " P"], num_classes: int, label_smoothing: float, dtype: torch.dtype
) -> Float[Tensor, "P K"]:
    """(P, K) targets of the class term: the positive one at each candidate's class."""
    positive, negative = smoothed_targets(label_smoothing)
    targets = torch.full((class_index.shape[0], num_classes), negative, dtype=dtype, device=class_index.device)
    return targets.scatter_(1, class_index[:, None], positive)


def winning_cells(
    assignment: Assignment, iou: Float[Tensor, " P"], shape: tuple[int, int, int, int], collision: str
) -> Int64[Tensor, " P"]:
    """(P,) of each candidate that decides its anchor cell's objectness the number of that cell in (B, H, W, A); of the
    others B * H * W * A and more, a number that no other candidate has.

    iou: (P,) without gradient; shape: (B, H, W, A). Of several candidates of an anchor cell the last in canonical order
    wins, or, for collision "best", the one with the highest max(IoU, 0) (the last of equals). The winner is found by a
    maximum over candidate numbers, which no order of execution can change.
    """
    batch, height, width, num_anchors = shape
    grid_cell = (assignment.image * height + assignment.row) * width + assignment.column
    cells = grid_cell * num_anchors + assignment.anchor
    num_cells = batch * height * width * num_anchors
    number = torch.arange(cells.shape[0], device=cells.device)
    # Masked candidates write behind the map, which is dropped, each to an element of its own: most are masked where
    # targets are padded, and atomic maxima of one element wait for each other.
    spare = num_cells + number
    cells = torch.where(assignment.valid, cells, spare)
    length = num_cells + cells.shape[0]
    contends = assignment.valid
    if collision == "best":
        iou = iou.clamp(min=0)  # as in the targets: of boxes that miss theirs none is better
        best = iou.new_full((length,), -torch.inf).scatter_reduce_(0, cells, iou, "amax")
        contends = contends & (iou == best[cells])
    contender = torch.where(contends, number, -1)
    winner = torch.full((length,), -1, dtype=torch.int64, device=cells.device)
    winner.scatter_reduce_(0, cells, contender, "amax")
    return torch.where(contends & (winner[cells] == number), cells, spare)


def objectness_targets(
    cells: Int64[Tensor, " P"], iou: Float[Tensor, " P"], num_cells: int, gr: float
) -> Float[Tensor, " cells"]:
    """(num_cells,) targets of the objectness term: (1 - gr) + gr * max(iou, 0) at matched anchor cells, else 0.

    cells: the `winning_cells`; iou: (P,) without gradient.
    """
    targets = iou.new_zeros(num_cells + cells.shape[0])
    targets.scatter_(0, cells, (1 - gr) + gr * iou.clamp(min=0))
    return targets[:num_cells]


def objectness_weights(
    cells: Int64[Tensor, " P"],
    weights: Float[Tensor, " P"],
    background: Float[Tensor, "B H W A"],
    ignored: Bool[Tensor, "B H W A"] | None,
) -> Float[Tensor, " cells"]:
    """(B * H * W * A,) weights of the elements of the objectness term (docs/objective.md, section 6).

    At matched anchor cells the weight of the candidate that decides; elsewhere 0 where ignored, else that of the
    background. cells: the `winning_cells`; weights: (P,) of the candidates.
    """
    free = background if ignored is None else torch.where(ignored, 0, background)
    padded = torch.cat([free.flatten(), free.new_zeros(cells.shape[0])])
    return padded.scatter_(0, cells, weights)[: free.numel()]


def background_weights(
    weight: Float[Tensor, " B *hw"], shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Float[Tensor, "B H W A"]:
    """What the background counts at each anchor cell of a level: see `LabelCoverage.background_weight`."""
    batch, height, width, _ = shape
    if weight.shape[0] != batch:
        raise InputError(f"background_weight for {weight.shape[0]} images, and the batch has {batch}")
    if weight.ndim == 3:
        # The grid's row and column that the middle of each cell lies in.
        row, column = (
            (2 * torch.arange(cells, device=weight.device) + 1) * parts // (2 * cells)
            for cells, parts in zip((height, width), weight.shape[1:], strict=True)
        )
        weight = weight[:, row[:, None], column]
    return weight.to(dtype).reshape(batch, *weight.shape[1:] or (1, 1), 1).expand(shape)


def share_of_each(
    valid: Bool[Tensor, " P"], dtype: torch.dtype, num_valid: Tensor | None = None
) -> Float[Tensor, " P"]:
    """(P,) the weight of each candidate of a level in the level's mean: 1 / n for n valid ones.

    num_valid: n where the mean is over more candidates than these, a scalar.
    """
    return valid.to(dtype) / (valid.sum() if num_valid is None else num_valid).clamp(min=1)


def weighted_sum(
    values: Float[Tensor, " P"], weights: Float[Tensor, " P"], valid: Bool[Tensor, " P"]
) -> Float[Tensor, ""]:
    """Sum of weights * values, each (P,), over the valid ones."""
    # where, not the weight alone: a masked candidate may hold any value, and 0 * inf is NaN.
    return (torch.where(valid, values, 0) * weights).sum()
