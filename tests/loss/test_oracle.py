"""The package against the slow loop of tests/oracle.py, over generated cases."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from anchorite.loss import Assignment, assign
from tests import oracle
from tests.loss.cases import Case, partly_unknown_case, random_case
from tests.unchecked import unchecked_shapes

FAST, SLOW = range(150), range(150, 450)
NAMES = ("image", "anchor", "row", "column", "target", "class_index")


def rows_of(found: Assignment) -> list[tuple[int, ...]]:
    columns = (getattr(found, name)[found.valid].tolist() for name in NAMES)
    return list(zip(*columns, strict=True))


def check_assignment(case: Case, spares: tuple[int | None, ...]) -> int:
    limit = case.settings.ratio_limit
    expected_by_level = [
        oracle.candidates(case.rows, case.anchors_cells[level], height, width, limit)
        for level, (height, width) in enumerate(case.grids)
    ]
    for spare in spares:
        levels = assign(case.targets(spare=spare), case.anchors, list(case.grids), limit)
        for level, expected in zip(levels, expected_by_level, strict=True):
            assert rows_of(level) == [tuple(one[:6]) for one in expected], spare
            boxes = level.box[level.valid].numpy()
            assert boxes.dtype == np.float64
            assert np.array_equal(boxes, np.array([one.box for one in expected]).reshape(-1, 4)), spare
    return sum(map(len, expected_by_level))


def check_loss(case: Case, spares: tuple[int | None, ...]) -> None:
    criteria, balance = [case.criterion() for _ in spares], None
    for _ in range(2 if case.settings.automatic_balance else 1):
        expected = case.oracle_terms(balance)
        balance = expected.balance_after
        for criterion, spare in zip(criteria, spares, strict=True):
            terms = criterion(case.leaves(), case.targets(spare=spare), case.coverage(spare=spare))
            found = [terms.total.item(), terms.box.item(), terms.objectness.item(), terms.classification.item()]
            np.testing.assert_allclose(found, expected[:4], rtol=1e-12, atol=1e-15, err_msg=f"spare rows {spare}")
            np.testing.assert_allclose(criterion.balance.numpy(), balance, rtol=1e-12)


def check_seeds(seeds: range) -> None:
    num_candidates = 0
    for seed in seeds:
        case = partly_unknown_case(seed) if seed % 2 else random_case(seed)
        try:
            num_candidates += check_assignment(case, (None, seed % 3))
            check_loss(case, (None, seed % 3))
        except AssertionError as error:
            raise AssertionError(f"random_case({seed}): {error}") from error
    assert num_candidates > 5 * len(seeds)  # the generated cases do match something


@pytest.mark.parametrize("part", range(3))
def test_generated_cases_agree_with_the_slow_loop(part: int) -> None:
    with unchecked_shapes() if part else nullcontext():
        check_seeds(FAST[part::3])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_many_generated_cases_agree_with_the_slow_loop(part: int) -> None:
    with unchecked_shapes():
        check_seeds(SLOW[part::3])


def test_padded_assignment_keeps_the_shape_whatever_the_boxes() -> None:
    case = random_case(4)
    capacity = len(case.rows) + 6
    shapes = set()
    for rows in (case.rows, case.rows[:1], case.rows[:0]):
        targets = Case(case.anchors, case.grids, case.num_images, case.num_classes, rows, case.logits).targets()
        levels = assign(targets.padded(capacity), case.anchors, list(case.grids))
        shapes.add(tuple(tuple(level.box.shape) for level in levels))
        for level, (height, width) in zip(levels, case.grids, strict=True):
            # Masked rows are read by index too, so they must stay inside the map.
            for index, size in ((level.image, case.num_images), (level.row, height), (level.column, width)):
                assert ((index >= 0) & (index < size)).all()
            assert ((level.anchor >= 0) & (level.anchor < case.anchors.num_anchors)).all()
    assert len(shapes) == 1


def test_gradients_of_compact_and_padded_targets_agree() -> None:
    compared = 0
    for seed in range(60):
        case = partly_unknown_case(seed) if seed % 2 else random_case(seed)
        gradients = []
        for spare in (None, 3):
            leaves = case.leaves()
            with unchecked_shapes():
                total = case.criterion()(leaves, case.targets(spare=spare), case.coverage(spare=spare)).total
            gradients.append(torch.autograd.grad(total, leaves))
        for compact, padded in zip(*gradients, strict=True):
            assert torch.allclose(compact, padded, rtol=0, atol=1e-13 * compact.abs().max().item())
            compared += compact.abs().max().item() > 0
    assert compared > 50
