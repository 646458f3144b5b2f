from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.boxes.iou import pairwise_iou_xyxy
from anchorite.boxes.nms import nms, nms_of_sorted
from tests.boxes.slow_nms import slow_nms


def random_case(seed: int, num_boxes: int, num_classes: int, num_spots: int):
    """Clusters of boxes around a few spots, with many equal scores and some exact copies."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.rand(num_spots, 2, generator=generator) * 500
    centres = spots[torch.randint(num_spots, (num_boxes,), generator=generator)]
    centres = centres + torch.randn(num_boxes, 2, generator=generator) * 8
    sides = 10 + torch.rand(num_boxes, 2, generator=generator) * 60
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    boxes[: num_boxes // 8] = boxes[num_boxes - num_boxes // 8 :]
    scores = (torch.rand(num_boxes, generator=generator) * 40).round() / 40
    return boxes, scores, torch.randint(num_classes, (num_boxes,), generator=generator)


def check(boxes, scores, class_ids, iou_threshold, max_detections, device="cpu"):
    found = nms(
        boxes.to(device),
        scores.to(device),
        None if class_ids is None else class_ids.to(device),
        iou_threshold,
        max_detections,
    )
    expected = slow_nms(
        boxes.double().tolist(),
        scores.tolist(),
        None if class_ids is None else class_ids.tolist(),
        iou_threshold,
        max_detections,
    )
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_boxes=st.integers(0, 40),
    num_classes=st.integers(1, 4),
    num_spots=st.integers(1, 8),
    iou_threshold=st.sampled_from([0.0, 0.2, 0.45, 0.6, 0.9, 1.0]),
    max_detections=st.sampled_from([1, 3, 10, 300]),
    agnostic=st.booleans(),
)
def test_equals_the_slow_loop(seed, num_boxes, num_classes, num_spots, iou_threshold, max_detections, agnostic):
    boxes, scores, class_ids = random_case(seed, num_boxes, num_classes, num_spots)
    check(boxes, scores, None if agnostic else class_ids, iou_threshold, max_detections)


@settings(max_examples=150, deadline=None)
@given(corners=st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=30), seed=st.integers(0, 2**31))
def test_equals_the_slow_loop_on_a_coarse_grid_of_ties_empty_and_inverted_boxes(corners, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    scores = torch.randint(3, (len(boxes),), generator=generator) / 4
    check(boxes, scores, torch.randint(2, (len(boxes),), generator=generator), 0.5, 100)


@pytest.mark.parametrize("num_boxes", [127, 128, 129, 700])
@pytest.mark.parametrize("max_detections", [20, 300])
def test_equals_the_slow_loop_across_blocks(num_boxes, max_detections):
    for seed in range(3):
        boxes, scores, class_ids = random_case(seed, num_boxes, num_classes=3, num_spots=12)
        check(boxes, scores, class_ids, 0.5, max_detections)


def test_a_chain_of_overlaps_settles_as_the_greedy_rule_says():
    # Each box overlaps only its neighbours by more than 0.3: every second one must stay.
    left = torch.arange(300, dtype=torch.float32) * 5
    boxes = torch.stack([left, torch.zeros(300), left + 10, torch.full((300,), 10.0)], dim=1)
    scores = torch.linspace(1, 0.5, 300)
    assert nms(boxes, scores, None, 0.3, 1000).tolist() == list(range(0, 300, 2))


def test_an_overlap_equal_to_the_limit_stays_and_one_above_goes():
    # IoU of the two is exactly 1/2.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, None, 0.5, 10).tolist() == [0, 1]
    assert nms(boxes, scores, None, 0.4999, 10).tolist() == [0]


def test_close_calls_are_not_decided_by_float32_rounding():
    # The lower half of a box has an IoU of exactly 1/2 with it; areas computed in float32 make it a little more.
    boxes = torch.tensor(
        [[0.78515625, 0.06640625, 148.265625, 298.06640625], [0.78515625, 0.06640625, 148.265625, 149.06640625]]
    )
    assert nms(boxes, torch.tensor([0.9, 0.8]), None, 0.5, 10).tolist() == [0, 1]


def test_equal_scores_keep_the_lower_index():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1)
    assert nms(boxes, torch.full((5,), 0.5), None, 0.5, 10).tolist() == [0]


def test_classes_do_not_suppress_each_other_and_cost_no_precision():
    # Overlaps a float32 step above and below the limit: coordinates moved out by a class offset would lose that step.
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.5000001], [0, 0, 1, 1], [0, 0, 1, 0.4999999]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    class_ids = torch.tensor([7000, 7000, 6999, 6999])
    assert nms(boxes, scores, class_ids, 0.5, 10).tolist() == [0, 2, 3]


def test_boxes_of_no_area_suppress_nothing_but_are_kept():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [8, 8, 2, 2]])
    assert nms(boxes, torch.tensor([0.1, 0.3, 0.2]), None, 0.0, 10).tolist() == [1, 2, 0]


def test_nothing_in_nothing_out():
    for class_ids in (None, torch.zeros(0, dtype=torch.int64)):
        assert nms(torch.zeros(0, 4), torch.zeros(0), class_ids, 0.5, 10).tolist() == []


@pytest.fixture
def small_steps(monkeypatch):
    """Blocks and windows so small that a few boxes take many of them."""
    module = sys.modules["anchorite.boxes.nms"]
    monkeypatch.setattr(module, "_DECIDED_CPU", 30)
    monkeypatch.setattr(module, "_WINDOW_CPU", 17)
    monkeypatch.setattr(module, "_PAIRS_CPU", 50)


def batch_case(seed: int, spread: float = 500.0):
    """Four images of up to 90 boxes, some of none, best first; beyond an image's count lies what must not be read."""
    generator = torch.Generator().manual_seed(seed)
    boxes, classes = torch.full((4, 90, 4), torch.nan), torch.full((4, 90), 99)
    counts = torch.randint(0, 91, (4,), generator=generator)
    counts[seed % 4] = 0
    for image, count in enumerate(counts.tolist()):
        found, scores, class_ids = random_case(seed + image, count, num_classes=70, num_spots=3)
        order = scores.sort(descending=True, stable=True).indices
        boxes[image, :count] = found[order] * (spread / 500)
        classes[image, :count] = class_ids[order] // 20 * 20  # of numbers far apart, yet few
    return boxes, classes, counts


