"""What labels do not know in measuring: ignored boxes of any class, and classes that an image's labels do not cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anchorite.errors import InputError
from anchorite.metrics import Predictions, Truth, coco_metrics, confusion_matrix, detection_curves
from anchorite.metrics.matching import ANY_CLASS
from tests.metrics.scenes import pycocotools_evaluation, random_set
from tests.metrics.test_coco import found_of, truth_of

A, B, C = [0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250]
NAMES = ["cat", "dog"]


def forgetful(seed: int) -> tuple[list[Truth], list[Predictions], list[Truth], list[str]]:
    """A random set of which some is unknown, and the same truth in words that pycocotools has: crowds of each class."""
    truths, predictions, names = random_set(seed)
    rng, num_classes = np.random.default_rng(seed), len(names)
    unknown, crowds = [], []
    for truth in truths:
        covered = rng.random(num_classes) < 0.7
        kept = covered[truth.class_ids]
        truth = Truth(truth.boxes_xyxy[kept], truth.class_ids[kept], truth.ignored[kept], truth.areas[kept], covered)
        of_any = truth.ignored & (rng.random(len(truth)) < 0.7)
        unknown.append(replace(truth, class_ids=np.where(of_any, ANY_CLASS, truth.class_ids)))
        parts = [(truth.boxes_xyxy[~of_any], truth.class_ids[~of_any], truth.ignored[~of_any], truth.areas[~of_any])]
        everywhere = np.array([[-1e5, -1e5, 1e5, 1e5]])
        for k in range(num_classes):
            boxes = truth.boxes_xyxy[of_any] if covered[k] else everywhere
            count = len(boxes)
            parts.append((boxes, np.full(count, k), np.ones(count, bool), np.ones(count)))
        crowds.append(Truth(*map(np.concatenate, zip(*parts, strict=True))))
    # Of a detection without area no share lies anywhere.
    solid = [found.chosen((found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all(axis=1)) for found in predictions]
    return unknown, solid, crowds, names


def test_equals_pycocotools_with_a_crowd_of_every_class() -> None:
    for seed in range(36):
        unknown, predictions, crowds, names = forgetful(seed)
        metrics = coco_metrics(unknown, predictions, names)
        oracle = pycocotools_evaluation(crowds, predictions, names)
        ours = np.array([value for _, value in metrics.rows()])
        assert np.array_equal(np.isnan(ours), oracle.stats == -1)
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), oracle.stats, rtol=0, atol=1e-9)
        if max(map(len, predictions)) <= 100:
            envelope = detection_curves(unknown, predictions, names).envelope
            np.testing.assert_allclose(
                np.nan_to_num(envelope, nan=-1), oracle.eval["precision"][0, :, :, 0, 2].T, rtol=0, atol=1e-9
            )


def test_average_precision_by_hand() -> None:
    # Cats: A right (.9); B (.8) lies in a region of any class; C (.7) right. Dogs: wrong at A (.95), right at C (.5).
    truth = truth_of([A, C, C, B], [0, 0, 1, ANY_CLASS], [False, False, False, True])
    found = found_of([A, B, C, B, A, C], [0.9, 0.8, 0.7, 0.6, 0.95, 0.5], [0, 0, 0, 1, 1, 1])
    cat, dog = coco_metrics([truth], [found], NAMES).classes
    assert cat.ap == pytest.approx(1.0)
    assert dog.ap == pytest.approx(0.5)  # the first is wrong, the second right
    assert (cat.num_ignored, dog.num_ignored, cat.num_found) == (0, 0, 3)
    # The same without dogs among the covered classes: nothing of them is measured.
    partly = replace(truth_of([A, C, B], [0, 0, ANY_CLASS], [False, False, True]), covered=np.array([True, False]))
    cat, dog = coco_metrics([partly], [found], NAMES).classes
    assert cat.ap == pytest.approx(1.0)
    assert np.isnan(dog.ap)
    # Beside an image that covers both, the dogs of the first neither help nor harm.
    both = coco_metrics([partly, truth_of([A], [1])], [found, found_of([A], [0.6], [1])], NAMES)
    assert [one.ap for one in both.classes] == pytest.approx([1.0, 1.0])
    assert coco_metrics([replace(partly, covered=None), truth_of([A], [1])],
                        [found, found_of([A], [0.6], [1])], NAMES).classes[1].ap < 1  # fmt: skip


def test_curves_and_confusion_leave_out_what_is_unknown() -> None:
    truth = replace(truth_of([A, B], [0, ANY_CLASS], [False, True]), covered=np.array([True, False]))
    # A cat that is there, a cat in the region, a dog where dogs were not labelled, one upon the cat, a false cat.
    found = found_of([A, B, C, A, C], [0.9, 0.8, 0.7, 0.95, 0.6], [0, 0, 1, 1, 0])
    curves = detection_curves([truth], [found], NAMES)
    assert curves.precision[0, 0] == pytest.approx(1 / 2)
    assert np.isnan(curves.precision[1]).all()
    counts = confusion_matrix([truth], [found], NAMES).counts
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_covering_all_classes_is_the_same_as_saying_nothing() -> None:
    truths, predictions, names = random_set(7)
    told = [replace(truth, covered=np.ones(len(names), bool)) for truth in truths]
    assert coco_metrics(told, predictions, names).to_dict() == coco_metrics(truths, predictions, names).to_dict()


def test_a_thousand_classes_cost_no_thousand_crowds_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    from anchorite.metrics import coco

    sizes, evaluate = [], coco._evaluate
    monkeypatch.setattr(
        coco, "_evaluate", lambda truths, *more: sizes.extend(map(len, truths)) or evaluate(truths, *more)
    )
    truth = truth_of([A] * 50 + [C], [ANY_CLASS] * 50 + [3], [True] * 50 + [False])
    found = found_of([A, B, C], [0.9, 0.8, 0.7], [998, 999, 3])
    metrics = coco_metrics([truth], [found], [str(number) for number in range(1000)])
    assert sizes == [51]  # crowds of the one class found there, and the one labelled box
    assert metrics.classes[3].ap == pytest.approx(1.0)


def test_refuses_what_does_not_fit_the_classes() -> None:
    found = found_of([A], [0.5])
    with pytest.raises(InputError, match="class -1"):
        coco_metrics([truth_of([A], [ANY_CLASS])], [found], NAMES)  # a target has a class
    with pytest.raises(InputError, match="3 covered flags for 2 classes"):
        coco_metrics([replace(truth_of([A]), covered=np.ones(3, bool))], [found], NAMES)
