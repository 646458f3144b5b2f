"""Scores and order on hand-made evidence: every kind of error above all that is as usual."""

from __future__ import annotations

import numpy as np
import pytest

from anchorite.report.suspects import suspects_of
from anchorite.report.suspects_evidence import (
    EVIDENCE,
    Rows,
    group_of,
    score_evidence,
    weighted,
)
from tests.report.suspects_samples import make_record

NAMES = ("nine", "ten")
BOX = (10, 10, 50, 50)


def usual_labels(count: int = 100) -> Rows:
    """Labels of two classes, one an image, all well seen."""
    rows = np.zeros(count, EVIDENCE)
    random = np.random.default_rng(0)
    rows["image"], rows["class_id"] = np.arange(count), np.arange(count) % 2
    rows["other_class"] = 1 - rows["class_id"]
    rows["side"] = random.uniform(0.1, 0.4, count)
    rows["given"] = rows["found"] = random.uniform(0.8, 0.95, count)
    rows["other"] = 0.02
    rows["iou"] = random.uniform(0.82, 0.95, count)
    rows["found_xyxy"] = BOX
    rows["loss"] = random.uniform(0.1, 0.4, count)
    rows["twin"], rows["weight"] = -1, 1.0
    return rows


def with_errors() -> Rows:
    rows = usual_labels()
    rows["given"][10], rows["other"][10], rows["loss"][10] = 0.05, 0.9, 4.0
    rows["given"][20], rows["other"][20], rows["found"][20], rows["iou"][20], rows["loss"][20] = 0.0, 0.0, 0.0, 0.0, 2.0
    rows["given"][30], rows["iou"][30] = 0.0, 0.4
    rows["twin"][40], rows["twin_iou"][40] = 0, 0.95
    rows["loss"][50] = 3.0
    return rows


PLANTED = {10: "class", 20: "spurious", 30: "box", 40: "duplicate", 50: "loss"}


def test_each_error_has_its_kind_and_stands_above_every_usual_label() -> None:
    by_kind, _ = score_evidence(with_errors())
    best = np.max(list(by_kind.values()), axis=0)
    for number, kind in PLANTED.items():
        assert max(by_kind, key=lambda name: by_kind[name][number]) == kind
    usual = np.delete(best, list(PLANTED))
    assert usual.max() < 0.25 < best[list(PLANTED)].min()
    assert all(((scores >= 0) & (scores <= 1)).all() for scores in by_kind.values())


def test_a_label_is_suspected_as_much_as_it_counts() -> None:
    rows = with_errors()
    before, _ = score_evidence(rows)
    rows["weight"][[10, 20]] = 0.5, 0.0
    after, _ = score_evidence(rows)
    assert after["class"][10] == before["class"][10] / 2 > 0.1
    assert all(scores[20] == 0 for scores in after.values())
    assert after["box"][30] == before["box"][30]
    images = [("train", make_record([BOX], [0])) for _ in rows]
    first = next(one for one in suspects_of(rows, images, NAMES) if one.kind == "class")
    assert "counts 0.50" in first.reason


def test_what_is_usual_is_not_moved_by_what_is_wrong() -> None:
    (_, before), (_, after) = score_evidence(usual_labels()), score_evidence(with_errors())
    np.testing.assert_allclose(after["found"], before["found"], atol=0.02)
    np.testing.assert_allclose(after["loss"], before["loss"], atol=0.05)


def test_a_weak_detector_says_nothing_about_single_labels() -> None:
    rows = usual_labels()
    rows["given"] = rows["found"] = 0.1
    assert score_evidence(rows)[0]["spurious"].max() == 0


def test_small_labels_are_held_against_small_ones() -> None:
    rows = usual_labels(120)
    small = np.argsort(rows["side"])[:36]
    rows["loss"][small] += 3.0  # hard, each of them
    rows["given"][small] = rows["found"][small] = 0.3
    by_kind, _ = score_evidence(rows)
    assert by_kind["loss"][small].max() < 0.25
    assert by_kind["spurious"][small].max() < 0.1


def test_labels_without_a_loss_are_not_suspected_for_it() -> None:
    rows = usual_labels()
    rows["loss"][3] = np.nan
    by_kind, _ = score_evidence(rows)
    assert by_kind["loss"][3] == 0
    assert all(np.isfinite(scores).all() for scores in by_kind.values())
    rows["loss"] = np.nan
    assert score_evidence(rows)[0]["loss"].max() == 0


