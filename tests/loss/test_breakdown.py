"""`break_down`: what it adds up to, and single contributions worked by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets, paired_iou
from anchorite.errors import InputError
from anchorite.loss import DetectionLoss, LevelBreakdown, LossConfig, LossTerms, assign, break_down
from tests.loss.cases import partly_unknown_case, random_case
from tests.unchecked import unchecked_shapes

PLAIN = {"box_gain": 1.0, "objectness_gain": 1.0, "class_gain": 1.0}
# Two anchors of 2 x 2 and 4 x 4 cells, grid of 4 x 4 cells. The object is 2 x 2 cells around (1.5, 1.5): both match,
# and the centre is nearest to no neighbour, as frac = 0.5 is not under 0.5, so there are two places.
TWO_ANCHORS = AnchorSet.from_rows([[16, 16, 32, 32]], (8,))
OBJECT = [0, 1, 1.5 / 4, 1.5 / 4, 0.5, 0.5]


def targets_of(*rows: list[float]) -> Targets:
    return Targets.from_rows(torch.tensor(rows, dtype=torch.float64).view(-1, 6))


def sums(levels: list[LevelBreakdown]) -> list[float]:
    return [
        sum(getattr(level, term).sum().item() for level in levels) for term in ("box", "objectness", "classification")
    ]


@pytest.fixture
def unchecked() -> Iterator[None]:
    with unchecked_shapes():
        yield


def check_adds_up(levels: list[LevelBreakdown], terms: LossTerms) -> None:
    for found, term in zip(sums(levels), terms[1:], strict=True):
        assert found == pytest.approx(term.item(), rel=1e-13, abs=1e-300)


@pytest.mark.usefixtures("unchecked")
def test_contributions_add_up_to_the_criterions_terms() -> None:
    kinds, options = set(), set()
    for seed in range(100):
        case = partly_unknown_case(seed) if seed % 3 else random_case(seed)
        weights = None if seed % 2 else tuple(np.random.default_rng(seed).uniform(0.2, 3, case.num_classes).tolist())
        criterion = case.criterion(class_weights=weights)
        # Balance as it stands after some steps: asked first, because the criterion moves it on.
        criterion.balance.mul_(torch.linspace(0.5, 1.5, case.anchors.num_levels, dtype=torch.float64))
        before = criterion.balance.clone()
        levels = break_down(criterion, case.leaves(), case.targets(spare=None if seed % 5 else 2), case.coverage())
        assert torch.equal(criterion.balance, before)
        check_adds_up(levels, criterion(case.leaves(), case.targets(), case.coverage()))
        assert not any(tensor.requires_grad for level in levels for tensor in level[1:])
        kinds.add((case.settings.box_iou, case.settings.collision, case.settings.focal_gamma > 0))
        options.add((case.num_classes == 1, len(case.rows) == 0, weights is None))
    assert len(kinds) > 8
    assert {(True, False, True), (False, True, True), (False, False, False)} <= options


def test_places_boxes_and_targets_are_those_of_the_parts() -> None:
    for seed in range(20):
        case = random_case(seed)
        levels = break_down(case.criterion(), case.leaves(), case.targets())
        limit = case.settings.ratio_limit
        for level, found in zip(levels, assign(case.targets(), case.anchors, case.grids, limit), strict=True):
            for name in ("image", "anchor", "row", "column", "target", "class_index", "box"):
                assert torch.equal(getattr(level.assignment, name), getattr(found, name)), name
            assert torch.equal(level.iou, paired_iou(level.predicted, found.box, case.settings.box_iou))
            matched = torch.zeros_like(level.objectness_target, dtype=torch.bool)
            matched[found.image, found.anchor, found.row, found.column] = True
            assert (level.objectness_target[~matched] == 0).all()


def filled(*logits_of_anchors: list[float]) -> Tensor:
    """(1, A, 5 + K, 4, 4) logits, the same in every cell."""
    values = torch.tensor(logits_of_anchors, dtype=torch.float64)
    return values[None, :, :, None, None].expand(1, *values.shape, 4, 4).clone()


def test_contributions_of_one_object_worked_by_hand() -> None:
    # Anchor 0 predicts its own 2 x 2 in the middle of the cell: the object, CIoU = 4 / (4 + eps). Anchor 1 predicts
    # its 4 x 4 there: IoU 4/16, equal centres, equal shapes, so CIoU = 1/4. Two candidates: each is half of the mean.
    criterion = DetectionLoss(TWO_ANCHORS, 2, LossConfig(**{**PLAIN, "box_gain": 2.0, "class_gain": 3.0}))
    logits = filled([0, 0, 0, 0, math.log(3), 0, math.log(3)], [0, 0, 0, 0, 0, math.log(3), 0])
    (level,) = break_down(criterion, [logits], targets_of(OBJECT))
    assert level.assignment.anchor.tolist() == [0, 1]
    assert level.assignment.target.tolist() == [0, 0]
    assert level.predicted.tolist() == [[0.5, 0.5, 2, 2], [0.5, 0.5, 4, 4]]
    assert level.iou.tolist() == pytest.approx([1, 0.25], abs=1e-7)
    assert level.box.tolist() == pytest.approx([0, 2 * 0.75 / 2], abs=1e-7)
    # Classes (0, 1), two candidates of two classes: a quarter of each BCE, times 3. Anchor 0: -log(1/2), -log(3/4).
    # Anchor 1: class 0 wrongly at 3/4, -log(1/4), class 1 at 1/2, -log(1/2).
    expected = [3 / 4 * (math.log(2) + math.log(4 / 3)), 3 / 4 * (math.log(4) + math.log(2))]
    assert level.classification.tolist() == pytest.approx(expected, rel=1e-14)
    # Objectness, balance 4 over 32 places. Background of anchor 0: -log(1/4) each; at the object T = 1: -log(3/4).
    # Anchor 1: log 2 everywhere, whatever the target.
    assert level.objectness_target[0, :, 1, 1].tolist() == pytest.approx([1, 0.25], abs=1e-7)
    assert level.objectness_target.count_nonzero() == 2
    assert level.objectness[0, 0, 0, 3].item() == pytest.approx(4 / 32 * math.log(4), rel=1e-14)
    assert level.objectness[0, 0, 1, 1].item() == pytest.approx(4 / 32 * math.log(4 / 3), rel=1e-6)
    assert level.objectness[0, 1].flatten().tolist() == pytest.approx([4 / 32 * math.log(2)] * 16, rel=1e-14)


def test_a_place_hit_twice_has_the_winners_target_and_both_candidates() -> None:
    # A second object of 4 x 4 cells in the same place: for anchor 0 its CIoU is 1/4, so "last" leaves 1/4 there.
    logits = filled([0.0] * 7, [0.0] * 7)
    bigger = [0, 0, 1.5 / 4, 1.5 / 4, 1.0, 1.0]
    for collision, expected in (("last", 0.25), ("best", 1.0)):
        criterion = DetectionLoss(TWO_ANCHORS, 2, LossConfig(collision=collision))
        (level,) = break_down(criterion, [logits], targets_of(OBJECT, bigger))
        assert level.assignment.target.tolist() == [0, 1, 0, 1]
        assert level.objectness_target[0, 0, 1, 1].item() == pytest.approx(expected, abs=1e-7)
        check_adds_up([level], criterion([logits], targets_of(OBJECT, bigger)))


def test_reduced_precision_is_broken_down_in_float32() -> None:
    criterion = DetectionLoss(TWO_ANCHORS, 2)
    logits = filled([0.3, 0.1, -0.2, 0.4, -3, 1, 0.5], [0.1] * 7).bfloat16()
    (level,) = break_down(criterion, [logits], targets_of(OBJECT))
    assert {tensor.dtype for tensor in level[1:]} == {torch.float32}
    for found, term in zip(sums([level]), criterion([logits], targets_of(OBJECT))[1:], strict=True):
        assert found == pytest.approx(term.item(), rel=1e-5)


def test_a_wrong_number_of_levels_is_refused() -> None:
    with pytest.raises(InputError, match="2 levels of logits for 1 levels"):
        break_down(DetectionLoss(TWO_ANCHORS, 2), [filled([0.0] * 7, [0.0] * 7)] * 2, targets_of())
