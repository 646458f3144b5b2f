from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from anchorite.boxes import LabelCoverage, Targets, clip_xyxy
from anchorite.data.batches import LetterboxedBatch
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.data.images import letterbox_transform
from anchorite.errors import DivergedError, InputError
from anchorite.evaluate import (
    ReadConfig,
    ValidationConfig,
    Validator,
    batch_coverage,
    batch_targets,
    predictions_in_images,
)
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.model import Detector, WeightsInfo, default_anchors
from anchorite.model.detector import is_folded
from anchorite.predict import BatchDetections, PredictConfig, Predictor
from tests.evaluate.scenes import ANCHORS, CLASS_NAMES, ColourDetector, make_record, make_records

SIZE = 320


@pytest.fixture
def records(tmp_path):
    return make_records(tmp_path)


@pytest.fixture
def validator(records):
    return Validator(records, CLASS_NAMES, SIZE, ReadConfig(4, "ram"))


def test_who_sees_every_box_is_perfect(validator, records):
    result = validator.run(ColourDetector())
    assert result.metrics.map == pytest.approx(1.0)
    assert result.metrics.ar_100 == pytest.approx(1.0)
    assert [one.ap for one in result.metrics.classes] == pytest.approx([1.0, 1.0, 1.0])
    for record, found in zip(records, result.predictions, strict=True):
        assert sorted(found.class_ids) == sorted(record.class_ids)
        order = [list(found.class_ids).index(class_id) for class_id in record.class_ids]
        # Half a pixel of the input, in pixels of the original.
        tolerance = 1.0 * max(record.width, record.height) / SIZE
        np.testing.assert_allclose(found.boxes_xyxy[order], record.boxes_xyxy, atol=tolerance)