def test_common_contradictions_count_less() -> None:
    labels = np.zeros(100, np.int64)
    assert weighted(np.array([0.8]), np.array([0]), labels).tolist() == [0.8]
    # 20 others of 100 are contradicted as much: 1 + 5 * 20 / 100 = 2
    np.testing.assert_allclose(weighted(np.full(21, 0.8), np.zeros(21, int), labels), 0.4)
    np.testing.assert_allclose(weighted(np.array([0.8, 0.3, 0.3]), np.zeros(3, int), labels)[0], 0.8)
    # other classes do not matter
    np.testing.assert_allclose(weighted(np.array([0.8, 0.8]), np.array([0, 1]), labels), 0.8)
    assert len(weighted(np.zeros(0), np.zeros(0, int), labels)) == 0


def test_a_high_loss_backs_up_a_stronger_suspicion_only() -> None:
    rows = usual_labels()
    rows["given"][[10, 11]], rows["other"][[10, 11]] = 0.0, [0.6, 0.1]
    rows["loss"] = 0.2
    before, _ = score_evidence(rows)
    rows["loss"][[10, 11]] = 40.0
    after, _ = score_evidence(rows)
    np.testing.assert_allclose(after["loss"][10], 0.5, atol=0.03)
    assert after["class"][10] == pytest.approx(1 - (1 - before["class"][10]) * (1 - after["loss"][10]))
    assert after["class"][11] == pytest.approx(before["class"][11])


def test_groups_are_thirds_of_a_class_or_all_where_there_are_few() -> None:
    sides = np.arange(100) / 100.0
    class_ids = np.array([0] * 60 + [1] * 30 + [2] * 10)
    groups = group_of(class_ids, sides)
    assert [int((groups == number).sum()) for number in range(5)] == [10, 20, 20, 20, 30]
    assert groups[:20].tolist() == [1] * 20
    assert set(groups[90:].tolist()) == {0}


def places(count: int) -> list[tuple[str, object]]:
    return [("train", make_record([BOX], [0]))] * count


def with_unlabelled(labels: Rows, *detections: tuple[int, int, float]) -> Rows:
    """Labels, and detections without one: image, class and score."""
    made = np.zeros(len(detections), EVIDENCE)
    made["label"] = made["twin"] = -1
    made["found_xyxy"], made["weight"] = BOX, 1.0
    for number, detection in enumerate(detections):
        made["image"][number], made["class_id"][number], made["found"][number] = detection
    return np.concatenate([labels, made])


def test_the_order_has_all_kinds_with_ranks_and_reasons() -> None:
    rows = with_unlabelled(with_errors(), (60, 1, 0.9))
    assert score_evidence(rows)[0]["missing"][-1] == pytest.approx(0.9)
    suspects = suspects_of(rows, places(100), NAMES)
    assert {suspect.kind for suspect in suspects[:6]} == {*PLANTED.values(), "missing"}
    assert [suspect.rank for suspect in suspects] == list(range(1, len(suspects) + 1))
    assert [one.score for one in suspects] == sorted((one.score for one in suspects), reverse=True)
    for kind in PLANTED.values():
        of_kind = [suspect.kind_rank for suspect in suspects if suspect.kind == kind]
        assert of_kind == list(range(1, len(of_kind) + 1))
    reasons = {suspect.kind: suspect.reason for suspect in reversed(suspects)}
    assert reasons["class"] == "labelled nine, seen as ten 0.90, as nine 0.05"
    assert reasons["missing"] == "no label, but ten is seen 0.90; no label touches it"
    assert reasons["spurious"].startswith("labelled nine, hardly anything is seen there (0.00; usual: 0.8")
    assert "overlaps by 0.40 (usual: 0." in reasons["box"]
    assert "nine of image.txt:1 has nearly the same box (IoU 0.95)" in reasons["duplicate"]
    assert "costs 3.00 (usual: 0.2" in reasons["loss"]


def test_equal_suspects_keep_the_order_of_the_images() -> None:
    rows = usual_labels(40)
    rows["given"][[5, 25, 15]], rows["other"][[5, 25, 15]] = 0.0, 0.9
    rows["loss"] = 0.2
    rows["found"] = 0.9
    rows = with_unlabelled(rows, (30, 0, 0.7), (8, 0, 0.7))
    suspects = suspects_of(rows, [(str(number), record) for number, (_, record) in enumerate(places(40))], NAMES)
    assert [one.split for one in suspects if one.kind == "class"] == ["5", "15", "25"]
    assert [one.split for one in suspects if one.kind == "missing"] == ["8", "30"]
    assert suspects == suspects_of(rows, [(str(number), make_record([BOX], [0])) for number in range(40)], NAMES)


def test_no_labels_at_all_is_no_error() -> None:
    nothing = np.zeros(0, EVIDENCE)
    assert suspects_of(nothing, [], NAMES) == ()
    assert suspects_of(with_unlabelled(nothing, (0, 1, 0.8)), places(1), NAMES)[0].kind == "missing"
