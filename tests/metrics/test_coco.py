from __future__ import annotations

import numpy as np
import pytest

from anchorite.errors import InputError
from anchorite.metrics import Predictions, Truth, coco, coco_metrics
from tests.metrics.scenes import pycocotools_evaluation, random_found, random_set, random_truth

NAMES = ["map", "map50", "map75", "map_small", "map_medium", "map_large"]
NAMES += ["ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"]


def truth_of(boxes_xyxy, class_ids=None, ignored=None) -> Truth:
    boxes = np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    return Truth(
        boxes,
        np.zeros(count, np.int64) if class_ids is None else np.array(class_ids, np.int64),
        np.zeros(count, bool) if ignored is None else np.array(ignored),
        (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def found_of(boxes_xyxy, scores, class_ids=None) -> Predictions:
    boxes = np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return Predictions(
        boxes,
        np.array(scores, dtype=np.float64),
        np.zeros(len(boxes), np.int64) if class_ids is None else np.array(class_ids, np.int64),
    )


def check_against_pycocotools(seed: int) -> None:
    truths, predictions, class_names = random_set(seed)
    metrics = coco_metrics(truths, predictions, class_names)
    oracle = pycocotools_evaluation(truths, predictions, class_names)
    ours = np.array([value for _, value in metrics.rows()])
    assert [name for name, _ in metrics.rows()] == NAMES
    assert np.array_equal(np.isnan(ours), oracle.stats == -1)
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), oracle.stats, rtol=0, atol=1e-9)
    for k, one in enumerate(metrics.classes):
        for value, precision in ((one.ap, oracle.eval["precision"]), (one.ap50, oracle.eval["precision"][:1])):
            expected = precision[:, :, k, 0, 2]
            assert (np.isnan(value) and (expected == -1).all()) or abs(value - expected.mean()) < 1e-9


@pytest.mark.parametrize("start", range(0, 60, 12))
def test_twelve_numbers_and_class_aps_equal_pycocotools(start, monkeypatch):
    for seed in range(start, start + 12):
        monkeypatch.setattr(coco, "_MOST_AT_ONCE", (1, 30, 100_000)[seed % 3])  # a class at a time, a few, all
        check_against_pycocotools(seed)


def test_the_library_gets_no_more_at_once_than_the_limit(monkeypatch):
    from faster_coco_eval.core import faster_eval_api

    sizes, evaluator = [], faster_eval_api.COCOeval_faster

    def spy(labels, found, **options):
        pairs = len(labels.dataset["images"]) * len(labels.dataset["categories"])
        sizes.append(pairs + len(labels.anns) + len(found.anns))
        return evaluator(labels, found, **options)

    rng = np.random.default_rng(0)
    truths = [random_truth(rng, 30, 50) for _ in range(20)]
    predictions = [random_found(rng, truth, 40, 50) for truth in truths]
    names = [f"class {k}" for k in range(50)]
    whole, calls = coco_metrics(truths, predictions, names), []
    monkeypatch.setattr(faster_eval_api, "COCOeval_faster", spy)
    monkeypatch.setattr(coco, "_MOST_AT_ONCE", 400)
    assert coco_metrics(truths, predictions, names, lambda: calls.append(len(sizes))) == whole
    assert max(sizes) <= 400
    assert calls == list(range(len(sizes)))
    assert len(sizes) >= 5


@pytest.mark.slow
def test_many_random_sets_equal_pycocotools():
    # Of every kind, and more of those with so many detections that not all count: they alone tell a wrong cap.
    for seed in (*range(60, 120), *range(122, 600, 12)):
        check_against_pycocotools(seed)


def test_random_sets_hold_what_they_promise():
    sets = [random_set(seed) for seed in range(60)]
    truths = [truth for set_truths, _, _ in sets for truth in set_truths]
    predictions = [found for _, set_founds, _ in sets for found in set_founds]
    assert any(len(found) > 100 and len(set(found.class_ids.tolist())) <= 2 for found in predictions)
    assert any(len(truth) == 0 for truth in truths)
    assert any(truth.ignored.any() and not truth.ignored.all() for truth in truths)
    assert any(len(np.unique(found.scores)) < len(found) for found in predictions)
    assert any(len(np.unique(truth.boxes_xyxy, axis=0)) < len(truth) for truth in truths)
    assert any((truth.areas == 32.0**2).any() for truth in truths)
    assert any(len(names) == 40 for _, _, names in sets)


