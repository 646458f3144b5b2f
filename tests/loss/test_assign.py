"""Assignment: boxes on known cells worked by hand, and what must not change it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.loss import Assignment, assign
from tests.loss.cases import random_case

ONE_ANCHOR = AnchorSet.from_rows([[16, 16]], (8,))  # 2 x 2 cells
GRID = [(8, 8)]  # input 64 x 64, cells of 8


def assigned(rows: list[list[float]], anchors: AnchorSet = ONE_ANCHOR, ratio_limit: float = 4.0) -> Assignment:
    targets = Targets.from_rows(torch.tensor(rows, dtype=torch.float64).view(-1, 6))
    (level,) = assign(targets, anchors, GRID, ratio_limit)
    return level


def cells(level: Assignment) -> list[tuple[int, int]]:
    """(column, row) of every candidate, in order."""
    return list(zip(level.column.tolist(), level.row.tolist(), strict=True))


def at(gx: float, gy: float, w: float = 2.0, h: float = 2.0) -> list[float]:
    """A row for a box at (gx, gy) with sides (w, h), all in cells of the 8 x 8 grid."""
    return [0, 0, gx / 8, gy / 8, w / 8, h / 8]


def test_box_with_left_and_upper_neighbours() -> None:
    # g = (3.25, 4.375): both fractions under a half, so the cell (3, 4), then left (2, 4), then up (3, 3).
    level = assigned([at(3.25, 4.375, 2.0, 3.0)])
    assert cells(level) == [(3, 4), (2, 4), (3, 3)]
    assert level.box.tolist() == [[0.25, 0.375, 2.0, 3.0], [1.25, 0.375, 2.0, 3.0], [0.25, 1.375, 2.0, 3.0]]
    assert level.valid.tolist() == [True] * 3


@pytest.mark.parametrize(
    ("gx", "gy", "expected"),
    [
        (3.75, 4.625, [(3, 4), (4, 4), (3, 5)]),  # right, down
        (3.25, 4.625, [(3, 4), (2, 4), (3, 5)]),  # left, down
        (3.75, 4.375, [(3, 4), (3, 3), (4, 4)]),  # up comes before right
        (3.5, 4.5, [(3, 4)]),  # in the very middle: frac is not under a half, from neither side
        (3.0, 4.0, [(3, 4), (2, 4), (3, 3), (3, 4), (3, 4)]),  # on a corner: all four, 3.0 + 0.5 stays in cell 3
        (0.25, 0.25, [(0, 0)]),  # no neighbour beyond the edge: gx > 1 fails
        (1.0, 1.0, [(1, 1), (1, 1), (1, 1)]),  # gx > 1 is strict; right and down: 1.0 + 0.5 stays in cell 1
        (7.75, 7.75, [(7, 7)]),  # W - gx = 0.25 is not > 1
        (7.0, 7.0, [(7, 7), (6, 7), (7, 6)]),  # W - gx = 1 is not > 1
        (8.0, 8.0, [(7, 7), (7, 7), (7, 7)]),  # the far edge is clamped into the grid, left and up cells are 7.5 -> 7
        (0.0, 0.0, [(0, 0), (0, 0), (0, 0)]),  # right and down: 8 - 0 has fraction 0 and is > 1
        (-0.25, 3.5, [(0, 3), (0, 3)]),  # outside: right, as 8.25 has fraction 0.25; cut toward zero
        (9.25, 3.5, [(7, 3), (7, 3)]),  # outside: left, 8.75, clamped
    ],
)
def test_cells_worked_by_hand(gx: float, gy: float, expected: list[tuple[int, int]]) -> None:
    assert cells(assigned([at(gx, gy)])) == expected


def test_box_target_is_relative_to_the_clamped_cell() -> None:
    # g = (8, 8) is clamped to cell (7, 7): the target's centre is (1, 1). Left and up give 7.5 -> 7, (1, 1) again.
    assert assigned([at(8.0, 8.0)]).box.tolist() == [[1.0, 1.0, 2.0, 2.0]] * 3
    assert assigned([at(-0.25, 3.5)]).box[0].tolist() == [-0.25, 0.5, 2.0, 2.0]


@pytest.mark.parametrize(
    ("w", "h", "matches"),
    [
        (2.0, 2.0, True),
        (8.0, 2.0, False),  # exactly 4 anchors: strict
        (7.9375, 2.0, True),
        (2.0, 0.5, False),  # exactly a quarter: strict
        (2.0, 0.5078125, True),
        (7.0, 0.6, True),  # both directions at once, each under 4
        (0.0, 2.0, False),
        (0.0, 0.0, False),
        (2.0, 8.5, False),
    ],
)
def test_shape_test_is_strict_and_takes_the_worse_axis(w: float, h: float, matches: bool) -> None:
    assert len(assigned([at(3.5, 3.5, w, h)]).image) == matches


def test_ratio_limit_is_that_given() -> None:
    assert len(assigned([at(3.5, 3.5, 8.0, 2.0)], ratio_limit=4.5).image) == 1
    assert len(assigned([at(3.5, 3.5, 4.0, 2.0)], ratio_limit=2.0).image) == 0


def test_order_is_offset_then_anchor_then_object() -> None:
    anchors = AnchorSet.from_rows([[16, 16, 8, 8]], (8,))  # 2 x 2 and 1 x 1 cells
    first, second = at(5.25, 5.5, 1.5, 1.5), at(2.25, 2.5, 1.5, 1.5)  # each: the cell and the one to its left
    level = assigned([first, second], anchors)
    assert level.anchor.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert level.target.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert cells(level) == [(5, 5), (2, 2), (5, 5), (2, 2), (4, 5), (1, 2), (4, 5), (1, 2)]


def test_image_and_class_follow_the_object_in_any_order_of_images() -> None:
    rows = [[2, 7, 3.5 / 8, 3.5 / 8, 0.25, 0.25], [0, 1, 5.5 / 8, 1.5 / 8, 0.25, 0.25]]
    level = assigned(rows)
    assert (level.image.tolist(), level.class_index.tolist(), level.target.tolist()) == ([2, 0], [7, 1], [0, 1])


def test_width_belongs_to_columns_and_height_to_rows() -> None:
    # A grid of 4 rows and 16 columns: cx * 16, cy * 4.
    targets = Targets.from_rows(torch.tensor([[0, 0, 10.5 / 16, 2.5 / 4, 2 / 16, 2 / 4]], dtype=torch.float64))
    (level,) = assign(targets, ONE_ANCHOR, [(4, 16)])
    assert (level.column.tolist(), level.row.tolist()) == ([10], [2])
    assert level.box.tolist() == [[0.5, 0.5, 2.0, 2.0]]


def test_anchors_are_those_of_the_level() -> None:
    # A box of 16 px: anchors of 10 px on stride 8 and of 100 px on stride 16; only the first is within 4 times.
    anchors = AnchorSet.from_rows([[10, 10], [100, 100]], (8, 16))
    targets = Targets.from_rows(torch.tensor([[0, 0, 3.5 / 8, 3.5 / 8, 0.25, 0.25]], dtype=torch.float64))
    fine, coarse = assign(targets, anchors, [(8, 8), (4, 4)])
    assert (len(fine.image), len(coarse.image)) == (1, 0)


def test_one_cell_takes_everything() -> None:
    targets = Targets.from_rows(torch.tensor([[0, 0, x, y, 1, 1] for x in (0, 0.5, 1.0) for y in (0, 1.0)]).double())
    (level,) = assign(targets, AnchorSet.from_rows([[8, 8]], (8,)), [(1, 1)])
    assert set(cells(level)) == {(0, 0)}
    assert len(level.image) == 6  # centres alone: no distance from an edge exceeds 1


@pytest.mark.parametrize("capacity", [None, 0, 4])
def test_no_object_gives_no_candidate(capacity: int | None) -> None:
    targets = Targets.from_rows(torch.zeros(0, 6), capacity=capacity)
    levels = assign(targets, AnchorSet.coco_p5(), [(8, 8), (4, 4), (2, 2)])
    assert [int(level.valid.sum()) for level in levels] == [0, 0, 0]
    for level in levels:
        assert level.box.shape == (len(level.valid), 4)
        for name in ("image", "anchor", "row", "column", "target", "class_index"):
            assert getattr(level, name).dtype == torch.int64
            assert getattr(level, name).shape == level.valid.shape


def test_carries_no_gradient() -> None:
    rows = torch.tensor([at(3.25, 3.25)], dtype=torch.float64, requires_grad=True)
    (level,) = assign(Targets(rows), ONE_ANCHOR, GRID)
    assert not level.box.requires_grad


def test_any_mask_counts_not_only_a_prefix() -> None:
    for seed in range(40):
        case = random_case(seed)
        rows = torch.from_numpy(case.rows)
        valid = torch.from_numpy(np.random.default_rng(seed).random(len(rows)) < 0.5)
        masked = assign(Targets(rows, valid), case.anchors, case.grids)
        alone = assign(Targets(rows[valid]), case.anchors, case.grids)
        numbers = valid.nonzero().flatten()
        for one, other in zip(masked, alone, strict=True):
            for name in ("image", "anchor", "row", "column", "class_index", "box"):
                assert torch.equal(getattr(one, name)[one.valid], getattr(other, name))
            assert torch.equal(one.target[one.valid], numbers[other.target])


def test_order_of_objects_changes_only_the_order_of_candidates() -> None:
    def places(case_rows: np.ndarray, numbers: np.ndarray) -> list[list[tuple[object, ...]]]:
        levels = assign(Targets(torch.from_numpy(case_rows)), case.anchors, case.grids)
        return [
            sorted(
                zip(
                    level.image.tolist(),
                    level.anchor.tolist(),
                    level.row.tolist(),
                    level.column.tolist(),
                    numbers[level.target.numpy()].tolist(),
                    level.class_index.tolist(),
                    map(tuple, level.box.tolist()),
                    strict=True,
                )
            )
            for level in levels
        ]

    for seed in range(40):
        case = random_case(seed)
        order = np.random.default_rng(seed).permutation(len(case.rows))
        assert places(case.rows, np.arange(len(order))) == places(case.rows[order], order)


def test_type_of_the_targets_does_not_decide() -> None:
    # Centres on borders in float32 numbers: the decision is that of exact arithmetic on the numbers given.
    for seed in range(60):
        case = random_case(seed)
        rows32 = case.rows.astype(np.float32)
        case64 = replace(case, rows=rows32.astype(np.float64))
        narrow = assign(Targets(torch.from_numpy(rows32)), case.anchors, case.grids)
        wide = assign(case64.targets(), case.anchors, case.grids)
        for one, other in zip(narrow, wide, strict=True):
            for name in ("image", "anchor", "row", "column", "target", "class_index"):
                assert torch.equal(getattr(one, name), getattr(other, name))