@pytest.mark.parametrize(("kind", "expected"), [({"shift_class": 1}, 0.0), ({"blind_to": 1}, 2 / 3)])
def test_who_errs_is_not(validator, kind, expected):
    assert validator.run(ColourDetector(**kind)).metrics.map == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["ram", "none"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_founds_are_in_the_order_of_the_records_whatever_the_batches(records, validator, batch_size, mode):
    expected = validator.run(ColourDetector())
    other = Validator(records, CLASS_NAMES, SIZE, ReadConfig(batch_size, mode)).run(ColourDetector())
    assert other.metrics.map == pytest.approx(1.0)
    for one, two in zip(expected.predictions, other.predictions, strict=True):
        np.testing.assert_allclose(one.boxes_xyxy, two.boxes_xyxy, atol=1e-3)


def test_truth_is_the_record(tmp_path):
    record = make_record(tmp_path / "a.png", (320, 320), [(0, [10, 10, 150, 150]), (1, [160, 160, 300, 300])], [1])
    validator = Validator([record], CLASS_NAMES, SIZE)
    result = validator.run(ColourDetector(shift_class=2))
    assert result.truths[0].areas is record.areas
    assert result.metrics.classes[0].num_truths == 1
    assert result.metrics.classes[1].num_ignored == 1
    # Green, ignored, is taken for red: wrong, because the crowd is of green. Red is taken for blue: a miss.
    assert result.metrics.map == 0
    assert validator.run(ColourDetector()).metrics.map == pytest.approx(1.0)


def test_validation_config_decides_what_is_kept(validator):
    assert sum(map(len, validator.run(ColourDetector(), ValidationConfig(max_detections=1)).predictions)) == 6
    sure_of_nothing = validator.run(ColourDetector(), ValidationConfig(confidence=1.0))
    assert sum(map(len, sure_of_nothing.predictions)) == 0
    assert sure_of_nothing.metrics.map == 0
    defaults = ValidationConfig()
    assert (defaults.confidence, defaults.max_detections, defaults.multi_label) == (0.001, 300, True)
    assert defaults.predict_config() == PredictConfig(
        confidence=0.001, iou_threshold=defaults.iou_threshold, max_detections=300, multi_label=True
    )


def test_inputs_are_rectangles_unless_squares_are_asked_for(validator, records):
    for config, expected in (
        (ValidationConfig(), {(224, 320), (320, 192), (320, 320), (288, 320), (320, 224)}),
        (ValidationConfig(rectangular=False), {(320, 320)}),
    ):
        shapes: list[tuple[int, int]] = []
        result = validator.run(ColourDetector(lambda images, seen=shapes: seen.append(images.shape[2:])), config)
        assert {tuple(shape) for shape in shapes} == expected
        assert result.metrics.map == pytest.approx(1.0)


def test_boxes_of_a_batch_move_back_as_each_transform_moves_them(tmp_path):
    rng = np.random.default_rng(0)
    counts = [3, 0, 40, 1]
    transforms = [letterbox_transform(hw, (320, 256)) for hw in ((480, 640), (97, 61), (1000, 333), (320, 256))]
    lows = rng.uniform(-30, 280, (sum(counts), 2))
    boxes = torch.from_numpy(np.concatenate([lows, lows + rng.uniform(0, 90, lows.shape)], axis=1)).float()
    scores, class_ids = torch.rand(sum(counts)), torch.arange(sum(counts))
    predictions = predictions_in_images(BatchDetections(boxes, scores, class_ids, torch.tensor(counts)), transforms)
    dropped = 0
    for found, transform, boxes_xyxy, of_image in zip(
        predictions, transforms, boxes.split(counts), class_ids.split(counts), strict=True
    ):
        height, width = transform.source_size_hw
        expected = clip_xyxy(transform.to_source(boxes_xyxy.double()), width, height)
        inside = (expected[:, 2:] > expected[:, :2]).all(dim=1)
        np.testing.assert_array_equal(found.boxes_xyxy, expected[inside].numpy())
        np.testing.assert_array_equal(found.class_ids, of_image[inside].numpy())
        np.testing.assert_array_equal(found.scores, scores[of_image[inside]].double().numpy())
        dropped += int((~inside).sum())
    assert dropped > 0


def test_what_runs_is_folded_and_finds_the_same_and_the_detector_stays_as_it_was(records, monkeypatch):
    torch.manual_seed(0)
    detector = Detector("n", 3, default_anchors("n")).train()
    detector(torch.rand(4, 3, 64, 64))  # statistics that are not those of the start
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    validator = Validator(records, CLASS_NAMES, SIZE)
    config = ValidationConfig(confidence=1e-5, max_detections=30)
    folded = validator.run(detector, config)
    assert not is_folded(detector)
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    monkeypatch.setattr("anchorite.predict.engine.fold_batch_norm", lambda detector: detector.eval())
    plain = validator.run(detector, config)
    assert sum(map(len, plain.predictions)) > 100
    for one, other in zip(folded.predictions, plain.predictions, strict=True):
        np.testing.assert_allclose(np.sort(one.scores), np.sort(other.scores), rtol=1e-3)


def test_losses_are_means_over_images(tmp_path):
    # Pictures of the input's own size, so that the targets are known without a letterbox.
    boxes = [[(0, [40, 48, 150, 160])], [], [(2, [10, 20, 130, 140]), (1, [160, 20, 310, 190])]]
    records = [make_record(tmp_path / f"{n}.png", (320, 192), rows) for n, rows in enumerate(boxes)]
    criterion = DetectionLoss(ANCHORS, len(CLASS_NAMES)).train()
    shown = []
    detector = ColourDetector(hook=lambda images: shown.append(images.clone()), shift_class=1)
    losses = Validator(records, CLASS_NAMES, SIZE, ReadConfig(1)).run(detector, criterion=criterion).losses
    assert criterion.training

    terms = []
    for images, rows in zip(shown, boxes, strict=True):
        targets = [
            [0, class_id, (x1 + x2) / 2 / 320, (y1 + y2) / 2 / 192, (x2 - x1) / 320, (y2 - y1) / 192]
            for class_id, (x1, y1, x2, y2) in rows
        ]
        targets = Targets.from_rows(torch.tensor(targets, dtype=torch.float32).reshape(-1, 6))
        terms.append(torch.stack(criterion(ColourDetector(shift_class=1)(images), targets)[1:]))
    expected = torch.stack(terms).mean(dim=0).tolist()
    assert [losses.box, losses.objectness, losses.classification] == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0


def test_losses_weigh_images_equally(records):
    class Counting:
        """A criterion whose box loss is the number of images in the batch."""

        def __call__(self, logits, targets):
            count = torch.tensor(float(logits[0].shape[0]))
            return LossTerms(count, count, torch.tensor(float(len(targets))), torch.tensor(0.0))

    one_image = records[0]
    validator = Validator([one_image] * 3, CLASS_NAMES, SIZE, ReadConfig(2))
    losses = validator.run(ColourDetector(), criterion=Counting()).losses
    assert losses.box == pytest.approx((2 * 2 + 1 * 1) / 3)
    assert losses.objectness == pytest.approx((2 * 4 + 1 * 2) / 3)


def test_ignored_labels_are_no_targets(tmp_path):
    seen = []

    class Recording:
        def __call__(self, logits, targets, coverage):
            seen.append(targets.rows)
            return LossTerms(*[torch.tensor(0.0)] * 4)

    record = make_record(tmp_path / "a.png", (640, 320), [(0, [20, 20, 300, 300]), (1, [400, 100, 600, 300])], [0])
    Validator([record], CLASS_NAMES, SIZE).run(ColourDetector(), criterion=Recording())
    # 640 x 320 becomes 320 x 160 in an input of the same size.
    np.testing.assert_allclose(seen[0].numpy(), [[0, 1, 500 / 640, 200 / 320, 200 / 640, 200 / 320]], rtol=1e-6)


def test_detector_runs_in_inference_and_evaluation_mode_and_gets_its_own_back(validator):
    states = []

    class Watched(ColourDetector):
        def forward(self, images):
            states.append((torch.is_inference_mode_enabled(), self.training, torch.is_autocast_enabled("cpu")))
            assert images.dtype == torch.float32
            assert 0 <= images.min() <= images.max() <= 1
            return super().forward(images)

    detector = Watched().train()
    validator.run(detector)
    assert detector.training
    assert set(states) == {(True, False, False)}
    states.clear()
    validator.run(detector, autocast_dtype=torch.bfloat16)
    assert set(states) == {(True, False, True)}
    states.clear()
    validator.run(detector, autocast_dtype=torch.float32)
    assert set(states) == {(True, False, False)}


def test_output_that_is_not_finite_is_an_error_that_names_the_image(tmp_path):
    class Broken(ColourDetector):
        def forward(self, images):
            logits = super().forward(images)
            if images[:, 2].max() > 0.5:
                image = int(images[:, 2].flatten(1).max(dim=1).values.argmax())
                logits[1][image, 0, 0, 0, 0] = float("nan")
            return logits

    good = [make_record(tmp_path / f"good{n}.png", (320, 320), [(0, [9, 9, 99, 99])]) for n in range(3)]
    bad = make_record(tmp_path / "bad.png", (320, 320), [(2, [9, 9, 99, 99])])
    detector = Broken().train()
    with pytest.raises(DivergedError, match=r"bad\.png"):
        Validator([*good, bad], CLASS_NAMES, SIZE).run(detector)
    assert detector.training
    assert Validator(good, CLASS_NAMES, SIZE).run(detector).metrics.map == pytest.approx(1.0)


def test_refuses_what_does_not_fit(validator, records):
    with pytest.raises(InputError, match="3 classes, the dataset has 2"):
        Validator(records, CLASS_NAMES[:2], SIZE).run(ColourDetector())
    with pytest.raises(InputError, match="got 0 images"):
        Validator([], CLASS_NAMES, SIZE)
    with pytest.raises(InputError, match="multiple of the largest stride, 32"):
        Validator(records[:1], CLASS_NAMES, 16).run(ColourDetector())


def test_rows_json_table_and_plots(validator, tmp_path):
    result = validator.run(ColourDetector(blind_to=1), criterion=DetectionLoss(ANCHORS, 3))
    rows = dict(result.rows())
    assert list(rows)[:3] == ["val/map", "val/map50", "val/map75"]
    assert rows["val/map"] == pytest.approx(2 / 3)
    assert {"val/box", "val/objectness", "val/classification", "val/images_per_second"} <= set(rows)
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["images"] == 7
    assert plain["metrics"]["classes"][1]["ap"] == 0
    assert plain["metrics"]["map_small"] is None
    assert plain["best_f1"]["f1"] == pytest.approx(2 / 3)
    table = result.table().splitlines()
    assert table[0].split() == ["class", "images", "labels", "AP", "AP50", "F1", "at"]
    assert table[1].split()[:5] == ["all", "7", "10", "0.6667", "0.6667"]
    assert table[3].split()[:5] == ["green", "4", "4", "0.0000", "0.0000"]
    assert len({len(line) for line in table[:5]}) == 1
    paths = result.save_plots(tmp_path / "new" / "plots")
    assert [path.name for path in paths] == ["pr_curve.png", "f1_curve.png", "confusion_matrix.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


def test_no_labels_at_all_still_gives_a_report(tmp_path):
    record = make_record(tmp_path / "a.png", (320, 320), [])
    result = Validator([record], ["a", "b", "c"], SIZE).run(ColourDetector())
    assert np.isnan(result.metrics.map)
    assert "all" in result.table()
    json.dumps(result.to_json(), allow_nan=False)


def test_time_is_accounted_for(validator):
    result = validator.run(ColourDetector(hook=lambda _: time.sleep(0.05)))
    speed = result.speed
    assert 0.05 * 2 <= speed.seconds_forward < 5
    total = speed.seconds_data + speed.seconds_forward + speed.seconds_nms
    assert speed.images_per_second == pytest.approx(7 / total)
    assert speed.seconds_metrics > 0


def test_agrees_with_the_predictor(records):
    torch.manual_seed(0)
    detector = Detector("n", len(CLASS_NAMES), default_anchors("n")).eval()
    info = WeightsInfo("n", CLASS_NAMES, detector.anchors, SIZE)
    config = ValidationConfig(max_detections=10)
    predictions = Validator(records, CLASS_NAMES, SIZE, ReadConfig(1)).run(detector, config).predictions
    predictor = Predictor(detector, info, device="cpu", precision="fp32")
    stream = predictor.stream([record.path for record in records], config.predict_config())
    predicted = [detections for _, detections in stream]
    assert sum(map(len, predictions)) > 30
    for found, detections in zip(predictions, predicted, strict=True):
        assert len(found) == len(detections)
        np.testing.assert_allclose(found.scores, detections.scores.numpy(), rtol=1e-3)


def test_what_labels_do_not_know_reaches_the_loss_of_their_own_image(tmp_path):
    # 64 x 32 px in 64 x 64: 16 px of padding above. The second image knows everything.
    boxes = [(1, [8, 4, 24, 12]), (NO_CLASS, [0, 0, 32, 32]), (0, [40, 8, 56, 24])]
    first = replace(
        make_record(tmp_path / "a.png", (64, 32), boxes, ignored=(1,)),
        weights=np.array([0.5, 1, 1], np.float32),
        source=LabelSource("some", (True, True, False), 0.25),
    )
    second = make_record(tmp_path / "b.png", (64, 32), [(2, boxes[0][1])])
    transforms = (letterbox_transform((32, 64), (64, 64)),) * 2
    batch = LetterboxedBatch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), transforms, torch.tensor([1, 0]))
    targets, coverage = batch_targets([first, second], batch), batch_coverage([first, second], batch)
    assert targets.rows[:, :2].tolist() == [[0, 2], [1, 1], [1, 0]]
    assert targets.weights is not None
    assert targets.weights.tolist() == [1, 0.5, 1]
    assert coverage is not None
    torch.testing.assert_close(coverage.ignore_regions, torch.tensor([[1, 0.25, 0.5, 0.5, 0.5]]))
    assert torch.equal(coverage.covered_classes, torch.tensor([[True] * 3, [True, True, False]]))
    torch.testing.assert_close(coverage.background_weight, torch.tensor([1, 0.25]))
    alone = LetterboxedBatch(batch.images[:1], transforms[:1], torch.tensor([1]))
    assert batch_targets([first, second], alone).weights is None
    assert batch_coverage([first, second], alone) is None