def check_batch(boxes, classes, counts, iou_threshold, max_detections):
    kept = nms_of_sorted(boxes, classes, counts, iou_threshold, max_detections)
    for image, count in enumerate(counts.tolist()):
        rows = boxes[image, :count].double().tolist()
        labels = None if classes is None else classes[image, :count].tolist()
        expected = slow_nms(rows, [1.0 - 0.001 * i for i in range(count)], labels, iou_threshold, max_detections)
        assert kept[image].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("max_detections", [7, 300])
def test_a_batch_equals_the_slow_loop_image_by_image(small_steps, seed, max_detections):
    boxes, classes, counts = batch_case(seed)
    check_batch(boxes.nan_to_num(777.0), classes, counts, 0.3, max_detections)
    check_batch(boxes.nan_to_num(777.0), None, counts, 0.3, max_detections)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e6, 1e18])
def test_boxes_of_any_unit_are_compared_exactly(small_steps, scale):
    # Coordinates whose areas leave float32, or whose digits are lost where classes are shifted apart.
    for seed in range(3):
        boxes, classes, counts = batch_case(seed, spread=scale)
        check_batch(boxes.nan_to_num(0.0), classes, counts, 0.3, 300)


def test_coordinates_that_are_not_numbers_beyond_the_counts_do_no_harm(small_steps):
    boxes, classes, counts = batch_case(3)
    check_batch(boxes, classes, counts, 0.3, 300)


@pytest.mark.parametrize("agnostic", [False, True])
def test_close_calls_between_blocks_are_decided_exactly(small_steps, agnostic):
    # Pairs with an IoU of exactly 1/2 or a float32 step beside it, so far apart in score that no block holds both.
    heights = torch.tensor([0.5, 0.50000006, 0.49999997]).repeat(10)
    left = torch.arange(30.0) * 8
    tall = torch.stack([left, torch.zeros(30), left + 1, torch.ones(30)], dim=1)
    low = torch.stack([left, torch.zeros(30), left + 1, heights], dim=1)
    boxes = torch.cat([tall, low])[None]
    classes = torch.full((1, 60), 6999)
    kept = nms_of_sorted(boxes, None if agnostic else classes, torch.tensor([60]), 0.5, 300)[0, 30:]
    assert kept.tolist() == [True, False, True] * 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_decides_like_the_cpu():
    for seed in range(20):
        boxes, scores, class_ids = random_case(seed, 3000, num_classes=3, num_spots=40)
        on_cpu = nms(boxes, scores, class_ids, 0.6, 300)
        on_cuda = nms(boxes.cuda(), scores.cuda(), class_ids.cuda(), 0.6, 300)
        assert on_cuda.tolist() == on_cpu.tolist()


def test_pairwise_iou_of_hand_worked_boxes():
    boxes = torch.tensor([[0.0, 0, 4, 2], [0, 0, 0, 0]])
    others = torch.tensor([[2.0, 0, 6, 2], [0, 0, 4, 2], [10, 10, 11, 11], [0, 0, 0, 0]])
    expected = torch.tensor([[4 / 12, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(pairwise_iou_xyxy(boxes, others), expected)
