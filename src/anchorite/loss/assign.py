"""Assignment: which anchors and cells answer for which object (spec/objective.md, section 3). No gradient.

Legend: L levels, A anchors, T targets (rows), H, W grid rows and columns, P candidates of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets

# The cells that may answer, as (x, y) shifts of the centre before it is cut to a cell, in canonical order:
# centre, left, up, right, down. The cell is trunc(centre - shift).
_SHIFTS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))


@dataclass(frozen=True)
class Assignment:
    """The candidates of one level in canonical order: by shift (centre, left, up, right, down), anchor, object.

    image, anchor, row, column: (P,) int64, the place; target: (P,) int64, the row of the targets; class_index: (P,)
    int64; box: (P, 4) centre relative to the cell's corner, and sides, in cells; valid: (P,) bool. For compact targets
    P is the number of candidates and all are valid; for padded targets P = 5 * A * T and the rest is masked.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor
    class_index: Tensor
    box: Tensor
    valid: Tensor


@torch.no_grad()
def assign(
    targets: Targets, anchors: AnchorSet, grid_sizes: Sequence[tuple[int, int]], ratio_limit: float = 4.0
) -> list[Assignment]:
    """The candidates of each level, one `Assignment` a level.

    grid_sizes: (H, W) of each level. Decided in float64 whatever the type of the targets, so that every device and
    precision assigns alike. Source: spec/objective.md, section 3.
    """
    rows = targets.rows.double()
    anchors_cells = anchors.cells(torch.float64, rows.device)
    valid = targets.valid
    return [
        _assign_level(rows, valid, anchors_cells[level], height, width, ratio_limit)
        for level, (height, width) in enumerate(grid_sizes)
    ]


def _assign_level(
    rows: Tensor, valid: Tensor | None, anchors_cells: Tensor, height: int, width: int, ratio_limit: float
) -> Assignment:
    scaled = rows[:, 2:] * _grid_scale(height, width, rows)
    centres, sides = scaled[:, :2], scaled[:, 2:]
    shapes_match = _shapes_match(sides, anchors_cells, ratio_limit)
    if valid is not None:
        shapes_match = shapes_match & valid
    candidates = _cells_answer(centres, height, width)[:, None, :] & shapes_match
    if valid is None:
        shift, anchor, target = candidates.nonzero(as_tuple=True)
        mask = torch.ones_like(shift, dtype=torch.bool)
    else:
        shift, anchor, target = _every_index(candidates)
        mask = candidates.flatten()
    shifts = torch.tensor(_SHIFTS, dtype=rows.dtype, device=rows.device)
    cells = (centres[target] - shifts[shift]).trunc()
    column = cells[:, 0].clamp(0, width - 1)
    row = cells[:, 1].clamp(0, height - 1)
    box = torch.cat([centres[target] - torch.stack([column, row], dim=1), sides[target]], dim=1)
    return Assignment(
        image=rows[target, 0].long(),
        anchor=anchor,
        row=row.long(),
        column=column.long(),
        target=target,
        class_index=rows[target, 1].long(),
        box=box,
        valid=mask,
    )


def _shapes_match(sides: Tensor, anchors_cells: Tensor, ratio_limit: float) -> Tensor:
    """(A, T) bool: neither side is ratio_limit times the anchor's or more, nor the reverse."""
    ratio = sides / anchors_cells[:, None, :]
    return torch.maximum(ratio, 1 / ratio).amax(dim=-1) < ratio_limit


def _cells_answer(centres: Tensor, height: int, width: int) -> Tensor:
    """(5, T) bool: which of the five cells answer for a centre, by the neighbour rule."""
    from_start = centres
    from_end = _grid_sides(height, width, centres) - centres
    near_start = (from_start % 1 < 0.5) & (from_start > 1)
    near_end = (from_end % 1 < 0.5) & (from_end > 1)
    holds_centre = torch.ones_like(near_start[:, 0])
    return torch.stack([holds_centre, near_start[:, 0], near_start[:, 1], near_end[:, 0], near_end[:, 1]])


def _grid_sides(height: int, width: int, like: Tensor) -> Tensor:
    return torch.tensor([width, height], dtype=like.dtype, device=like.device)


def _grid_scale(height: int, width: int, like: Tensor) -> Tensor:
    return torch.tensor([width, height, width, height], dtype=like.dtype, device=like.device)


def _every_index(candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, anchor and target number of every entry of the (5, A, T) mask, in canonical order."""
    _, num_anchors, num_targets = candidates.shape
    flat = torch.arange(candidates.numel(), device=candidates.device)
    return flat // (num_anchors * num_targets), flat // num_targets % num_anchors, flat % num_targets
