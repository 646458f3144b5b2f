"""Finite values and gradients for any finite input, every precision, and bit-equal repetition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.loss import DetectionLoss, LossConfig, LossTerms
from tests import oracle
from tests.loss.cases import Case, random_case
from tests.unchecked import unchecked_shapes

EXTREMES = (-1e4, -104.0, -88.0, -60.0, -45.0, -22.8, -17.0, 0.0, 17.0, 89.0, 1e4)
CONFIGS = [
    {},
    {"box_iou": "diou"},
    {"box_iou": "giou"},
    {"box_iou": "iou"},
    {"focal_gamma": 1.5, "collision": "best"},
    {"focal_gamma": 0.5, "label_smoothing": 0.1, "objectness_iou_ratio": 0.5},
    {"focal_gamma": 2.0, "class_pos_weight": 0.5, "objectness_pos_weight": 2.0},
    {"focal_gamma": 1.0, "label_smoothing": 0.1},
]


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    with unchecked_shapes():  # test_oracle.py has them checked, on cases such as these
        yield


def assert_all_finite(terms: LossTerms, leaves: list[Tensor]) -> None:
    assert all(torch.isfinite(term) for term in terms), terms
    for gradient, leaf in zip(torch.autograd.grad(terms.total, leaves), leaves, strict=True):
        assert torch.isfinite(gradient).all()
        assert gradient.dtype == leaf.dtype
        assert gradient.shape == leaf.shape


def every_pair_of_extremes(dtype: torch.dtype, num_classes: int) -> Tensor:
    """(1, 1, 5 + K, 11, 11): width and height logits run through all pairs, the others through all values."""
    values = torch.tensor(EXTREMES, dtype=torch.float64)
    size = len(values)
    logits = torch.empty(1, 1, 5 + num_classes, size, size, dtype=torch.float64)
    logits[0, 0, 2] = values[:, None]
    logits[0, 0, 3] = values[None, :]
    for number, channel in enumerate([0, 1, 4, *range(5, 5 + num_classes)]):
        logits[0, 0, channel] = values.roll(number + 1)[torch.arange(size * size).view(size, size) % size]
    return logits.to(dtype).requires_grad_()


def targets_everywhere(size: int, side: float) -> Targets:
    """One object in the middle of every cell, with sides in cells."""
    middles = (np.arange(size) + 0.5) / size
    rows = [[0, 0, x, y, side / size, side / size] for x, y in itertools.product(middles, middles)]
    return Targets.from_rows(torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize("options", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1.5, 1e-3, 1e-20, 1e4])
def test_extreme_logits_stay_finite(side: float, dtype: torch.dtype, options: dict[str, object]) -> None:
    anchors, size = AnchorSet.from_rows([[12, 12]], (8,)), len(EXTREMES)
    for num_classes, spare in ((1, None), (3, None), (2, 5)):
        criterion = DetectionLoss(anchors, num_classes, LossConfig(ratio_limit=1e30, **options))
        targets = targets_everywhere(size, side)
        if spare is not None:
            targets = targets.padded(len(targets) + spare)
        leaf = every_pair_of_extremes(dtype, num_classes)
        terms = criterion([leaf], targets)
        assert terms.box.item() > 0
        assert_all_finite(terms, [leaf])


@pytest.mark.parametrize("options", CONFIGS)
@pytest.mark.parametrize("fill", [-1e4, 1e4])
def test_all_logits_at_an_end_stay_finite(fill: float, options: dict[str, object]) -> None:
    for seed in range(5):
        case = random_case(seed).with_settings(**{**options, "ratio_limit": 1e30})
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            leaves = [torch.full_like(leaf, fill, dtype=dtype).requires_grad_() for leaf in case.leaves()]
            assert_all_finite(case.criterion()(leaves, case.targets(dtype=torch.float32, spare=2)), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_automatic_balance_stays_finite_when_a_level_costs_nothing(dtype: torch.dtype) -> None:
    anchors = AnchorSet.coco_p5()
    criterion = DetectionLoss(anchors, 2, LossConfig(automatic_balance=True))
    targets = Targets.from_rows(torch.zeros(0, 6))
    for fills in ((-1e4, -1e4, -1e4), (-1e4, 0.0, 0.0), (0.0, -1e4, 0.0), (0.0, 0.0, 0.0)):
        leaves = [torch.full((1, 3, 7, 2, 2), fill, dtype=dtype, requires_grad=True) for fill in fills]
        assert_all_finite(criterion(leaves, targets), leaves)
        assert torch.isfinite(criterion.balance).all()
        assert (criterion.balance > 0).all()


@pytest.mark.parametrize("pair", [(-24.0, -30.0), (-30.0, -24.0), (-40.0, -42.0), (-35.0, -35.0), (-23.0, 3.0)])
def test_vanishing_predictions_agree_with_the_slow_loop_in_float32(pair: tuple[float, float]) -> None:
    logits = np.zeros((1, 1, 6, 2, 2), dtype=np.float32)
    logits[:, :, 2], logits[:, :, 3] = pair
    rows = np.array([[0, 0, 0.75, 0.75, 1.0, 0.5]])
    anchors = AnchorSet.from_rows([[16, 12]], (8,))
    case = Case(anchors, ((2, 2),), 1, 1, rows, (logits.astype(np.float64),))
    found = case.criterion()([torch.from_numpy(logits)], case.targets())
    assert found.box.item() == pytest.approx(case.oracle_terms().box, rel=1e-6)
    exact = case.criterion()(case.leaves(), case.targets())
    assert exact.box.item() == pytest.approx(case.oracle_terms().box, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_cost_what_their_rounded_values_cost(dtype: torch.dtype) -> None:
    for seed in range(25):
        case = random_case(seed)
        leaves = case.leaves(dtype)
        wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
        terms = case.criterion()(leaves, case.targets())
        expected = case.criterion()(wide, case.targets())
        for one, other in zip(terms, expected, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        assert_all_finite(case.criterion()(leaves, case.targets()), leaves)
        gradients = torch.autograd.grad(terms.total, leaves)
        for one, other in zip(gradients, torch.autograd.grad(expected.total, wide), strict=True):
            # Rounded once on return; places hit several times add up in the narrow type.
            slack = 8 * torch.finfo(dtype).eps * other.abs().max().item()
            torch.testing.assert_close(one.float(), other, rtol=0, atol=slack)


def test_autocast_changes_nothing() -> None:
    case = random_case(5)
    leaves = case.leaves(torch.float32)
    plain = case.criterion()(leaves, case.targets())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.criterion()(leaves, case.targets())
    assert [term.dtype for term in cast] == [torch.float32] * 4
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


def test_float32_agrees_with_float64() -> None:
    for seed in range(40):
        case = random_case(seed)
        logits = tuple(level.astype(np.float32).astype(np.float64) for level in case.logits)
        case = replace(case, logits=logits, rows=case.rows.astype(np.float32).astype(np.float64))
        # Which IoU is the highest may turn on a rounding; which candidate is the last may not.
        case = case.with_settings(collision="last")
        expected = case.package_terms()
        largest = max(part.item() for part in expected[1:])
        for targets_dtype in (torch.float32, torch.float64):
            found = case.criterion()(case.leaves(torch.float32), case.targets(targets_dtype))
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == torch.float32
                assert abs(one.item() - other.item()) <= 1e-5 * max(largest, abs(other.item()))


def test_every_object_in_a_grid_of_one_cell() -> None:
    anchors = AnchorSet.from_rows([[8, 8, 12, 6], [16, 16, 9, 30]], (8, 16))
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((6, 1)), rng.integers(0, 2, (6, 1)), rng.uniform(0, 1, (6, 4)) + 0.3], axis=1)
    logits = tuple(rng.standard_normal((1, 2, 7, 1, 1)) for _ in range(2))
    case = Case(anchors, ((1, 1), (1, 1)), 1, 2, rows, logits)
    assert case.oracle_terms().box > 0
    assert case.package_terms().total.item() == pytest.approx(case.oracle_terms().total, rel=1e-12)
    leaves = case.leaves()
    assert_all_finite(case.criterion()(leaves, case.targets()), leaves)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def crowded_case() -> Case:
    """Many objects on few places: thousands of candidates of which hundreds share a place."""
    rng = np.random.default_rng(7)
    anchors = AnchorSet.from_rows([[14, 18, 20, 12, 16, 16], [30, 40, 44, 28, 36, 36]], (8, 16))
    count = 500
    rows = np.zeros((count, 6))
    rows[:, 0], rows[:, 1] = rng.integers(0, 4, count), rng.integers(0, 8, count)
    rows[:, 2:4] = rng.uniform(0.4, 0.6, (count, 2))
    rows[:, 4:] = rng.uniform(0.05, 0.3, (count, 2))
    grids = ((24, 24), (12, 12))
    logits = tuple(rng.standard_normal((4, 3, 13, h, w)) for h, w in grids)
    return Case(anchors, grids, 4, 8, rows, logits)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("collision", ["last", "best"])
@pytest.mark.parametrize("spare", [None, 40])
def test_repetition_is_bit_equal_on_two_threads(spare: int | None, collision: str) -> None:
    case = crowded_case().with_settings(collision=collision)
    found = oracle.candidates(case.rows, case.anchors_cells[0], 24, 24)
    places = {(one.image, one.anchor, one.row, one.column) for one in found}
    assert len(found) > 3000
    assert len(found) > 5 * len(places)
    criterion, targets, leaves = case.criterion(), case.targets(torch.float32, spare), case.leaves(torch.float32)
    seen = set()
    for _ in range(10):
        total = criterion(leaves, targets).total
        gradients = torch.autograd.grad(total, leaves)
        seen.add((total.item(), *(gradient.numpy().tobytes() for gradient in gradients)))
    assert len(seen) == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("collision", ["last", "best"])
def test_crowded_places_agree_with_the_slow_loop(collision: str) -> None:
    case = crowded_case().with_settings(collision=collision, objectness_iou_ratio=1.0)
    expected = case.oracle_terms()
    for spare in (None, 10):
        terms = case.package_terms(spare)
        assert terms.total.item() == pytest.approx(expected.total, rel=1e-12)
        assert terms.objectness.item() == pytest.approx(expected.objectness, rel=1e-12)


class ReversedWrites(TorchDispatchMode):
    """Carries out writes by index last to first, as a device is free to do."""

    num_writes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name, options = func.overloadpacket, kwargs or {}
        if name in (torch.ops.aten.scatter, torch.ops.aten.scatter_) and isinstance(args[3], Tensor):
            self.num_writes += 1
            args = (*args[:2], args[2].flip(0), args[3].flip(0), *args[4:])
        elif name in (torch.ops.aten.index_put, torch.ops.aten.index_put_) and args[2].ndim and not any(args[3:]):
            self.num_writes += 1
            args = (args[0], [index.flip(0) for index in args[1]], args[2].flip(0), *args[3:])
        return func(*args, **options)


@pytest.mark.parametrize("collision", ["last", "best"])
@pytest.mark.parametrize("spare", [None, 10])
def test_no_order_of_writing_decides_a_collision(spare: int | None, collision: str) -> None:
    case = crowded_case().with_settings(collision=collision)
    expected = case.package_terms(spare)
    with ReversedWrites() as writes:
        found = case.package_terms(spare)
    assert writes.num_writes >= len(case.grids)
    assert torch.equal(found.objectness, expected.objectness)