def test_worked_by_hand():
    # Two boxes, three detections: right (0.9), wrong (0.8), right (0.7). Precision at full recall is 2/3, and at half
    # 1: the 101 points hold 51 of precision 1 (recall 0 to 0.5) and 50 of 2/3.
    truth = truth_of([[0, 0, 50, 50], [100, 100, 150, 150]])
    found = found_of([[0, 0, 50, 50], [300, 300, 350, 350], [100, 100, 150, 150]], [0.9, 0.8, 0.7])
    metrics = coco_metrics([truth], [found], ["thing"])
    expected = (51 + 50 * 2 / 3) / 101
    assert metrics.map == pytest.approx(expected, abs=1e-12)
    assert metrics.classes[0].ap50 == pytest.approx(expected, abs=1e-12)
    assert metrics.ar_1 == pytest.approx(0.5)
    assert metrics.ar_100 == pytest.approx(1.0)
    assert np.isnan(metrics.map_small)
    assert metrics.map_medium == pytest.approx(expected, abs=1e-12)


def test_ignored_boxes_are_neither_right_nor_wrong():
    boxes = [[0, 0, 50, 50], [100, 100, 200, 200]]
    found = found_of([[100, 100, 200, 200], [110, 110, 180, 180], [0, 0, 50, 50]], [0.9, 0.8, 0.7])
    plain = coco_metrics([truth_of(boxes)], [found], ["thing"])
    ignoring = coco_metrics([truth_of(boxes, ignored=[False, True])], [found], ["thing"])
    assert plain.map < 1
    assert ignoring.map == pytest.approx(1.0)
    assert (ignoring.classes[0].num_truths, ignoring.classes[0].num_ignored, ignoring.classes[0].num_found) == (1, 1, 3)


def test_nothing_to_measure_is_nan_and_nothing_found_is_zero():
    empty_truth, empty_found = truth_of([]), found_of([], [])
    truth, found = truth_of([[0, 0, 50, 50]]), found_of([[0, 0, 50, 50]], [0.5])
    for truths, predictions, names in (
        ([], [], ["a", "b"]),
        ([empty_truth], [empty_found], ["a"]),
        ([empty_truth], [found], ["a"]),
        ([empty_truth], [empty_found], []),
    ):
        metrics = coco_metrics(truths, predictions, names)
        assert all(np.isnan(value) for _, value in metrics.rows())
        assert [one.name for one in metrics.classes] == names
    metrics = coco_metrics([truth, empty_truth], [empty_found, found], ["a", "b"])
    assert metrics.map == metrics.map50 == metrics.ar_100 == metrics.map_medium == 0
    assert np.isnan(metrics.classes[1].ap)
    assert (metrics.classes[0].num_images, metrics.classes[0].num_found) == (1, 1)


def test_plain_dictionary_has_no_nan():
    plain = coco_metrics([], [], ["a"]).to_dict()
    assert plain["map"] is None
    assert plain["classes"][0]["ap"] is None
    assert plain["classes"][0]["name"] == "a"


def test_says_nothing_and_leaves_the_input_alone(capfd):
    truths, predictions, names = random_set(7)
    before = [truth.boxes_xyxy.copy() for truth in truths] + [found.boxes_xyxy.copy() for found in predictions]
    coco_metrics(truths, predictions, names)
    after = [truth.boxes_xyxy for truth in truths] + [found.boxes_xyxy for found in predictions]
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert capfd.readouterr() == ("", "")


def test_single_precision_detections_are_accepted():
    truth = truth_of([[0, 0, 50, 50]])
    found = Predictions(np.array([[0, 0, 50, 50]], np.float32), np.array([0.3], np.float32), np.array([0]))
    assert coco_metrics([truth], [found], ["a"]).map == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("truths", "predictions", "words"),
    [
        ([truth_of([])], [], "1 images with truth but 0"),
        ([truth_of([[0, 0, 1, 1]], [2])], [found_of([], [])], "truth of image 0: class 2"),
        ([truth_of([])], [found_of([[0, 0, 1, 1]], [0.5], [-1])], "found of image 0: class -1"),
    ],
)
def test_refuses_what_cannot_be_counted(truths, predictions, words):
    with pytest.raises(InputError, match=words):
        coco_metrics(truths, predictions, ["a", "b"])


def test_refuses_broken_values():
    with pytest.raises(InputError, match="not finite"):
        found_of([[0, 0, np.nan, 1]], [0.5])
    with pytest.raises(InputError, match="not finite"):
        found_of([[0, 0, 1, 1]], [np.inf])
    with pytest.raises(InputError, match=r"\(N, 4\)"):
        found_of([[0, 0, 1, 1]], [0.5, 0.4])
