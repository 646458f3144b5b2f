"""What views of an image say about labels, on hand-made cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anchorite.data import Record
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.report.suspects_evidence import Observation, Rows, evidence, iou_of
from tests.report.suspects_samples import make_record

BOX, FAR = (10, 10, 50, 50), (70, 70, 110, 110)
Predictions = tuple[tuple[float, ...], float, int]


def view(*found: Predictions, losses: int = 1) -> Observation:
    return Observation(
        np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in found], dtype=np.float64),
        np.array([class_id for _, _, class_id in found], dtype=np.int64),
        np.full(losses, 1.0),
    )


def told(record: Record, views: list[Observation], num_classes: int, image: int = 0) -> tuple[Rows, Rows]:
    """The evidence about the labels, and about detections without one."""
    rows = evidence(record, views, num_classes, image)
    return rows[rows["label"] >= 0], rows[rows["label"] < 0]


def test_overlaps_are_those_of_hand_worked_boxes() -> None:
    iou = iou_of(np.array([[0.0, 0, 4, 4]]), np.array([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 8, 8], [1, 1, 1, 1]]))
    np.testing.assert_allclose(iou, [[1, 8 / 24, 0, 0]])


def test_a_label_is_told_how_its_class_and_the_best_other_are_seen() -> None:
    views = [view((BOX, 0.9, 1), (BOX, 0.1, 0), (BOX, 0.3, 2)), view((BOX, 0.7, 1), losses=1)]
    labels, missing = told(make_record([BOX], [0]), views, 3, image=7)
    assert len(missing) == 0
    (row,) = labels
    assert (row["image"], row["label"], row["class_id"], row["other_class"]) == (7, 0, 0, 1)
    assert row["given"] == pytest.approx(0.05)
    assert row["other"] == pytest.approx(0.8)
    assert row["found"] == pytest.approx(0.8)
    assert row["iou"] == pytest.approx(1)
    assert row["side"] == pytest.approx(40 / 128)


def test_what_another_label_explains_speaks_against_none() -> None:
    near = (18, 10, 58, 50)  # IoU 2/3 with BOX
    labels, missing = told(make_record([BOX, near], [0, 1]), [view((BOX, 0.9, 0), (near, 0.9, 1), losses=2)], 2)
    np.testing.assert_allclose(labels["other"], 0)
    np.testing.assert_allclose(labels["given"], 0.9)
    np.testing.assert_allclose(labels["iou"], 1)
    # The same detection does speak where no label of its class is nearer.
    labels, _ = told(make_record([BOX], [0]), [view((BOX, 0.9, 0), (near, 0.8, 1))], 2)
    assert labels["other"][0] == pytest.approx(0.8)
    assert len(missing) == 0


def test_a_detection_means_the_label_that_it_is_nearest_to() -> None:
    beside = (35, 10, 75, 50)  # IoU 0.23 with BOX
    labels, _ = told(make_record([BOX, beside], [0, 0]), [view((BOX, 0.9, 0), losses=2)], 2)
    assert labels["found"].tolist() == [0.9, 0.0]
    assert labels["iou"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([(BOX, 0.9, 1)], "a label of another class is there: its class is in doubt, not its presence"),
        ([(BOX, 0.9, 0), ((30, 10, 70, 50), 0.2, 0)], "not confident"),
        ([((14, 14, 30, 30), 0.9, 0)], "part of a label of its class"),
        ([(FAR, 0.4, 0)], "seen in one look only: 0.2 on average"),
    ],
)
def test_a_detection_with_an_explanation_is_not_missing_a_label(found: list[Predictions], reason: str) -> None:
    views = [view(*found)] + ([view()] if "one look" in reason else [])
    assert len(told(make_record([BOX], [0]), views, 2)[1]) == 0, reason


def test_a_confident_detection_without_a_label_is_told_once() -> None:
    double = (74, 70, 114, 110)
    views = [view((BOX, 0.9, 0), (FAR, 0.9, 1), (double, 0.6, 0)), view((BOX, 0.9, 0), (FAR, 0.7, 1))]
    labels, missing = told(make_record([BOX], [0]), views, 2, image=3)
    assert len(missing) == 1
    assert (missing["image"][0], missing["class_id"][0]) == (3, 1)
    assert missing["found"][0] == pytest.approx(0.8)
    np.testing.assert_allclose(missing["found_xyxy"][0], FAR)
    assert labels["given"][0] == pytest.approx(0.9)


def test_a_part_of_another_class_is_an_object_of_its_own() -> None:
    part = (14, 14, 30, 30)
    assert len(told(make_record([BOX], [0]), [view((BOX, 0.9, 0), (part, 0.9, 1))], 2)[1]) == 1


def test_ignored_regions_are_no_suspects_and_explain_what_lies_in_them() -> None:
    record = make_record([BOX, (0, 0, 128, 128)], [0, 1], ignored=np.array([False, True]))
    labels, missing = told(record, [view((BOX, 0.9, 0), (FAR, 0.9, 0), losses=2)], 2)
    assert labels["label"].tolist() == [0]
    assert len(missing) == 0


def test_a_badly_placed_label_is_not_a_missing_one_too() -> None:
    moved = (30, 10, 70, 50)  # IoU 1/3
    labels, missing = told(make_record([moved], [0]), [view((BOX, 0.9, 0))], 2)
    assert labels["found"][0] == pytest.approx(0.9)
    assert labels["iou"][0] == pytest.approx(1 / 3)
    np.testing.assert_allclose(labels["found_xyxy"][0], BOX)
    assert labels["given"][0] == 0
    assert len(missing) == 0


def test_almost_equal_labels_are_twins_of_the_earlier_one() -> None:
    record = make_record([FAR, BOX, (11, 11, 51, 51), (30, 10, 70, 50)], [0, 0, 1, 0])
    labels, _ = told(record, [view(losses=4)], 2)
    assert labels["twin"].tolist() == [-1, -1, 1, -1]
    assert labels["twin_iou"][2] == pytest.approx(39**2 / (2 * 1600 - 39**2))


def test_images_without_labels_or_detections_say_what_they_can() -> None:
    labels, missing = told(make_record([], []), [view((FAR, 0.9, 0), losses=0)], 1)
    assert (len(labels), len(missing)) == (0, 1)
    labels, missing = told(make_record([BOX], [0]), [view(), view()], 1)
    assert (len(labels), len(missing)) == (1, 0)
    assert (labels["given"][0], labels["found"][0], labels["other"][0]) == (0, 0, 0)
    labels, missing = told(make_record([], []), [view(losses=0)], 1)
    assert (len(labels), len(missing)) == (0, 0)


def region(record: Record, *class_ids: int) -> Record:
    """The record with its last box as a region, and classes anew."""
    is_last = np.arange(len(record.origins)) == len(record.origins) - 1
    return replace(record, ignored=is_last, class_ids=np.array(class_ids, np.int64))


def test_a_region_of_any_class_is_no_label_and_explains_every_class_in_it() -> None:
    record = region(make_record([BOX, (60, 60, 128, 128)], [0, 0]), 0, NO_CLASS)
    found = view((BOX, 0.9, 0), (BOX, 0.2, 1), (FAR, 0.9, 0), (FAR, 0.9, 1), losses=2)
    labels, missing = told(record, [found], 2)
    assert (labels["label"].tolist(), labels["class_id"].tolist(), labels["given"].tolist()) == ([0], [0], [0.9])
    assert len(missing) == 0
    half_out = (40, 70, 80, 110)  # half of it lies beside the region
    assert len(told(record, [view(((39, 70, 80, 110), 0.9, 1), losses=2)], 2)[1]) == 1
    assert len(told(record, [view((half_out, 0.9, 1), losses=2)], 2)[1]) == 0


def test_no_label_of_a_class_that_is_not_covered_is_missing() -> None:
    views = [view((FAR, 0.9, 0), (BOX, 0.9, 1))]
    assert len(told(make_record([], []), views, 2)[1]) == 2
    _, missing = told(make_record([], [], source=LabelSource("cats", (True, False))), views, 2)
    assert missing["class_id"].tolist() == [0]


def test_no_label_is_missing_where_the_background_counts_less() -> None:
    record = make_record([BOX], [0], source=LabelSource("found", None, 0.5), weights=np.array([0.25], np.float32))
    labels, missing = told(record, [view((FAR, 0.9, 0))], 1)
    assert (len(missing), labels["weight"].tolist()) == (0, [0.25])
