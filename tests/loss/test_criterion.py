"""`DetectionLoss`: losses worked by hand, what is reported, options, state, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.errors import InputError
from anchorite.loss import DetectionLoss, LossConfig
from tests.loss.cases import Case, random_case

ONE_ANCHOR = AnchorSet.from_rows([[16, 16]], (8,))  # 2 x 2 cells
LOG2 = math.log(2)
MIDDLE = [0, 0, 1.5 / 2, 1.5 / 2, 1.0, 1.0]  # in the middle of cell (1, 1) of a 2 x 2 grid, 2 x 2 cells
PLAIN = {"box_gain": 1.0, "objectness_gain": 1.0, "class_gain": 1.0}


def level(num_classes: int, size: int = 2, fill: float = 0.0) -> Tensor:
    return torch.full((1, 1, 5 + num_classes, size, size), fill, dtype=torch.float64, requires_grad=True)


def targets_of(*rows: list[float]) -> Targets:
    return Targets.from_rows(torch.tensor(rows, dtype=torch.float64).view(-1, 6))


def criterion_of(num_classes: int, anchors: AnchorSet = ONE_ANCHOR, **options: object) -> DetectionLoss:
    return DetectionLoss(anchors, num_classes, LossConfig(**{**PLAIN, **options}))


def test_perfect_box_worked_by_hand() -> None:
    # Logits 0 decode to the middle of the cell and the anchor itself: the very target, CIoU = 4 / (4 + eps).
    # Balance of a single level is 4. Objectness: BCE(0, T) = log 2 whatever T. Classes: BCE(0, .) = log 2.
    terms = criterion_of(3)([level(3)], targets_of(MIDDLE))
    assert terms.box.item() == pytest.approx(1 - 4 / (4 + 1e-7), abs=1e-15)
    assert terms.objectness.item() == pytest.approx(4 * LOG2, rel=1e-14)
    assert terms.classification.item() == pytest.approx(LOG2, rel=1e-14)
    assert terms.total.item() == pytest.approx(5 * LOG2 + 2.5e-8, rel=1e-9)


def test_box_term_worked_by_hand() -> None:
    # The box of logits 0 is the 2 x 2 anchor around the middle of its cell. Against 4 x 2 there: IoU = 1/2, equal
    # centres, CIoU = 0.496751871 (worked out in tests/boxes/test_iou.py).
    terms = criterion_of(1)([level(1)], targets_of([0, 0, 1.5 / 2, 1.5 / 2, 2.0, 1.0]))
    assert terms.box.item() == pytest.approx(1 - 0.496751871, abs=2e-8)


def test_objectness_worked_by_hand() -> None:
    # Four places with logit log 3, p = 3/4. Three are empty: -log(1/4) = 1.386294361. At the match T = CIoU =
    # 0.496751871: -(T log(3/4) + (1 - T) log(1/4)) = 0.496751871 * 0.287682072 + 0.503248129 * 1.386294361
    # = 0.142906609 + 0.697650043 = 0.840556652. Mean (3 * 1.386294361 + 0.840556652) / 4 = 1.249859934; times 4.
    logits = level(1).detach().clone()
    logits[:, :, 4] = math.log(3)
    row = [0, 0, 1.5 / 2, 1.5 / 2, 2.0, 1.0]
    terms = criterion_of(1)([logits], targets_of(row))
    assert terms.objectness.item() == pytest.approx(4 * 1.249859934, rel=1e-7)
    # gr = 0: T = 1 there, -log(3/4); positive places twice as heavy.
    terms = criterion_of(1, objectness_iou_ratio=0.0, objectness_pos_weight=2.0)([logits], targets_of(row))
    assert terms.objectness.item() == pytest.approx(3 * math.log(4) + 2 * math.log(4 / 3), rel=1e-12)
    # gr = 1/2: T = (1 + CIoU) / 2 = 0.748375936.
    terms = criterion_of(1, objectness_iou_ratio=0.5)([logits], targets_of(row))
    expected = 3 * math.log(4) + 0.748375936 * math.log(4 / 3) + 0.251624064 * math.log(4)
    assert terms.objectness.item() == pytest.approx(expected, rel=1e-7)


def test_negative_overlap_gives_an_objectness_target_of_zero() -> None:
    # A predicted box of almost no size in the corner of its cell, far from the centre of a large one: CIoU < 0.
    logits = level(1).detach().clone()
    logits[:, :, :4] = -30.0
    terms = criterion_of(1)([logits], targets_of(MIDDLE))
    assert terms.box.item() > 1
    assert terms.objectness.item() == pytest.approx(4 * LOG2, rel=1e-14)
    logits[:, :, 4] = 1.0  # where T matters: all four places are empty ones
    terms = criterion_of(1)([logits], targets_of(MIDDLE))
    assert terms.objectness.item() == pytest.approx(4 * math.log1p(math.e), rel=1e-14)


def test_class_term_worked_by_hand() -> None:
    # Logits log 3 and 0 of two classes, the object is of class 0: (-log(3/4) + log 2) / 2.
    logits = level(2).detach().clone()
    logits[:, :, 5] = math.log(3)
    of_class = [targets_of([0, number, *MIDDLE[2:]]) for number in (0, 1)]
    found = criterion_of(2)([logits], of_class[0]).classification.item()
    assert found == pytest.approx((math.log(4 / 3) + LOG2) / 2, rel=1e-14)
    found = criterion_of(2)([logits], of_class[1]).classification.item()
    assert found == pytest.approx((math.log(4) + LOG2) / 2, rel=1e-14)
    # Smoothing 0.2: targets 0.9 and 0.1.
    found = criterion_of(2, label_smoothing=0.2)([logits], of_class[0]).classification.item()
    assert found == pytest.approx((0.9 * math.log(4 / 3) + 0.1 * math.log(4) + LOG2) / 2, rel=1e-14)
    # Positive weight 3: three times -log(3/4); the other class is negative.
    found = criterion_of(2, class_pos_weight=3.0)([logits], of_class[0]).classification.item()
    assert found == pytest.approx((3 * math.log(4 / 3) + LOG2) / 2, rel=1e-14)


def test_focal_factor_worked_by_hand() -> None:
    # gamma 2. Class 0 positive at p = 3/4: 0.25 * (1/4)^2 * log(4/3); class 1 negative at p = 1/2: 0.75 * (1/2)^2 *
    # log 2. Objectness, empty at p = 1/2: 0.75 / 4 * log 2; the match has T = 1 (gr = 0): 0.25 / 4 * log 2.
    logits = level(2).detach().clone()
    logits[:, :, 5] = math.log(3)
    terms = criterion_of(2, focal_gamma=2.0, objectness_iou_ratio=0.0)([logits], targets_of(MIDDLE))
    assert terms.classification.item() == pytest.approx((math.log(4 / 3) / 64 + 0.1875 * LOG2) / 2, rel=1e-13)
    assert terms.objectness.item() == pytest.approx((3 * 0.75 + 0.25) / 4 * LOG2, rel=1e-13)


def test_soft_targets_are_in_the_focal_factor() -> None:
    # Smoothing 0.2 gives t = 0.9, p = 3/4: p_t = 0.9 * 0.75 + 0.1 * 0.25 = 0.7; factor (0.225 + 0.075) * 0.3^1.5.
    logits = level(2).detach().clone()
    logits[:, :, 5] = math.log(3)
    config = {"focal_gamma": 1.5, "label_smoothing": 0.2}
    found = criterion_of(2, **config)([logits], targets_of(MIDDLE)).classification.item()
    positive = (0.9 * math.log(4 / 3) + 0.1 * math.log(4)) * (0.9 * 0.25 + 0.1 * 0.75) * 0.3**1.5
    # The other: t = 0.1, p = 1/2, p_t = 1/2; factor (0.025 + 0.675) * 0.5^1.5.
    negative = LOG2 * (0.1 * 0.25 + 0.9 * 0.75) * 0.5**1.5
    assert found == pytest.approx((positive + negative) / 2, rel=1e-13)


def two_boxes_at_one_place() -> tuple[Tensor, Targets]:
    """Logits whose decoded box is the first object; the second, in the same place, overlaps it less."""
    logits = level(1).detach().clone()
    logits[:, :, 4] = 2.0
    return logits, targets_of(MIDDLE, [0, 0, 1.5 / 2, 1.5 / 2, 2.0, 1.0])


@pytest.mark.parametrize(("collision", "overlap"), [("last", 0.496751871), ("best", 1.0)])
def test_collision_worked_by_hand(collision: str, overlap: float) -> None:
    logits, targets = two_boxes_at_one_place()
    terms = criterion_of(1, collision=collision)([logits], targets)
    empty, there = math.log1p(math.exp(2)), math.log1p(math.exp(2)) - 2 * overlap
    assert terms.objectness.item() == pytest.approx(3 * empty + there, rel=1e-6)


def test_last_in_canonical_order_is_by_offset_before_object() -> None:
    # Object 1 has its centre in cell (0, 0), object 0 in cell (1, 0) of a 4 x 4 grid and reaches (0, 0) as its left
    # neighbour: the left neighbour comes after every centre, so object 0 wins there although it is the first.
    rows = [[0, 0, 1.25 / 4, 0.5 / 4, 2 / 4, 2 / 4], [0, 0, 0.5 / 4, 0.5 / 4, 2 / 4, 4 / 4]]
    logits = level(1, size=4).detach().clone()
    logits[..., 4, 0, 0] = 2.0
    found = criterion_of(1)([logits], targets_of(*rows)).objectness.item()
    # At (0, 0) the prediction is 2 x 2 about (0.5, 0.5), object 0 the same about (1.25, 0.5): overlap 1.25 x 2 = 2.5,
    # union 5.5, enclosing 2.75 x 2; DIoU = 2.5/5.5 - 0.5625 / (7.5625 + 4) = 0.454545 - 0.048649 = 0.405897.
    expected = (15 * LOG2 + math.log1p(math.exp(2)) - 2 * 0.405897) / 16 * 4
    assert found == pytest.approx(expected, rel=1e-6)


def test_total_is_the_sum_of_the_terms_times_the_batch() -> None:
    for seed in range(30):
        case = random_case(seed)
        terms = case.package_terms()
        parts = terms.box + terms.objectness + terms.classification
        assert terms.total.item() == pytest.approx(parts.item() * case.num_images, rel=1e-14)
        assert terms.total.requires_grad
        assert not any(part.requires_grad for part in terms[1:])
        assert {part.shape for part in terms} == {torch.Size([])}
        assert {part.dtype for part in terms} == {torch.float64}


def test_gains_scale_their_term_alone() -> None:
    case = next(case for case in map(random_case, range(100)) if case.num_classes > 1 and len(case.rows) > 3)
    case = case.with_settings(box_gain=1.0, objectness_gain=1.0, class_gain=1.0, automatic_balance=False)
    plain = case.package_terms()
    assert min(part.item() for part in plain[1:]) > 0
    gained = case.with_settings(box_gain=2.0, objectness_gain=3.0, class_gain=5.0).package_terms()
    for one, other, gain in zip(plain[1:], gained[1:], (2.0, 3.0, 5.0), strict=True):
        assert other.item() == pytest.approx(gain * one.item(), rel=1e-14)


@pytest.mark.parametrize(
    ("num_levels", "expected"),
    [
        (1, [4.0]),
        (2, [4.0, 1.0]),
        (3, [4.0, 1.0, 0.4]),
        (4, [4.0, 1.0, 0.25, 0.06]),
        (5, [4.0, 1.0, 0.25, 0.06, 0.02]),
    ],
)
def test_first_balance(num_levels: int, expected: list[float]) -> None:
    strides = tuple(8 * 2**number for number in range(num_levels))
    anchors = AnchorSet.from_rows([[2 * stride, 2 * stride] for stride in strides], strides)
    criterion = DetectionLoss(anchors, 2, LossConfig())
    assert criterion.balance.tolist() == expected
    # One level's logits at 0 and the others so low that they cost nothing: what remains is its balance times log 2.
    for number in range(num_levels):
        logits = [torch.full((1, 1, 7, 2, 2), 0.0 if other == number else -200.0) for other in range(num_levels)]
        found = criterion(logits, targets_of()).objectness.item()
        assert found == pytest.approx(expected[number] * LOG2, rel=1e-6)


def balanced_levels(strides: tuple[int, ...]) -> tuple[DetectionLoss, list[Tensor]]:
    anchors = AnchorSet.from_rows([[2 * stride, 2 * stride] for stride in strides], strides)
    criterion = DetectionLoss(anchors, 1, LossConfig(automatic_balance=True))
    return criterion, [
        torch.full((1, 1, 6, 2, 2), float(number), dtype=torch.float64) for number in range(len(strides))
    ]


@pytest.mark.parametrize(
    ("strides", "pivot"), [((8, 16, 32), 1), ((32, 64), 0), ((4, 8), 1), ((16,), 0), ((2, 4, 20), 2)]
)
def test_automatic_balance_worked_by_hand(strides: tuple[int, ...], pivot: int) -> None:
    criterion, logits = balanced_levels(strides)
    expected = criterion.balance.tolist()
    for _ in range(3):
        terms = criterion(logits, targets_of())
        losses = [math.log1p(math.exp(number)) for number in range(len(strides))]
        # The loss of a call has the balance from before it.
        weighed = sum(weight * loss for weight, loss in zip(expected, losses, strict=True))
        assert terms.objectness.item() == pytest.approx(weighed, rel=1e-13)
        raised = [0.9999 * weight + 0.0001 / loss for weight, loss in zip(expected, losses, strict=True)]
        expected = [weight / raised[pivot] for weight in raised]
        assert criterion.balance.tolist() == pytest.approx(expected, rel=1e-14)
    assert criterion.balance[pivot].item() == 1.0


def test_balance_is_state_and_goes_on_where_it_was() -> None:
    criterion, logits = balanced_levels((8, 16, 32))
    criterion(logits, targets_of())
    state = {name: value.clone() for name, value in criterion.state_dict().items()}
    assert "balance" in state
    other, _ = balanced_levels((8, 16, 32))
    other.load_state_dict(state)
    for one in (criterion, other):
        one(logits, targets_of())
    assert torch.equal(criterion.balance, other.balance)
    assert not torch.equal(state["balance"], criterion.balance)


def test_balance_stays_without_the_option_and_in_evaluation() -> None:
    for automatic in (False, True):
        criterion, logits = balanced_levels((8, 16, 32))
        if automatic:
            criterion.eval()
        else:
            criterion = DetectionLoss(criterion.anchors, 1, LossConfig())
        criterion(logits, targets_of())
        assert criterion.balance.tolist() == [4.0, 1.0, 0.4]


def test_backward_after_automatic_balance_uses_the_balance_of_the_call() -> None:
    _, values = balanced_levels((8, 16, 32))
    gradients = []
    for automatic in (False, True):
        criterion = DetectionLoss(balanced_levels((8, 16, 32))[0].anchors, 1, LossConfig(automatic_balance=automatic))
        leaves = [value.clone().requires_grad_() for value in values]
        gradients.append(torch.autograd.grad(criterion(leaves, targets_of()).total, leaves))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_class_weights_weigh_the_classes_of_the_mean() -> None:
    case = next(case for case in map(random_case, range(100)) if case.num_classes == 3 and len(case.rows) > 3)
    alone = []
    for number in range(3):
        weights = tuple(float(number == other) for other in range(3))
        alone.append(case.criterion(class_weights=weights)(case.leaves(), case.targets()))
    plain = case.package_terms()
    assert plain.classification.item() > 0
    assert sum(one.classification.item() for one in alone) == pytest.approx(plain.classification.item(), rel=1e-13)
    weighed = case.criterion(class_weights=(2.0, 0.5, 3.0))(case.leaves(), case.targets(spare=2))
    expected = sum(weight * one.classification.item() for weight, one in zip((2.0, 0.5, 3.0), alone, strict=True))
    assert weighed.classification.item() == pytest.approx(expected, rel=1e-13)
    assert weighed.objectness.item() == pytest.approx(plain.objectness.item(), rel=1e-14)


@dataclass
class Recorded:
    """Answers the two questions, and nothing else, from a dense tensor, place by place."""

    values: Tensor

    def objectness(self) -> Tensor:
        return self.values[:, :, 4].clone()

    def at(self, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return self.values[image, anchor, :, row, column]


@pytest.mark.parametrize("spare", [None, 3])
def test_anything_that_answers_the_two_questions_will_do(spare: int | None) -> None:
    for seed in range(30):
        case = random_case(seed)
        found = []
        for wrap in (Recorded, lambda values: values):
            leaves = case.leaves()
            terms = case.criterion()([wrap(leaf) for leaf in leaves], case.targets(spare=spare))
            found.append((terms.total, torch.autograd.grad(terms.total, leaves)))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-13, atol=0)
        for one, other in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-13 * other.abs().max().item())


def test_defaults_are_those_of_the_page() -> None:
    assert LossConfig().model_dump() == {
        "box_gain": 0.05,
        "objectness_gain": 1.0,
        "class_gain": 0.5,
        "ratio_limit": 4.0,
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "class_pos_weight": 1.0,
        "objectness_pos_weight": 1.0,
        "objectness_iou_ratio": 1.0,
        "automatic_balance": False,
        "collision": "last",
        "box_iou": "ciou",
        "class_weights": None,
    }


def test_scaled_gains_worked_by_hand() -> None:
    # L = 4, K = 20, 1280 px: 3/4; 20/80 * 3/4; (1280/640)^2 * 3/4.
    scaled = LossConfig(label_smoothing=0.1).scaled(4, 20, 1280)
    assert scaled.box_gain == pytest.approx(0.05 * 0.75)
    assert scaled.class_gain == pytest.approx(0.5 * 0.25 * 0.75)
    assert scaled.objectness_gain == pytest.approx(3.0)
    assert scaled.label_smoothing == 0.1
    assert LossConfig().scaled(3, 80, 640) == LossConfig()


@pytest.mark.parametrize(
    "options",
    [
        {"box_gain": -1.0},
        {"box_gain": math.nan},
        {"ratio_limit": 1.0},
        {"ratio_limit": math.inf},
        {"label_smoothing": -0.1},
        {"label_smoothing": 1.5},
        {"focal_gamma": -1.0},
        {"objectness_iou_ratio": 1.5},
        {"collision": "first"},
        {"box_iou": "eiou"},
        {"box_gain": "0.05"},
        {"boxgain": 0.05},
    ],
)
def test_config_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LossConfig(**options)  # type: ignore[arg-type]


def test_criterion_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="num_classes"):
        DetectionLoss(ONE_ANCHOR, 0, LossConfig())
    with pytest.raises(InputError, match="class_weights"):
        DetectionLoss(ONE_ANCHOR, 3, LossConfig(class_weights=(1.0, 2.0)))
    with pytest.raises(InputError, match="levels"):
        criterion_of(1)([level(1), level(1)], targets_of())


def test_inputs_are_left_as_they_were() -> None:
    case: Case = random_case(3)
    leaves, targets = case.leaves(), case.targets()
    before = [leaf.detach().clone() for leaf in leaves], targets.rows.clone()
    case.criterion()(leaves, targets).total.backward()
    assert all(torch.equal(leaf.detach(), copy) for leaf, copy in zip(leaves, before[0], strict=True))
    assert torch.equal(targets.rows, before[1])
    assert np.array_equal(targets.rows.numpy(), case.rows)