def test_what_labels_do_not_know_is_neither_right_nor_wrong_and_weighs_in_the_losses(tmp_path):
    # Red and blue are found everywhere; of the second image only red was labelled, and a place may hold anything.
    boxes = [(0, [40, 48, 150, 160]), (2, [170, 20, 300, 140])]
    plain = make_record(tmp_path / "a.png", (320, 192), boxes)
    partly = make_record(tmp_path / "b.png", (320, 192), boxes)
    source = LabelSource("b", (True, False, False), 0.25)
    region = replace(partly, class_ids=np.array([0, NO_CLASS]), ignored=np.array([False, True]))
    red_alone = make_record(tmp_path / "c.png", (320, 192), boxes[:1])
    uncovered = replace(red_alone, path=partly.path, source=source)
    for unknown in (region, uncovered):
        result = Validator([unknown, plain], CLASS_NAMES, SIZE).run(ColourDetector())
        assert result.metrics.map == pytest.approx(1)
        assert [one.num_truths for one in result.metrics.classes] == [2, 0, 1]
    info = WeightsInfo("n", CLASS_NAMES, ANCHORS, SIZE)
    predictor = Predictor(ColourDetector(), info, device="cpu", precision="fp32")
    assert Validator([unknown, plain], CLASS_NAMES, SIZE).run_predictor(predictor).metrics.map == pytest.approx(1)
    assert result.images_covering() == {"red": 2, "green": 1, "blue": 1}
    assert "blue: measured on 1 of 2 images" in result.table()
    background = replace(uncovered, source=replace(source, covered=None))
    assert Validator([background, plain], CLASS_NAMES, SIZE).run(ColourDetector()).metrics.map < 1

    shown = []
    detector = ColourDetector(hook=lambda images: shown.append(images.clone()), shift_class=1)
    criterion = DetectionLoss(ANCHORS, len(CLASS_NAMES))
    weighted = replace(uncovered, weights=np.array([0.5], np.float32))
    both = replace(region, source=replace(source, covered=None), weights=weighted.weights.repeat(2))
    red = torch.tensor([[0, 0, 95 / 320, 104 / 192, 110 / 320, 112 / 192]])
    place = torch.tensor([[0, 235 / 320, 80 / 192, 130 / 320, 120 / 192]])
    for record, coverage in (
        (weighted, LabelCoverage(None, torch.tensor([[True, False, False]]), torch.tensor([0.25]))),
        (both, LabelCoverage(place, None, torch.tensor([0.25]))),
    ):
        losses = Validator([record], CLASS_NAMES, SIZE, ReadConfig(1)).run(detector, criterion=criterion).losses
        logits = ColourDetector(shift_class=1)(shown[-1])
        expected = criterion(logits, Targets.from_rows(red, torch.tensor([0.5])), coverage)[1:]
        assert [*losses] == pytest.approx([float(term) for term in expected], rel=1e-5)
