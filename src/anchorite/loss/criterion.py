"""`DetectionLoss`: the objective of spec/objective.md over all levels.

Legend: L levels, A anchors, B images, K classes, P candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet, decode_boxes
from anchorite.boxes import Targets, paired_iou
from anchorite.errors import InputError
from anchorite.loss.assign import Assignment, assign
from anchorite.loss.config import LossConfig
from anchorite.loss.logits import LevelLogits, as_level_logits
from anchorite.loss.terms import bce_with_focus, class_targets, masked_mean, objectness_targets

_BALANCE_OF_THREE = (4.0, 1.0, 0.4)
_BALANCE_OF_FIVE = (4.0, 1.0, 0.25, 0.06, 0.02)
_BALANCE_KEEP, _BALANCE_GAIN = 0.9999, 0.0001


class LossTerms(NamedTuple):
    """The loss of a batch, scalars in float32 (float64 for float64 logits).

    total carries the graph and the factor B. box, objectness and classification are detached, with their gains,
    without B.
    """

    total: Tensor
    box: Tensor
    objectness: Tensor
    classification: Tensor


def initial_balance(num_levels: int) -> tuple[float, ...]:
    """The levels' weights of the objectness term."""
    if not 1 <= num_levels <= len(_BALANCE_OF_FIVE):
        raise InputError(f"the objective is defined for 1 to {len(_BALANCE_OF_FIVE)} levels, not {num_levels}")
    return _BALANCE_OF_THREE if num_levels == 3 else _BALANCE_OF_FIVE[:num_levels]


class DetectionLoss(nn.Module):
    """Box, objectness and class loss of a batch, with the levels' balance as state.

    Called with one entry of logits a level (a dense tensor (B, A, 5 + K, H, W), or anything that answers
    `objectness()` and `at(...)`) and the batch's Targets; returns LossTerms. The loss is computed in float32 under
    any autocast, in float64 for float64 logits. Source: spec/objective.md, section 4.
    """

    def __init__(self, anchors: AnchorSet, num_classes: int, config: LossConfig | None = None) -> None:
        super().__init__()
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
        # Level against which automatic balance is normalised: stride 16, or the nearest to it (the finer of two).
        self._pivot = min(range(anchors.num_levels), key=lambda level: abs(anchors.strides[level] - 16))

    def forward(self, logits: Sequence[Tensor | LevelLogits], targets: Targets) -> LossTerms:
        """The loss of one batch."""
        levels = [as_level_logits(level) for level in logits]
        if len(levels) != self.anchors.num_levels:
            raise InputError(f"{len(levels)} levels of logits for {self.anchors.num_levels} levels of anchors")
        # The head answers under the caller's autocast; every term after that is computed without it.
        maps = [level.objectness() for level in levels]
        grid_sizes = [(int(objectness.shape[2]), int(objectness.shape[3])) for objectness in maps]
        found = assign(targets, self.anchors, grid_sizes, self.config.ratio_limit)
        matched = [level.at(f.image, f.anchor, f.row, f.column) for level, f in zip(levels, found, strict=True)]
        with torch.autocast(device_type=maps[0].device.type, enabled=False):
            return self._terms([_in_loss_precision(m) for m in maps], [_in_loss_precision(m) for m in matched], found)

    def _terms(self, maps: list[Tensor], matched: list[Tensor], found: list[Assignment]) -> LossTerms:
        """The loss from objectness maps (B, A, H, W) and logits at matched places (P, 5 + K), a pair a level."""
        config = self.config
        anchors_cells = self.anchors.cells(maps[0].dtype, maps[0].device)
        box_by_level, objectness_by_level, class_by_level = [], [], []
        for level, (objectness, logits, candidates) in enumerate(zip(maps, matched, found, strict=True)):
            boxes_cells = decode_boxes(logits[:, :4], anchors_cells[level][candidates.anchor])
            iou = paired_iou(boxes_cells, candidates.box.to(logits.dtype), config.box_iou)
            box_by_level.append(masked_mean(1 - iou, candidates.valid))
            class_by_level.append(self._class_term(logits[:, 5:], candidates))
            goals = objectness_targets(
                candidates, iou.detach(), _shape4(objectness), config.objectness_iou_ratio, config.collision
            )
            loss = bce_with_focus(objectness, goals, config.objectness_pos_weight, config.focal_gamma)
            objectness_by_level.append(loss.mean())
        per_level = torch.stack(objectness_by_level)
        # A copy: the backward pass needs the weights as they were, not as automatic balance leaves them.
        balance = self.balance.to(per_level.dtype, copy=True)
        box = config.box_gain * torch.stack(box_by_level).sum()
        objectness_loss = config.objectness_gain * (balance * per_level).sum()
        classification = config.class_gain * torch.stack(class_by_level).sum()
        total = (box + objectness_loss + classification) * maps[0].shape[0]
        if config.automatic_balance and self.training:
            self._follow(per_level.detach())
        return LossTerms(total, box.detach(), objectness_loss.detach(), classification.detach())

    def _class_term(self, class_logits: Tensor, candidates: Assignment) -> Tensor:
        """Mean over candidates and classes of the class loss of one level; 0 for a single class."""
        config = self.config
        if self.num_classes == 1:
            return class_logits.new_zeros(())
        goals = class_targets(candidates.class_index, self.num_classes, config.label_smoothing, class_logits.dtype)
        loss = bce_with_focus(class_logits, goals, config.class_pos_weight, config.focal_gamma)
        if config.class_weights is not None:
            loss = loss * class_logits.new_tensor(config.class_weights)
        return masked_mean(loss, candidates.valid)

    @torch.no_grad()
    def _follow(self, per_level: Tensor) -> None:
        """Automatic balance: the weights drift to the inverse of the levels' losses."""
        losses = per_level.to(self.balance.dtype)
        # A level that costs nothing has no inverse: it gains nothing, instead of turning all weights into NaN.
        gains = torch.where(losses > torch.finfo(torch.float32).tiny, _BALANCE_GAIN / losses, 0.0)
        raised = self.balance * _BALANCE_KEEP + gains
        self.balance.copy_(raised / raised[self._pivot])


def _in_loss_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _shape4(maps: Tensor) -> tuple[int, int, int, int]:
    batch, num_anchors, height, width = maps.shape
    return batch, num_anchors, height, width
