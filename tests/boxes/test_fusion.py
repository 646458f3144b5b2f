from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.boxes import join_windows, nms, weighted_boxes_fusion
from anchorite.boxes.fusion import SEAM_COVERED, SEAM_SCORE
from tests.boxes.slow_fusion import slow_fusion, slow_join


def fuse(rows, weights=(1.0, 1.0), iou_threshold=0.55):
    """rows: (box, score, class, model); what comes out as lists of boxes, scores and classes."""
    boxes, scores, class_ids, model_ids = zip(*rows, strict=True)
    fused = weighted_boxes_fusion(
        torch.tensor(boxes), torch.tensor(scores), torch.tensor(class_ids), torch.tensor(model_ids),
        torch.tensor(weights), iou_threshold,
    )  # fmt: skip
    return fused.boxes_xyxy.tolist(), fused.scores.tolist(), fused.class_ids.tolist()


A, B = [0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0]  # IoU 80 / 120


def near(values):
    return pytest.approx(values, rel=1e-6)


def test_two_models_that_agree_by_hand():
    boxes, scores, class_ids = fuse([(A, 0.75, 3, 0), (B, 0.25, 3, 1)])
    # Edges: (0.75 * 0 + 0.25 * 2) / 1 and (0.75 * 10 + 0.25 * 12) / 1; score: (0.75 + 0.25) / 2 * min(2, 2) / 2.
    assert boxes == [near([0.5, 0, 10.5, 10])]
    assert scores == [near(0.5)]
    assert class_ids == [3]


def test_what_one_of_two_models_missed_counts_half():
    assert fuse([(A, 0.75, 0, 1)]) == ([near(A)], [near(0.375)], [0])


def test_more_boxes_than_models_count_as_all_models():
    # (0.9 + 0.6 + 0.3) / 3 * min(3, 2) / 2
    assert fuse([(A, 0.9, 0, 0), (A, 0.6, 0, 1), (A, 0.3, 0, 1)])[1] == [near(0.6)]


def test_weights_by_hand():
    boxes, scores, _ = fuse([(A, 0.5, 0, 0), (B, 0.5, 0, 1)], weights=(3.0, 1.0))
    # Edges: (1.5 * 0 + 0.5 * 2) / 2; score: (1.5 + 0.5) / 4 * 4 / 4.
    assert boxes == [near([0.5, 0, 10.5, 10])]
    assert scores == [near(0.5)]
    assert fuse([(A, 0.8, 0, 0)], weights=(3.0, 1.0))[1] == [near(0.6)]  # 0.8 * 3 / 4
    assert fuse([(A, 0.8, 0, 1)], weights=(3.0, 1.0))[1] == [near(0.2)]  # 0.8 * 1 / 4


def test_a_box_is_held_against_the_mean_not_against_the_first():
    # The third overlaps the first by 6 / 14 only, the mean of the first two, 1..11, by 7 / 13, which is above 1 / 2.
    third = [4.0, 0.0, 14.0, 10.0]
    assert fuse([(A, 0.9, 0, 0), (third, 0.5, 0, 1)], iou_threshold=0.5)[1] == [near(0.45), near(0.25)]
    boxes, scores, _ = fuse([(A, 0.9, 0, 0), (B, 0.9, 0, 1), (third, 0.5, 0, 1)], iou_threshold=0.5)
    assert boxes == [near([(0.9 * 0 + 0.9 * 2 + 0.5 * 4) / 2.3, 0, (0.9 * 10 + 0.9 * 12 + 0.5 * 14) / 2.3, 10])]
    assert scores == [near(2.3 / 3)]


def test_a_box_joins_what_it_overlaps_most():
    right = [3.0, 0.0, 13.0, 10.0]  # overlaps A by 7 / 13, too little to be of one object
    between = [1.0, 0.0, 11.0, 10.0]  # A by 9 / 11, the other by 8 / 12
    boxes, _, _ = fuse([(right, 0.9, 0, 0), (A, 0.8, 0, 0), (between, 0.1, 0, 1)])
    assert sorted(boxes) == [near([0.1 / 0.9, 0, 10 + 0.1 / 0.9, 10]), near(right)]


