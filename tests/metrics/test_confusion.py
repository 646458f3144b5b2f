from __future__ import annotations

import numpy as np

from anchorite.metrics import Predictions, confusion_matrix, matching, most_confused, outcomes
from tests.metrics.scenes import random_set
from tests.metrics.test_coco import found_of, truth_of

A, B, C, D = [0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250], [300, 300, 350, 350]


def greedy_oracle(truths, predictions, num_classes, confidence, iou_threshold):
    """The definition, pair by pair, in plain loops."""
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for truth, found in zip(truths, predictions, strict=True):
        found_rows = [row for row in range(len(found)) if found.scores[row] >= confidence]
        pairs, covered = [], set()
        for i in found_rows:
            for j in range(len(truth)):
                a, b = found.boxes_xyxy[i].astype(float), truth.boxes_xyxy[j]
                width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                inter = max(width, 0) * max(height, 0)
                area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
                if truth.ignored[j]:
                    if area_a > 0 and inter / area_a >= iou_threshold:
                        covered.add(i)
                elif inter / (area_a + area_b - inter) >= iou_threshold:
                    pairs.append((-inter / (area_a + area_b - inter), -found.scores[i], i, j))
        used_found, used_truth = set(), set()
        for _, _, i, j in sorted(pairs):
            if i not in used_found and j not in used_truth:
                used_found.add(i)
                used_truth.add(j)
                counts[truth.class_ids[j], found.class_ids[i]] += 1
        for i in found_rows:
            counts[num_classes, found.class_ids[i]] += i not in used_found and i not in covered
        for j in range(len(truth)):
            counts[truth.class_ids[j], num_classes] += j not in used_truth and not truth.ignored[j]
    return counts


def test_equals_the_plain_definition():
    for seed in range(100):
        truths, predictions, names = random_set(seed)
        confusion = confusion_matrix(truths, predictions, names, confidence=0.3, iou_threshold=0.45)
        expected = greedy_oracle(truths, predictions, len(names), 0.3, 0.45)
        assert np.array_equal(confusion.counts, expected), seed


def test_by_hand():
    truth = truth_of([A, B, C], class_ids=[0, 1, 1])
    found = found_of([A, B, D, C], [0.9, 0.8, 0.7, 0.1], class_ids=[0, 0, 1, 1])
    confusion = confusion_matrix([truth], [found], ["x", "y"])
    # x found as x; one y taken for x; the other y found below the confidence, so missed; D is a false y.
    assert confusion.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(confusion.shares(), [[1, 0, 0], [0.5, 0, 0.5], [0, 1, 0]])


def test_the_larger_overlap_wins_over_the_better_score():
    near = [0, 0, 50, 40]
    found = found_of([near, A], [0.9, 0.5], class_ids=[1, 0])
    counts = confusion_matrix([truth_of([A])], [found], ["x", "y"]).counts
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_of_one_box_with_two_classes_the_better_score_wins():
    found = found_of([A, A], [0.5, 0.9], class_ids=[1, 0])
    counts = confusion_matrix([truth_of([A])], [found], ["x", "y"]).counts
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_ignored_boxes_and_what_lies_in_them_are_left_out():
    truth = truth_of([A, [100, 100, 300, 300]], ignored=[False, True])
    found = found_of([B, C, D], [0.9, 0.9, 0.9], class_ids=[0, 1, 1])
    counts = confusion_matrix([truth], [found], ["x", "y"]).counts
    assert counts.tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_order_of_detections_does_not_matter():
    truths, predictions, names = random_set(16)
    rng = np.random.default_rng(0)
    distinct = [Predictions(f.boxes_xyxy, rng.permutation(len(f)) / max(len(f), 1), f.class_ids) for f in predictions]
    shuffled = []
    for found in distinct:
        order = rng.permutation(len(found))
        shuffled.append(Predictions(found.boxes_xyxy[order], found.scores[order], found.class_ids[order]))
    first, second = (confusion_matrix(truths, given, names).counts for given in (distinct, shuffled))
    assert first.sum() > 10
    assert np.array_equal(first, second)


def test_nothing_at_all():
    assert confusion_matrix([], [], ["a"]).counts.tolist() == [[0, 0], [0, 0]]
    confusion = confusion_matrix([truth_of([])], [found_of([], [])], ["a"])
    assert confusion.counts.sum() == 0
    assert np.isnan(confusion.shares()).all()


def test_outcomes_are_the_matrix_of_each_image(monkeypatch):
    for seed in range(12):
        monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", (1, 7, 1 << 20)[seed % 3])  # parts of an image, too
        truths, predictions, names = random_set(seed)
        rows = outcomes(truths, predictions, names, confidence=0.3)
        for image, (truth, found) in enumerate(zip(truths, predictions, strict=True)):
            counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
            for _, of_label, found_as in rows[rows[:, 0] == image].tolist():
                counts[of_label, found_as] += 1
            assert np.array_equal(counts, greedy_oracle([truth], [found], len(names), 0.3, 0.5))


def test_the_most_confused_classes():
    counts = np.diag([9, 9, 9, 9, 0])
    counts[1, 3] = counts[4, 2] = counts[4, 3] = 1  # errors of classes: 0, 1, 1, 2
    assert most_confused(counts, 2) == [1, 3, 4]
    assert most_confused(counts, 4) == [0, 1, 2, 3, 4]
