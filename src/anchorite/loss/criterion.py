"""`DetectionLoss`: the objective of docs/objective.md over all levels; and what each anchor cell adds to it.

Legend: L levels, A anchors, B images, K classes, H, W cells of a level, P candidates (matched anchor cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anchorite.anchors import AnchorSet, decode_boxes
from anchorite.boxes import LabelCoverage, Targets, paired_iou
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError
from anchorite.loss.assign import Assignment, assign, assign_to, ignored_cells
from anchorite.loss.config import LossConfig
from anchorite.loss.logits import LevelLogits, as_levels, in_loss_precision
from anchorite.loss.terms import (
    background_weights,
    bce_sum,
    bce_with_focus,
    class_targets,
    objectness_targets,
    objectness_weights,
    share_of_each,
    weighted_sum,
    winning_cells,
)

_BALANCE_OF_THREE = (4.0, 1.0, 0.4)
_BALANCE_OF_FIVE = (4.0, 1.0, 0.25, 0.06, 0.02)
_BALANCE_KEEP, _BALANCE_GAIN = 0.9999, 0.0001


class LossTerms(NamedTuple):
    """The loss of a batch, scalars in float32 (float64 for float64 logits).

    total carries the graph and the factor B. box, objectness and classification are detached, with their gains,
    without B.
    """

    total: Float[Tensor, ""]
    box: Float[Tensor, ""]
    objectness: Float[Tensor, ""]
    classification: Float[Tensor, ""]


def initial_balance(num_levels: int) -> tuple[float, ...]:
    """The levels' weights of the objectness term."""
    if not 1 <= num_levels <= len(_BALANCE_OF_FIVE):
        raise InputError(f"the objective is defined for 1 to {len(_BALANCE_OF_FIVE)} levels, not {num_levels}")
    return _BALANCE_OF_THREE if num_levels == 3 else _BALANCE_OF_FIVE[:num_levels]


