"""Measuring what turns image files into detections by itself."""

from __future__ import annotations

import numpy as np
import pytest

from anchorite.errors import InputError
from anchorite.evaluate import ReadConfig, ValidationConfig, Validator
from anchorite.model import WeightsInfo
from anchorite.predict import Ensemble, Member, Predictor, ViewConfig
from tests.evaluate.scenes import ANCHORS, CLASS_NAMES, ColourDetector, make_record, make_records

SIZE = 320
INFO = WeightsInfo("n", CLASS_NAMES, ANCHORS, SIZE)


def predictor(**kind: object) -> Predictor:
    return Predictor(ColourDetector(**kind), INFO, device="cpu")


def test_a_predictor_gets_the_numbers_of_its_detector(tmp_path):
    records = make_records(tmp_path)
    validator = Validator(records, CLASS_NAMES, SIZE, ReadConfig(3, "none"))
    for kind in ({}, {"shift_class": 1}, {"blind_to": 1}):
        found, expected = validator.run_predictor(predictor(**kind)), validator.run(ColourDetector(**kind))
        assert dict(found.metrics.rows()) == pytest.approx(dict(expected.metrics.rows()), nan_ok=True)
        assert found.truths is expected.truths
        for one, other in zip(found.predictions, expected.predictions, strict=True):
            np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
            np.testing.assert_array_equal(one.class_ids, other.class_ids)
    assert found.losses is None
    assert found.speed.images_per_second > 0


def test_an_ensemble_is_measured_at_the_resolution_of_the_files(tmp_path):
    # Shrunk to 32 pixels, a box of 20 in 1280 is half a pixel; in its window it is 5.
    record = make_record(tmp_path / "a.png", (1280, 1280), [(0, [602, 608, 622, 628])])
    validator = Validator([record], CLASS_NAMES, 32, ReadConfig(store_mode="none"))
    tiled = Ensemble([Member(predictor())], ViewConfig(tile=128, whole_image=False))
    assert validator.run_predictor(tiled, image_size=32).metrics.map50 == pytest.approx(1.0)
    assert validator.run_predictor(predictor(), image_size=32).metrics.map50 == 0


def test_limits_and_classes_are_those_of_validation(tmp_path):
    validator = Validator(make_records(tmp_path), CLASS_NAMES, SIZE)
    assert sum(map(len, validator.run_predictor(predictor(), ValidationConfig(max_detections=1)).predictions)) == 6
    assert sum(map(len, validator.run_predictor(predictor(), ValidationConfig(confidence=1.0)).predictions)) == 0
    two = Validator(make_records(tmp_path), CLASS_NAMES[:2], SIZE)
    with pytest.raises(InputError, match="3 classes, the dataset has 2"):
        two.run_predictor(predictor())