def test_classes_are_not_mixed_and_an_overlap_equal_to_the_limit_is_too_little():
    assert len(fuse([(A, 0.9, 0, 0), (A, 0.8, 1, 1)])[0]) == 2
    lower_half = [0.0, 0.0, 10.0, 5.0]
    assert len(fuse([(A, 0.9, 0, 0), (lower_half, 0.8, 0, 1)], iou_threshold=0.5)[0]) == 2
    assert len(fuse([(A, 0.9, 0, 0), (lower_half, 0.8, 0, 1)], iou_threshold=0.499)[0]) == 1


def test_nothing_and_scores_of_nothing():
    empty = weighted_boxes_fusion(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64),
        torch.ones(3),
    )  # fmt: skip
    assert [tuple(one.shape) for one in empty] == [(0, 4), (0,), (0,)]
    assert fuse([(A, 0.0, 0, 0), (B, 0.0, 0, 1)]) == ([A], [0.0], [0])


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, -2.0), (1.0, float("nan"))])
def test_weights_have_to_be_above_0(weights):
    with pytest.raises(ValueError, match="above 0"):
        fuse([(A, 0.9, 0, 0)], weights)


def random_rows(seed: int, num_boxes: int, num_models: int):
    """Boxes around a few spots, with many equal scores and some copies."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.rand(5, 2, generator=generator) * 60
    centres = spots[torch.randint(5, (num_boxes,), generator=generator)] + torch.randn(
        num_boxes, 2, generator=generator
    )
    sides = 8 + torch.rand(num_boxes, 2, generator=generator) * 8
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    boxes[: num_boxes // 6] = boxes[num_boxes - num_boxes // 6 :]
    scores = (torch.rand(num_boxes, generator=generator) * 20).round() / 20
    classes, models = (torch.randint(n, (num_boxes,), generator=generator) for n in (2, num_models))
    return boxes, scores, classes, models


@settings(max_examples=250)
@given(
    seed=st.integers(0, 2**31),
    num_boxes=st.integers(0, 40),
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.0, 3.0]), min_size=1, max_size=4),
    iou_threshold=st.sampled_from([0.2, 0.55, 0.8]),
)
def test_equals_the_slow_loop(seed, num_boxes, weights, iou_threshold):
    boxes, scores, classes, models = random_rows(seed, num_boxes, len(weights))
    fused = weighted_boxes_fusion(boxes, scores, classes, models, torch.tensor(weights), iou_threshold)
    columns = (boxes.tolist(), scores.tolist(), classes.tolist(), models.tolist())
    expected = slow_fusion(*columns, weights, iou_threshold)
    assert len(fused.scores) == len(expected)
    by_row = sorted(zip(fused.boxes_xyxy.tolist(), fused.scores.tolist(), fused.class_ids.tolist(), strict=True))
    for (box, score, class_id), (slow_box, slow_score, slow_class) in zip(by_row, sorted(expected), strict=True):
        assert box == pytest.approx(slow_box, abs=1e-9)
        assert score == pytest.approx(slow_score, abs=1e-12)
        assert class_id == slow_class
    assert fused.scores.tolist() == sorted(fused.scores.tolist(), reverse=True)


def test_the_unit_of_weights_and_the_order_of_boxes_mean_nothing():
    boxes, _, classes, models = random_rows(7, 60, 3)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([2.0, 1.0, 0.5])
    expected = weighted_boxes_fusion(boxes, scores, classes, models, weights)
    other = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    shuffled = weighted_boxes_fusion(boxes[other], scores[other], classes[other], models[other], weights * 8)
    assert len(expected.scores) < 60
    for one, same in zip(expected, shuffled, strict=True):
        assert torch.equal(one, same)


def join(rows, iou_threshold=0.5, max_detections=100, agnostic=False):
    """rows: (box, score, class, is cut)."""
    boxes, scores, class_ids, is_cut = zip(*rows, strict=True)
    pools = None if agnostic else torch.tensor(class_ids)
    return join_windows(
        torch.tensor(boxes), torch.tensor(scores), pools, torch.tensor(is_cut), iou_threshold, max_detections
    ).tolist()


WHOLE, LEFT_HALF = [0.0, 0.0, 100.0, 40.0], [0.0, 0.0, 50.0, 40.0]


def test_a_cut_box_goes_beside_the_whole_one_even_if_it_is_surer():
    assert join([(LEFT_HALF, 0.9, 0, True), (WHOLE, 0.8, 0, False)]) == [1]
    assert join([(LEFT_HALF, 0.9, 0, False), (WHOLE, 0.8, 0, False)]) == [0, 1]  # overlap alone does not see it
    assert join([(LEFT_HALF, 0.9, 0, True), (WHOLE, 0.8, 1, False)]) == [0, 1]
    assert join([(LEFT_HALF, 0.9, 0, True), (WHOLE, 0.8, 1, False)], agnostic=True) == [1]


def test_what_is_hardly_believed_explains_nothing_away():
    assert join([(LEFT_HALF, 0.9, 0, True), (WHOLE, 0.44, 0, False)]) == [0, 1]
    assert join([(LEFT_HALF, 0.9, 0, True), (WHOLE, 0.46, 0, False)]) == [1]


def test_a_small_whole_box_before_a_large_cut_one_leaves_it():
    assert join([(WHOLE, 0.5, 0, True), ([10.0, 10.0, 20.0, 20.0], 0.9, 0, False)]) == [1, 0]


def test_of_parts_alone_the_larger_stays_and_parts_apart_all_do():
    larger, smaller, other = [0.0, 0.0, 80.0, 40.0], [70.0, 0.0, 100.0, 40.0], [60.0, 0.0, 80.0, 40.0]
    assert join([(larger, 0.5, 0, True), (other, 0.9, 0, True)]) == [0]
    assert join([(larger, 0.5, 0, True), (smaller, 0.9, 0, True)]) == [1, 0]


def test_no_more_than_asked_for_best_first():
    rows = [
        ([float(x), 0.0, x + 5.0, 5.0], score, 0, cut) for x, score, cut in ((0, 0.3, 0), (9, 0.7, 1), (20, 0.5, 0))
    ]
    rows = [(box, score, class_id, bool(cut)) for box, score, class_id, cut in rows]
    assert join(rows) == [1, 2, 0]
    assert join(rows, max_detections=2) == [1, 2]


@settings(max_examples=200)
@given(seed=st.integers(0, 2**31), num_boxes=st.integers(0, 40), agnostic=st.booleans(), share=st.floats(0, 1))
def test_joining_equals_the_slow_loop(seed, num_boxes, agnostic, share):
    boxes, scores, classes, _ = random_rows(seed, num_boxes, 1)
    boxes[::3, 2] -= 4  # parts
    is_cut = torch.rand(num_boxes, generator=torch.Generator().manual_seed(seed)) < share
    pools = None if agnostic else classes
    found = join_windows(boxes, scores, pools, is_cut, 0.5, 1000)
    expected = slow_join(
        boxes.double().tolist(), scores.tolist(), None if agnostic else classes.tolist(), is_cut.tolist(), 0.5,
        SEAM_COVERED, SEAM_SCORE,
    )  # fmt: skip
    assert found.tolist() == expected


def test_without_cut_boxes_it_is_nms():
    boxes, scores, classes, _ = random_rows(3, 200, 1)
    found = join_windows(boxes, scores, classes, torch.zeros(200, dtype=torch.bool), 0.5, 50)
    assert found.tolist() == nms(boxes, scores, classes, 0.5, 50).tolist()
