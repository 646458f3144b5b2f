from __future__ import annotations

import numpy as np
import pytest

from anchorite.metrics import coco_metrics, detection_curves
from tests.metrics.scenes import pycocotools_evaluation, random_set
from tests.metrics.test_coco import found_of, truth_of


def without_excess(seed):
    """A random set cut to COCO's 100 detections an image and class, so that both see the same."""
    truths, predictions, names = random_set(seed)
    return (
        (truths, predictions, names) if max(len(found) for found in predictions) <= 100 else without_excess(seed + 1000)
    )


def test_envelope_equals_cocos_precision_at_its_recall_points():
    for seed in range(80):
        truths, predictions, names = without_excess(seed)
        curves = detection_curves(truths, predictions, names)
        expected = pycocotools_evaluation(truths, predictions, names).eval["precision"][0, :, :, 0, 2].T
        np.testing.assert_allclose(np.nan_to_num(curves.envelope, nan=-1), expected, rtol=0, atol=1e-9)


def test_average_precision_at_75_equals_coco():
    truths, predictions, names = without_excess(5)
    ap = detection_curves(truths, predictions, names, iou_threshold=0.75).average_precision()
    assert np.nanmean(ap) == pytest.approx(coco_metrics(truths, predictions, names).map75, abs=1e-9)


def test_counts_by_hand():
    truth = truth_of([[0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250]], class_ids=[0, 0, 1])
    found = found_of(
        [[0, 0, 50, 50], [300, 300, 350, 350], [100, 100, 150, 150], [0, 0, 50, 50]],
        [0.9, 0.6, 0.3, 0.2],  # right, wrong, right, and a second answer for a box that has one
    )
    curves = detection_curves([truth], [found], ["a", "b"])
    at = {confidence: round(confidence * 1000) for confidence in (0.95, 0.9, 0.6, 0.3, 0.1)}
    precision, recall, f1 = curves.precision[0], curves.recall[0], curves.f1[0]
    assert np.isnan(precision[at[0.95]])
    assert recall[at[0.95]] == f1[at[0.95]] == 0
    assert [precision[at[c]] for c in (0.9, 0.6, 0.3, 0.1)] == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])
    assert [recall[at[c]] for c in (0.9, 0.6, 0.3, 0.1)] == pytest.approx([1 / 2, 1 / 2, 1, 1])
    assert [f1[at[c]] for c in (0.9, 0.6, 0.3, 0.1)] == pytest.approx([2 / 3, 2 / 4, 4 / 5, 4 / 6])
    assert (curves.recall[1] == 0).all()
    # F1 of class a is highest, 0.8, for limits above 0.2 up to 0.3; class b halves the mean.
    confidence, best = curves.best_confidences()[0]
    assert best == pytest.approx(0.8)
    assert 0.2 < confidence <= 0.3
    assert confidence == pytest.approx(0.25, abs=0.002)
    assert curves.best_confidence()[1] == pytest.approx(0.4)
    assert np.isnan(curves.best_confidences()[1][0])
    assert curves.best_confidences()[1][1] == 0


def test_classes_without_labels_do_not_count_in_the_mean():
    truth = truth_of([[0, 0, 50, 50]])
    found = found_of([[0, 0, 50, 50], [0, 0, 50, 50]], [0.8, 0.9], [0, 1])
    curves = detection_curves([truth], [found], ["a", "b"])
    assert np.isnan(curves.f1[1]).all()
    assert np.isnan(curves.envelope[1]).all()
    assert curves.precision[1, 500] == 0
    assert curves.best_confidence() == (pytest.approx(0.4), 1.0)


def test_detections_in_ignored_boxes_are_left_out():
    truth = truth_of([[0, 0, 50, 50], [100, 100, 200, 200]], ignored=[False, True])
    boxes = [[0, 0, 50, 50], [110, 110, 150, 150], [110, 110, 150, 150]]
    curves = detection_curves([truth], [found_of(boxes, [0.9, 0.8, 0.7])], ["a"])
    assert curves.precision[0, 0] == 1
    assert curves.recall[0, 0] == 1


def test_nothing_at_all():
    for truths, predictions in (([], []), ([truth_of([])], [found_of([], [])])):
        curves = detection_curves(truths, predictions, ["a"])
        assert np.isnan(curves.precision).all()
        assert np.isnan(curves.best_confidence()).all()
        assert curves.precision.shape == (1, 1001)
    curves = detection_curves([truth_of([[0, 0, 9, 9]])], [found_of([], [])], ["a"])
    assert (curves.f1 == 0).all()
    assert (curves.envelope == 0).all()


@pytest.mark.parametrize(
    ("first_choice", "expected"),
    [
        ([4, 0, 104, 100], 1.0),  # nearer to the first box: leaves the second to the other detection
        ([16, 0, 116, 100], 0.5),  # nearer to the second, and takes it away from the other
        ([10, 0, 110, 100], 0.5),  # as near to both: COCO's tools take the later one
    ],
)
def test_a_detection_takes_the_box_it_overlaps_most(first_choice, expected):
    truth = truth_of([[0, 0, 100, 100], [20, 0, 120, 100]])
    found = found_of([first_choice, [60, 0, 120, 100]], [0.9, 0.8])  # the other overlaps only the second by half
    curves = detection_curves([truth], [found], ["a"])
    assert curves.recall[0, 0] == expected
    oracle = pycocotools_evaluation([truth], [found], ["a"])
    assert oracle.eval["recall"][0, 0, 0, 2] == expected
