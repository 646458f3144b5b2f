"""Assignment: which anchors and cells are responsible for which object (docs/objective.md, section 3), and which are
ignored because nobody knows what is there (section 6). No gradient.

Legend: B images, L levels, A anchors, T targets (rows), R ignore regions, H, W grid rows and columns, P candidates of a
level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets

_REGIONS_AT_A_TIME = 32  # compared with all anchors of a level: bounds the memory, and fewer than a byte can count


@dataclass(frozen=True)
class Assignment:
    """The candidates of one level in canonical order: by shift (centre, left, up, right, down), anchor, object.

    image, anchor, row, column: (P,) int64, the anchor cell; target: (P,) int64, the row of the targets; class_index:
    (P,) int64; box: (P, 4) centre relative to the cell's corner, and sides, in cells; valid: (P,) bool. For compact
    targets P is the number of candidates and all are valid; for padded targets P = 5 * A * T and the rest is masked.
    """

    image: Int64[Tensor, " P"]
    anchor: Int64[Tensor, " P"]
    row: Int64[Tensor, " P"]
    column: Int64[Tensor, " P"]
    target: Int64[Tensor, " P"]
    class_index: Int64[Tensor, " P"]
    box: Float64[Tensor, "P 4"]
    valid: Bool[Tensor, " P"]


def assign(
    targets: Targets, anchors: AnchorSet, grid_sizes: Sequence[tuple[int, int]], ratio_limit: float = 4.0
) -> list[Assignment]:
    """The candidates of each level, one `Assignment` per level.

    grid_sizes: (H, W) of each level. Decided in float64 whatever the type of the targets, so that every device and
    precision gives the same assignment. Source: docs/objective.md, section 3.
    """
    return assign_to(targets, anchors.cells(torch.float64, targets.rows.device), grid_sizes, ratio_limit)


@torch.no_grad()
def assign_to(
    targets: Targets, anchors_cells: Float64[Tensor, "L A 2"], grid_sizes: Sequence[tuple[int, int]], ratio_limit: float
) -> list[Assignment]:
    """`assign` for anchors (L, A, 2) float64 in cells, already on the device.

    For padded targets no shape and no branch depends on the data, and no constant is copied from the host.
    """
    rows = targets.rows.double()
    return [
        _assign_level(rows, targets.valid, anchors_of_level, height, width, ratio_limit)
        for anchors_of_level, (height, width) in zip(anchors_cells, grid_sizes, strict=True)
    ]


@torch.no_grad()
def ignored_cells(
    regions: Float[Tensor, "R 5"],
    anchors_cells: Float64[Tensor, "A 2"],
    shape: tuple[int, int, int, int],
    ratio_limit: float,
) -> Bool[Tensor, "B H W A"]:
    """The anchor cells of a level about which the labels say nothing, whether or not an object is assigned there too.

    An anchor cell is ignored when it would be a candidate of a region, were that an object; or when its anchor, centred
    in the middle of the cell, has at least half of its area inside one region. regions: see `LabelCoverage`;
    anchors_cells: (A, 2) of the level, in cells; shape: (B, H, W, A). No shape depends on the content of the regions.
    Decided in float64. Source: docs/objective.md, section 6.
    """
    batch, height, width, num_anchors = shape
    if batch == 0:  # to whose images padded regions would belong
        return torch.zeros(shape, dtype=torch.bool, device=regions.device)
    rows = torch.cat([regions[:, :1], regions], dim=1).double()  # the second column, a class, is not read
    everyone = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    found = _assign_level(rows, everyone, anchors_cells, height, width, ratio_limit)
    num_cells = batch * height * width * num_anchors
    cells = ((found.image * height + found.row) * width + found.column) * num_anchors + found.anchor
    matched = torch.zeros(num_cells + 1, dtype=torch.bool, device=rows.device)
    matched.index_fill_(0, torch.where(found.valid, cells, num_cells), True)
    ignored = matched[:num_cells].view(batch, -1)
    for some in rows.split(_REGIONS_AT_A_TIME):
        inside = _half_inside(some, anchors_cells, height, width).flatten(1)
        times = torch.zeros(ignored.shape, dtype=torch.uint8, device=rows.device)
        ignored = ignored | (times.index_add_(0, some[:, 0].long(), inside.view(torch.uint8)) > 0)
    return ignored.view(shape)


def _half_inside(rows: Tensor, anchors_cells: Tensor, height: int, width: int) -> Tensor:
    """(R, H, W, A) bool: whether each anchor, in the middle of each cell, has half of its area in a region or more."""
    across = _overlap(rows[:, 2] * width, rows[:, 4] * width, anchors_cells[:, 0], width)
    down = _overlap(rows[:, 3] * height, rows[:, 5] * height, anchors_cells[:, 1], height)
    return down[:, :, None, :] * across[:, None, :, :] >= anchors_cells.prod(dim=1) / 2


def _overlap(centre: Tensor, side: Tensor, anchor_side: Tensor, num_cells: int) -> Tensor:
    """(R, cells, A) length, along one axis and in cells, that regions and anchors in the middle of cells share."""
    middle = torch.arange(num_cells, dtype=torch.float64, device=centre.device)[:, None] + 0.5
    low, high = (centre - side / 2)[:, None, None], (centre + side / 2)[:, None, None]
    shared = torch.minimum(high, middle + anchor_side / 2) - torch.maximum(low, middle - anchor_side / 2)
    return shared.clamp(min=0)


def _assign_level(
    rows: Tensor, valid: Tensor | None, anchors_cells: Tensor, height: int, width: int, ratio_limit: float
) -> Assignment:
    x, y, w, h = rows[:, 2] * width, rows[:, 3] * height, rows[:, 4] * width, rows[:, 5] * height
    shapes_match = _shapes_match(torch.stack([w, h], dim=1), anchors_cells, ratio_limit)
    if valid is not None:
        shapes_match = shapes_match & valid
    candidates = _responsible_cells(x, y, height, width)[:, None, :] & shapes_match
    if valid is None:
        shift, anchor, target = candidates.nonzero(as_tuple=True)
        mask = torch.ones_like(shift, dtype=torch.bool)
    else:
        shift, anchor, target = _every_index(candidates)
        mask = candidates.flatten()
    columns, rows_of_cells = _cells(x, y, height, width)
    cell = shift * x.shape[0] + target
    column, row = columns.flatten()[cell], rows_of_cells.flatten()[cell]
    return Assignment(
        image=rows[target, 0].long(),
        anchor=anchor,
        row=row.long(),
        column=column.long(),
        target=target,
        class_index=rows[target, 1].long(),
        box=torch.stack([x[target] - column, y[target] - row, w[target], h[target]], dim=1),
        valid=mask,
    )


def _shapes_match(sides: Tensor, anchors_cells: Tensor, ratio_limit: float) -> Tensor:
    """(A, T) bool: neither side is ratio_limit times the anchor's or more, nor the reverse."""
    ratio = sides / anchors_cells[:, None, :]
    return torch.maximum(ratio, 1 / ratio).amax(dim=-1) < ratio_limit


def _responsible_cells(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """(5, T) bool: which of the five cells are responsible for a centre: its own, left, up, right, down."""
    nearer = [(side % 1 < 0.5) & (side > 1) for side in (x, y, width - x, height - y)]
    return torch.stack([torch.ones_like(nearer[0]), *nearer])


def _cells(x: Tensor, y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns and rows, each (5, T), of the five cells: the centre moved by half a cell, cut, clamped to the grid."""
    columns = torch.stack([x, x - 0.5, x, x + 0.5, x])
    rows = torch.stack([y, y, y - 0.5, y, y + 0.5])
    return columns.trunc_().clamp_(0, width - 1), rows.trunc_().clamp_(0, height - 1)


def _every_index(candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, anchor and target number of every entry of the (5, A, T) mask, in canonical order."""
    _, num_anchors, num_targets = candidates.shape
    flat = torch.arange(candidates.numel(), device=candidates.device)
    return flat // (num_anchors * num_targets), flat // num_targets % num_anchors, flat % num_targets
