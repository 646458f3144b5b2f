"""Gradients of the total loss: gradcheck where nothing is held constant, finite differences where something is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from tests import oracle
from tests.loss.cases import Case
from tests.unchecked import unchecked_shapes

ANCHORS = AnchorSet.from_rows([[12, 10], [30, 28]], (8, 16))
GRIDS = ((2, 3), (1, 2))


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    with unchecked_shapes():  # test_oracle.py has them checked, on cases such as these
        yield


def tiny_case(num_classes: int, seed: int = 0, **options: object) -> Case:
    """Two levels of 6 and 2 cells, three objects with neighbours, two of them in one place."""
    rng = np.random.default_rng(seed)
    rows = np.array(
        [
            [0, 0, 1.3 / 3, 1.2 / 2, 1.4 / 3, 1.1 / 2],
            [0, num_classes - 1, 1.2 / 3, 1.1 / 2, 1.9 / 3, 1.6 / 2],
            [1, 0, 0.7 / 3, 0.4 / 2, 2.6 / 3, 1.5 / 2],
        ]
    )
    logits = tuple(rng.standard_normal((2, 1, 5 + num_classes, h, w)) for h, w in GRIDS)
    return Case(ANCHORS, GRIDS, 2, num_classes, rows, logits, oracle.Settings(**options))


def partly_unknown(case: Case) -> Case:
    """The same case with weights, a region, a class that is not covered, and a weak background."""
    covered = np.ones((2, case.num_classes), dtype=bool)
    covered[1, case.num_classes - 1] = case.num_classes == 1
    unknown = oracle.Unknown(
        weights=np.array([1.0, 0.3, 0.7]),
        regions=np.array([[0, 0.8, 0.5, 0.4, 0.9]]),
        covered=covered,
        background=np.array([1.0, 0.5]),
    )
    return replace(case, unknown=unknown)


def package_gradients(case: Case, spare: int | None = None) -> list[np.ndarray]:
    leaves = case.leaves()
    total = case.criterion()(leaves, case.targets(spare=spare), case.coverage(spare=spare)).total
    return [gradient.numpy() for gradient in torch.autograd.grad(total, leaves)]


SETTINGS = [
    {},
    {"objectness_iou_ratio": 0.5, "collision": "best"},
    {"box_iou": "giou", "label_smoothing": 0.1},
    {"focal_gamma": 1.5, "objectness_pos_weight": 2.0, "class_pos_weight": 0.5},
    {"focal_gamma": 0.5, "label_smoothing": 0.2, "automatic_balance": True},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("is_known", [True, False])
def test_gradients_are_finite_differences_with_the_constants_held(
    num_classes: int, options: dict[str, object], is_known: bool
) -> None:
    """Alpha and the objectness targets are constants: the slow loop keeps them while one logit moves."""
    case, step = tiny_case(num_classes, **options), 1e-5
    if not is_known:
        case = partly_unknown(case)

    def total(logits: list[np.ndarray]) -> float:
        return case.oracle_terms(logits=logits).total

    for spare in (None, 2):
        found = package_gradients(case, spare)
        largest = max(np.abs(gradient).max() for gradient in found)
        for number, gradient in enumerate(found):
            for index in np.ndindex(gradient.shape):
                moved = [[level.copy() for level in case.logits] for _ in "+-"]
                moved[0][number][index] += step
                moved[1][number][index] -= step
                slope = (total(moved[0]) - total(moved[1])) / (2 * step)
                assert abs(slope - gradient[index]) < 1e-8 * largest, (number, index)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("iou", {}), ("giou", {}), ("diou", {})),
        ("giou", {"focal_gamma": 1.5, "label_smoothing": 0.1, "objectness_pos_weight": 2.0}),
    ],
)
@pytest.mark.parametrize("spare", [None, 2])
def test_gradcheck_where_nothing_is_held(kind: str, options: dict[str, object], spare: int | None) -> None:
    # With gr = 0 the objectness targets do not depend on the boxes, and only CIoU has an alpha.
    case = partly_unknown(tiny_case(2, box_iou=kind, objectness_iou_ratio=0.0, **options))

    def total(*logits: Tensor) -> Tensor:
        return case.criterion()(list(logits), case.targets(spare=spare), case.coverage(spare=spare)).total

    assert torch.autograd.gradcheck(total, tuple(case.leaves()))


def test_box_and_class_logits_have_gradients_at_matched_places_alone() -> None:
    case, num_matched = tiny_case(2), 0
    for number, gradient in enumerate(package_gradients(case)):
        height, width = GRIDS[number]
        found = oracle.candidates(case.rows, case.anchors_cells[number], height, width)
        matched = np.zeros((2, 1, height, width), dtype=bool)
        for one in found:
            matched[one.image, one.anchor, one.row, one.column] = True
        others = np.abs(np.delete(gradient, 4, axis=2)).max(axis=2)
        assert ((others > 0) == matched).all()
        assert (gradient[:, :, 4] != 0).all()
        num_matched += matched.sum()
    assert 0 < num_matched < 16


def test_without_objects_only_objectness_has_gradients() -> None:
    case = tiny_case(2)
    for spare in (None, 0, 3):
        leaves = case.leaves()
        targets = Targets.from_rows(torch.zeros(0, 6), capacity=spare)
        terms = case.criterion()(leaves, targets)
        assert terms.box.item() == terms.classification.item() == 0
        gradients = torch.autograd.grad(terms.total, leaves)
        for level, gradient, leaf, balance in zip(range(2), gradients, leaves, (4.0, 1.0), strict=True):
            assert gradient[:, :, :4].abs().max() == gradient[:, :, 5:].abs().max() == 0
            # d BCE(x, 0) = sigmoid(x); mean over the places, times balance, times B.
            places = 2 * GRIDS[level][0] * GRIDS[level][1]
            expected = leaf[:, :, 4].detach().sigmoid() * balance * 2 / places
            torch.testing.assert_close(gradient[:, :, 4], expected, rtol=1e-13, atol=0)