class DetectionLoss(nn.Module):
    """Box, objectness and class loss of a batch, with the levels' balance as state.

    Called with the logits of each level (a dense tensor (B, A, 5 + K, H, W), or any `LevelLogits`), the batch's
    Targets and, where its labels do not know everything, their LabelCoverage; returns LossTerms. The loss is computed
    in float32 under any autocast, in float64 for float64 logits. Source: docs/objective.md, sections 4 and 6.

    With several ranks each is called with its part of the batch, and the terms are those of the whole batch: means are
    taken over all ranks' candidates and anchor cells. total is this rank's part times world_size, so that the mean of
    the ranks' gradients is the gradient of the whole batch.
    """

    def __init__(
        self, anchors: AnchorSet, num_classes: int, config: LossConfig | None = None, world: World = SINGLE_PROCESS
    ) -> None:
        super().__init__()
        self.world = world
        self.anchors = anchors
        self.num_classes = num_classes
        self.config = config or LossConfig()
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {num_classes}")
        weights = self.config.class_weights
        if weights is not None and len(weights) != num_classes:
            raise InputError(f"class_weights has {len(weights)} numbers for {num_classes} classes")
        self.register_buffer("balance", torch.tensor(initial_balance(anchors.num_levels), dtype=torch.float64))
        self.balance: Tensor
        # Constants are buffers: created in each step, they would be copied to the device synchronously.
        self.register_buffer("_anchors_cells", anchors.cells(torch.float64), persistent=False)
        self._anchors_cells: Tensor
        of_classes = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.register_buffer("_class_weights", of_classes, persistent=False)
        self._class_weights: Tensor | None
        # Level against which automatic balance is normalised: stride 16, or the nearest to it (the finer of two).
        self._pivot = min(range(anchors.num_levels), key=lambda level: abs(anchors.strides[level] - 16))

    def forward(
        self,
        logits: Sequence[Tensor | LevelLogits],
        targets: Targets,
        coverage: LabelCoverage | None = None,
        num_images: int | None = None,
    ) -> LossTerms:
        """The loss of one batch; num_images: of the batch over all ranks; None: this rank's are all.

        Raises InputError when coverage does not fit, as when the class of an object is not covered (not for padded
        targets, whose content the host does not read).
        """
        levels = as_levels(logits, self.anchors.num_levels)
        known = _Knowledge(targets, coverage or LabelCoverage(), self.num_classes)
        # The head computes under the caller's autocast; every term after that without it.
        maps = [level.objectness() for level in levels]
        grid_sizes = [(int(objectness.shape[2]), int(objectness.shape[3])) for objectness in maps]
        found = assign_to(targets, self._anchors_cells, grid_sizes, self.config.ratio_limit)
        # All levels concatenated: at these sizes launching an operator costs more than its work.
        picked = torch.cat([of.at(f.image, f.anchor, f.row, f.column) for of, f in zip(levels, found, strict=True)])
        device = maps[0].device.type
        has_autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            maps = [in_loss_precision(objectness) for objectness in maps]
            return self._terms(maps, in_loss_precision(picked), found, known, num_images or maps[0].shape[0])

    def _terms(
        self, maps: list[Tensor], logits: Tensor, found: list[Assignment], known: _Knowledge, num_images: int
    ) -> LossTerms:
        """The loss from objectness maps (B, A, H, W), one per level, and the logits (P, 5 + K) of all candidates."""
        config, world = self.config, self.world
        valid = torch.cat([level.valid for level in found])
        counts = world.all_reduce(torch.stack([level.valid.sum() for level in found]))
        shares = torch.cat([share_of_each(f.valid, logits.dtype, n) for f, n in zip(found, counts, strict=True)])
        weights = known.of_candidates(found, logits.dtype)
        if weights is not None:
            shares = shares * weights
        # split, not slices: its backward writes the gradient of the logits once.
        box_logits, _, class_logits = logits.split((4, 1, self.num_classes), dim=1)
        iou = self._iou(box_logits, found)
        box = config.box_gain * weighted_sum(1 - iou, shares, valid)
        per_level = self._objectness_by_level(maps, iou.detach(), found, known, num_images)
        # A copy: the backward pass needs the weights before automatic balance changes them. By a matrix product,
        # because torch.compile recomputes any cheaper copy in the backward pass, from the changed buffer; it saves
        # products.
        identity = torch.eye(per_level.shape[0], dtype=self.balance.dtype, device=self.balance.device)
        balance = (identity @ self.balance[:, None])[:, 0].to(per_level.dtype)
        objectness = config.objectness_gain * (balance * per_level).sum()
        class_index = torch.cat([level.class_index for level in found])
        elements = known.of_class_elements(shares[:, None] / self.num_classes, found)
        classification = config.class_gain * self._class_term(class_logits, class_index, elements)
        total = (box + objectness + classification) * (num_images * world.world_size)
        box, classification, per_level = box.detach(), classification.detach(), per_level.detach()
        if world.is_distributed:
            box, classification, *parts = world.all_reduce(torch.stack([box, classification, *per_level])).unbind()
            per_level = torch.stack(parts)
            objectness = config.objectness_gain * (balance * per_level).sum()
        if config.automatic_balance and self.training:
            self._follow(per_level)
        return LossTerms(total, box, objectness.detach(), classification)

    def _iou(self, box_logits: Tensor, found: list[Assignment]) -> Tensor:
        """(P,) IoU of each candidate's predicted box with its target."""
        anchors_cells = self._anchors_cells.to(box_logits.dtype)
        sides = torch.cat([of_level[level.anchor] for of_level, level in zip(anchors_cells, found, strict=True)])
        goals = torch.cat([level.box for level in found]).to(box_logits.dtype)
        return paired_iou(decode_boxes(box_logits, sides), goals, self.config.box_iou)

    def _objectness_by_level(
        self, maps: list[Tensor], iou: Tensor, found: list[Assignment], known: _Knowledge, num_images: int
    ) -> Tensor:
        """(L,) objectness losses, without balance and gain: this rank's part of the means over num_images images."""
        config = self.config
        losses = []
        ious = iou.split([level.valid.shape[0] for level in found])
        for number, (objectness, iou_of_level, level) in enumerate(zip(maps, ious, found, strict=True)):
            # Channels last, the memory format of the head's output: no copy.
            by_cell = objectness.permute(0, 2, 3, 1)
            batch, height, width, num_anchors = by_cell.shape
            shape = (batch, height, width, num_anchors)
            cells = winning_cells(level, iou_of_level, shape, config.collision)
            goals = objectness_targets(cells, iou_of_level, by_cell.numel(), config.objectness_iou_ratio)
            flat, share = by_cell.flatten(), 1 / (num_images * height * width * num_anchors)
            counts = known.of_cells(cells, level, shape, self._anchors_cells[number], config.ratio_limit, flat.dtype)
            weights = share if counts is None else counts * share
            losses.append(bce_sum(flat, goals, weights, config.objectness_pos_weight, config.focal_gamma))
        return torch.stack(losses)

    def _class_term(self, class_logits: Tensor, class_index: Tensor, weights: Tensor) -> Tensor:
        """Sum over levels of the mean over candidates and classes of the class loss; 0 for a single class.

        weights: of the elements, (P, 1) or (P, K).
        """
        config = self.config
        if self.num_classes == 1:
            return class_logits.new_zeros(())
        goals = class_targets(class_index, self.num_classes, config.label_smoothing, class_logits.dtype)
        if self._class_weights is not None:
            weights = weights * self._class_weights.to(weights.dtype)
        return bce_sum(class_logits, goals, weights, config.class_pos_weight, config.focal_gamma)

    @torch.no_grad()
    def _follow(self, per_level: Tensor) -> None:
        """Automatic balance: the weights move towards the inverse of the levels' losses."""
        losses = per_level.to(self.balance.dtype)
        # A loss of 0 has no inverse: its weight gains 0, instead of turning all weights into NaN.
        gains = torch.where(losses > torch.finfo(torch.float32).tiny, _BALANCE_GAIN / losses, 0.0)
        raised = self.balance * _BALANCE_KEEP + gains
        self.balance.copy_(raised / raised[self._pivot])


