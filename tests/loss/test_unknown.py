"""What labels do not know, section 6 of the objective: worked by hand, and what must hold of it.

That the numbers are right in general is held by the slow loop (test_oracle.py), the golden vectors (test_golden.py) and
finite differences (test_gradients.py), which all have cases with weights, regions, coverage and background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.boxes import LabelCoverage, Targets
from anchorite.errors import InputError
from anchorite.loss import DetectionLoss, LevelBreakdown, break_down
from tests import oracle
from tests.loss.cases import Case, partly_unknown_case, random_case
from tests.unchecked import unchecked_shapes

SEEDS = range(40)
EVERYTHING = np.array([[image, 0.5, 0.5, 20.0, 20.0] for image in range(3)])
# Two anchors of 2 x 2 and 4 x 4 cells on a grid of 4 x 4 cells; the object is 2 x 2 cells around (1.5, 1.5).
TWO_ANCHORS = AnchorSet.from_rows([[16, 16, 32, 32]], (8,))
OBJECT = [0.0, 1, 1.5 / 4, 1.5 / 4, 0.5, 0.5]


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    with unchecked_shapes():  # test_oracle.py has them checked, on cases such as these
        yield


def knowing(case: Case, **parts: np.ndarray | None) -> Case:
    return replace(case, unknown=replace(case.unknown, **parts))


def levels_of(case: Case) -> list[LevelBreakdown]:
    return break_down(case.criterion(), case.leaves(), case.targets(), case.coverage())


def terms_of(case: Case) -> list[float]:
    return [term.item() for term in case.package_terms()]


def is_candidate(level: LevelBreakdown) -> torch.Tensor:
    """(B, A, H, W) bool."""
    found, places = level.assignment, torch.zeros_like(level.objectness, dtype=torch.bool)
    places[found.image, found.anchor, found.row, found.column] = True
    return places


def level_of(coverage: LabelCoverage | None, *rows: list[float], weights: list[float] | None = None) -> LevelBreakdown:
    """The only level of the two anchors, all logits 0, with two classes."""
    criterion = DetectionLoss(TWO_ANCHORS, 2)
    targets = torch.tensor(rows, dtype=torch.float64).view(-1, 6)
    of_targets = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    logits = torch.zeros(1, 2, 7, 4, 4, dtype=torch.float64)
    return break_down(criterion, [logits], Targets.from_rows(targets, of_targets), coverage)[0]


def region(*numbers: float) -> LabelCoverage:
    return LabelCoverage(torch.tensor([[0.0, *numbers]], dtype=torch.float64))


def test_a_region_takes_candidates_and_anchors_half_inside_worked_by_hand() -> None:
    # The small anchor: exactly inside at (1, 1), exactly half at its four neighbours, a quarter at the diagonals. The
    # large one has 4 of its 16 cells inside at most, but at (1, 1) its shape would match.
    level = level_of(region(1.5 / 4, 1.5 / 4, 0.5, 0.5))
    ignored = level.objectness_weight[0] == 0
    assert ignored[0].nonzero().tolist() == [[0, 1], [1, 0], [1, 1], [1, 2], [2, 1]]
    assert ignored[1].nonzero().tolist() == [[1, 1]]
    assert (level.objectness[0][ignored] == 0).all()
    # The divisor stays: each of the others costs what it did.
    assert torch.equal(level.objectness[0][~ignored], level_of(None).objectness[0][~ignored])


def test_an_object_in_a_region_stays_positive_and_the_rest_around_it_is_ignored() -> None:
    level, alone = level_of(region(*OBJECT[2:]), OBJECT), level_of(None, OBJECT)
    assert (level.objectness_weight[0, :, 1, 1] == 1).all()
    assert torch.equal(level.objectness[0, :, 1, 1], alone.objectness[0, :, 1, 1])
    assert torch.equal(level.box, alone.box)
    assert level.objectness_weight[0, 0].flatten().tolist().count(0) == 4


def test_a_weight_goes_to_all_three_terms_and_not_into_the_divisors() -> None:
    far = [0.0, 0, 3.5 / 4, 3.5 / 4, 0.5, 0.5]  # with neighbours, so that there are other candidates
    level, whole = level_of(None, OBJECT, far, weights=[0.25, 1.0]), level_of(None, OBJECT, far)
    factor = torch.where(level.assignment.target == 0, 0.25, 1.0)
    torch.testing.assert_close(level.box, factor * whole.box, rtol=1e-15, atol=0)
    torch.testing.assert_close(level.classification, factor * whole.classification, rtol=1e-15, atol=0)
    assert (level.objectness_weight[0, :, 1, 1] == 0.25).all()
    assert level.objectness_weight.sum().item() == 32 - 2 * 0.75


def test_a_weight_of_nothing_is_neither_positive_nor_negative() -> None:
    level = level_of(None, OBJECT, weights=[0.0])
    assert level.objectness_weight[0, :, 1, 1].tolist() == [0, 0]
    assert level.box.tolist() == level.classification.tolist() == [0, 0]
    assert len(level.assignment.target) == 2


def test_background_counts_by_the_cell_of_the_grid_that_holds_the_middle() -> None:
    grid = torch.tensor([[[0.5, 1.0, 0.0]]], dtype=torch.float64)  # columns of 4/3 cells
    level = level_of(LabelCoverage(background_weight=grid), OBJECT)
    for anchor in range(2):
        expected = [[0.5, 1, 1, 0]] * 4
        found = level.objectness_weight[0, anchor].clone()
        assert found[1, 1] == 1
        assert found.tolist() == expected


def test_classes_that_are_not_covered_cost_nothing_and_do_not_change_the_divisor() -> None:
    level = level_of(LabelCoverage(covered_classes=torch.tensor([[False, True]])), OBJECT)
    torch.testing.assert_close(level.classification, level_of(None, OBJECT).classification / 2, rtol=1e-15, atol=0)


def test_each_object_goes_by_its_own_source() -> None:
    covered = torch.tensor([[True, True], [False, True], [True, False]])
    rows = torch.tensor([OBJECT, [*OBJECT[:1], 0.0, *OBJECT[2:]]], dtype=torch.float64)
    targets = Targets.from_rows(rows, sources=torch.tensor([1, 0]))
    logits = torch.zeros(1, 2, 7, 4, 4, dtype=torch.float64)
    criterion = DetectionLoss(TWO_ANCHORS, 2)
    (level,) = break_down(criterion, [logits], targets, LabelCoverage(covered_classes=covered))
    cost = {target: level.classification[level.assignment.target == target][0].item() for target in (0, 1)}
    assert cost[1] == pytest.approx(2 * cost[0])


def test_a_region_over_everything_leaves_no_negative() -> None:
    for seed in SEEDS:
        case = knowing(random_case(seed), regions=EVERYTHING[: random_case(seed).num_images])
        for level in levels_of(case):
            assert torch.equal(level.objectness_weight != 0, is_candidate(level))


def test_a_weight_of_nothing_ignores_the_candidates_that_a_region_would() -> None:
    compared = 0
    for seed in SEEDS:
        case = random_case(seed)
        nothing = knowing(case, weights=np.zeros(len(case.rows)))
        as_regions = knowing(replace(case, rows=case.rows[:0]), regions=case.rows[:, [0, 2, 3, 4, 5]])
        for weightless, ignored in zip(levels_of(nothing), levels_of(as_regions), strict=True):
            taken = is_candidate(weightless)
            assert torch.equal(weightless.objectness_weight == 0, taken)
            assert (ignored.objectness_weight[taken] == 0).all()
            compared += int(taken.sum())
        terms = terms_of(nothing)
        assert terms[1] == terms[3] == 0
    assert compared > 100


def test_all_known_is_the_same_as_nothing_given_to_the_last_bit() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        all_known = oracle.Unknown(
            weights=np.ones(len(case.rows)),
            regions=np.array([[0, 0.5, 0.5, 0.0, 0.7], [0, 0.2, 0.1, 0.0, 0.0]]),
            covered=np.ones((case.num_images, case.num_classes), dtype=bool),
            background=np.ones(case.num_images),
        )
        for dtype in (torch.float64, torch.float32):
            totals, gradients = [], []
            for one in (case, replace(case, unknown=all_known)):
                leaves = one.leaves(dtype)
                totals.append(one.criterion()(leaves, one.targets(dtype), one.coverage(dtype)).total)
                gradients += torch.autograd.grad(totals[-1], leaves)
            assert torch.equal(*totals)
            half = len(gradients) // 2
            assert all(map(torch.equal, gradients[:half], gradients[half:]))


def test_order_and_repetition_of_regions_do_not_count() -> None:
    for seed in SEEDS:
        case = partly_unknown_case(seed)
        if case.unknown.regions is None:
            continue
        again = np.concatenate([case.unknown.regions[::-1], case.unknown.regions])
        assert terms_of(knowing(case, regions=again)) == terms_of(case)


def test_many_regions_are_those_of_a_few_at_a_time() -> None:
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        case = replace(random_case(seed), rows=random_case(seed).rows[:0])
        many = np.column_stack([rng.integers(case.num_images, size=70), rng.uniform(0, 0.5, (70, 4))])
        parts = [levels_of(knowing(case, regions=part)) for part in np.split(many, 7)]
        for number, level in enumerate(levels_of(knowing(case, regions=many))):
            expected = torch.stack([part[number].objectness_weight for part in parts]).amin(dim=0)
            assert torch.equal(level.objectness_weight, expected)


def test_what_does_not_fit_is_refused_in_words() -> None:
    criterion, logits = DetectionLoss(TWO_ANCHORS, 2), [torch.zeros(1, 2, 7, 4, 4)]
    targets = Targets.from_rows(torch.tensor([OBJECT]))
    wrong = {
        "object 0 of image 0 has class 1": LabelCoverage(covered_classes=torch.tensor([[True, False]])),
        "covered_classes of 3 classes, and there are 2": LabelCoverage(covered_classes=torch.ones(1, 3) > 0),
        "background_weight for 2 images, and the batch has 1": LabelCoverage(background_weight=torch.ones(2)),
    }
    for message, coverage in wrong.items():
        for function in (criterion, lambda *given: break_down(criterion, *given)):
            with pytest.raises(InputError, match=message):
                function(logits, targets, coverage)
    for name, tensor in (
        ("ignore_regions", torch.zeros(2, 4)),
        ("ignore_regions", torch.zeros(2, 5, dtype=torch.int64)),
        ("covered_classes", torch.zeros(1, 2)),
        ("background_weight", torch.zeros(1, 2)),
    ):
        with pytest.raises(InputError, match=name):
            LabelCoverage(**{name: tensor})
    for name, column in (("weights", torch.zeros(2)), ("sources", torch.zeros(2, dtype=torch.int64))):
        with pytest.raises(InputError, match=f"{name} of"):
            Targets.from_rows(torch.tensor([OBJECT]), **{name: column})
    with pytest.raises(InputError, match="weights must be floating point"):
        Targets.from_rows(torch.tensor([OBJECT]), torch.ones(1, dtype=torch.int64))


def test_padding_and_moving_keep_what_goes_with_each_row() -> None:
    targets = Targets.from_rows(torch.tensor([OBJECT] * 2), torch.tensor([0.5, 1.0]), sources=torch.tensor([2, 1]))
    padded = targets.padded(5)
    assert padded.weights.tolist() == [0.5, 1, 0, 0, 0]
    assert padded.sources.tolist() == [2, 1, 0, 0, 0]
    again = padded.to("cpu").compact()
    assert (again.weights.tolist(), again.sources.tolist()) == ([0.5, 1.0], [2, 1])
    regions = LabelCoverage(torch.ones(2, 5), background_weight=torch.ones(1)).padded(3)
    assert regions.ignore_regions.tolist() == [[1.0] * 5, [1.0] * 5, [0.0] * 5]
    with pytest.raises(InputError, match="raise it"):
        regions.padded(2)