class _Knowledge:
    """What the labels of a batch know, as weights of the elements of the loss; None where all of them count 1."""

    def __init__(self, targets: Targets, coverage: LabelCoverage, num_classes: int) -> None:
        self.weights, self.sources, self.coverage = targets.weights, targets.sources, coverage
        covered = coverage.covered_classes
        if covered is None:
            return
        if covered.shape[1] != num_classes:
            raise InputError(f"covered_classes of {covered.shape[1]} classes, and there are {num_classes}")
        if targets.valid is None:
            image, class_index = targets.rows[:, 0].long(), targets.rows[:, 1].long()
            wrong = ~covered[image if self.sources is None else self.sources, class_index]
            if bool(wrong.any()):
                first = int(wrong.nonzero()[0])
                raise InputError(
                    f"object {first} of image {int(image[first])} has class {int(class_index[first])}, which "
                    "covered_classes denies: cover the class, or make an ignore region of the object"
                )

    def of_candidates(self, found: list[Assignment], dtype: torch.dtype) -> Tensor | None:
        """(P,) weights of the candidates of all levels."""
        if self.weights is None:
            return None
        return self.weights[torch.cat([level.target for level in found])].to(dtype)

    def of_class_elements(self, shares: Tensor, found: list[Assignment]) -> Tensor:
        """(P, K) or (P, 1) weights of the elements of the class term, of the shares (P, 1) of the candidates."""
        covered = self.coverage.covered_classes
        if covered is None:
            return shares
        if self.sources is None:
            rows = torch.cat([level.image for level in found])
            covered = covered if len(covered) else covered.new_zeros((1, covered.shape[1]))  # for masked candidates
        else:
            rows = self.sources[torch.cat([level.target for level in found])]
        return shares * covered[rows]

    def of_cells(
        self,
        cells: Tensor,
        level: Assignment,
        shape: tuple[int, int, int, int],
        anchors_cells: Tensor,
        ratio_limit: float,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """(B * H * W * A,) weights of a level's objectness; cells: `winning_cells`; shape: (B, H, W, A)."""
        regions, background = self.coverage.ignore_regions, self.coverage.background_weight
        if self.weights is None and regions is None and background is None:
            return None
        ones = torch.ones(1, dtype=dtype, device=cells.device)
        free = ones.expand(shape) if background is None else background_weights(background, shape, dtype)
        weights = ones.expand(cells.shape) if self.weights is None else self.weights[level.target].to(dtype)
        ignored = None if regions is None else ignored_cells(regions, anchors_cells, shape, ratio_limit)
        return objectness_weights(cells, weights, free, ignored)


# The loss by anchor cell


class LevelBreakdown(NamedTuple):
    """One level's part of the loss by anchor cell; everything detached, in the loss's precision.

    assignment: compact, in canonical order. predicted: (P, 4) boxes as centre relative to the cell's corner and sides,
    in cells, as in assignment.box. iou: (P,) `config.box_iou` of predicted and target box. box, classification: (P,)
    what each anchor cell adds to `LossTerms.box` and `.classification`, gains included. objectness: (B, A, H, W) what
    every anchor cell adds to `LossTerms.objectness`, balance and gain included; objectness_target: (B, A, H, W);
    objectness_weight: (B, A, H, W) in 0..1, 0 where the anchor cell is ignored.
    """

    assignment: Assignment
    predicted: Float[Tensor, "P 4"]
    iou: Float[Tensor, " P"]
    box: Float[Tensor, " P"]
    classification: Float[Tensor, " P"]
    objectness: Float[Tensor, "B A H W"]
    objectness_target: Float[Tensor, "B A H W"]
    objectness_weight: Float[Tensor, "B A H W"]


@torch.no_grad()
def break_down(
    criterion: DetectionLoss,
    logits: Sequence[Tensor | LevelLogits],
    targets: Targets,
    coverage: LabelCoverage | None = None,
) -> list[LevelBreakdown]:
    """The loss of one batch, one `LevelBreakdown` per level; summed over levels, it gives the criterion's terms.

    Called like the criterion, whose state is unchanged (automatic balance is not updated). Raises InputError when
    the number of levels is wrong or coverage does not fit. Source: docs/objective.md, sections 4 and 6.
    """
    levels = as_levels(logits, criterion.anchors.num_levels)
    maps = [in_loss_precision(level.objectness()) for level in levels]
    grid_sizes = [(int(objectness.shape[2]), int(objectness.shape[3])) for objectness in maps]
    # Compact: masked rows of padded targets have no anchor cells.
    rows = targets.compact()
    known = _Knowledge(rows, coverage or LabelCoverage(), criterion.num_classes)
    found = assign(rows, criterion.anchors, grid_sizes, criterion.config.ratio_limit)
    return [
        _level(criterion, number, objectness, in_loss_precision(level.at(f.image, f.anchor, f.row, f.column)), f, known)
        for number, (level, objectness, f) in enumerate(zip(levels, maps, found, strict=True))
    ]


def _level(
    criterion: DetectionLoss,
    number: int,
    objectness_map: Tensor,
    logits: Tensor,
    found: Assignment,
    known: _Knowledge,
) -> LevelBreakdown:
    """One level from its objectness logits (B, A, H, W) and the logits (P, 5 + K) of its matched anchor cells."""
    config = criterion.config
    shares = share_of_each(found.valid, logits.dtype)
    of_candidates = known.of_candidates([found], logits.dtype)
    if of_candidates is not None:
        shares = shares * of_candidates
    anchors_cells = criterion.anchors.cells(torch.float64, logits.device)[number]
    predicted = decode_boxes(logits[:, :4], anchors_cells.to(logits.dtype)[found.anchor])
    iou = paired_iou(predicted, found.box.to(logits.dtype), config.box_iou)
    by_cell = objectness_map.permute(0, 2, 3, 1)
    batch, height, width, num_anchors = by_cell.shape
    shape = (batch, height, width, num_anchors)
    cells = winning_cells(found, iou, shape, config.collision)
    goals = objectness_targets(cells, iou, by_cell.numel(), config.objectness_iou_ratio).view(shape)
    cost = bce_with_focus(by_cell, goals, config.objectness_pos_weight, config.focal_gamma)
    counts = known.of_cells(cells, found, shape, anchors_cells, config.ratio_limit, cost.dtype)
    counts = torch.ones_like(cost) if counts is None else counts.view(shape)
    class_goals = class_targets(found.class_index, criterion.num_classes, config.label_smoothing, logits.dtype)
    class_cost = bce_with_focus(logits[:, 5:], class_goals, config.class_pos_weight, config.focal_gamma)
    if criterion.num_classes == 1:  # which has no class term
        class_cost = torch.zeros_like(class_cost)
    elif config.class_weights is not None:
        class_cost = class_cost * class_cost.new_tensor(config.class_weights)
    class_cost = class_cost * known.of_class_elements(shares[:, None] / criterion.num_classes, [found])
    weight = config.objectness_gain * criterion.balance[number].to(cost.dtype) / goals.numel()
    return LevelBreakdown(
        assignment=found,
        predicted=predicted,
        iou=iou,
        box=config.box_gain * (1 - iou) * shares,
        classification=config.class_gain * class_cost.sum(dim=1),
        objectness=(cost * counts * weight).permute(0, 3, 1, 2),
        objectness_target=goals.permute(0, 3, 1, 2),
        objectness_weight=counts.permute(0, 3, 1, 2),
    )
