"""Detectors made to find things, and the data of benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchorite.benchmark import batch_for, detector_of
from anchorite.data import DatasetIndex
from anchorite.errors import InputError
from anchorite.predict import PredictConfig, detections_from_logits
from benchmarks.measure import Settings, dataset_for, described, find_objects, split_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_classes", "confidence"), [(1, 0.25), (5, 0.25), (3, 0.001)])
def test_as_many_places_reach_the_confidence_as_asked_for(num_classes: int, confidence: float) -> None:
    images = batch_for(3, 64, 0, num_classes, CPU).images.float() / 255
    detector = detector_of("n", num_classes, CPU)
    find_objects(detector, images, 20, confidence)
    assert not detector.training
    # Without suppression, a detection a place.
    config = PredictConfig(confidence=confidence, iou_threshold=1.0)
    with torch.no_grad():
        found = detections_from_logits(detector(images), detector.anchors, config)
    assert abs(sum(map(len, found)) - 3 * 20) <= 1


def test_the_same_arguments_give_the_same_weights_and_leave_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = detector_of("n", 4, CPU), detector_of("n", 4, CPU)
    assert torch.equal(torch.rand(1), expected)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_drawn_scenes_are_removed_again() -> None:
    settings = Settings(CPU, quick=True)
    with dataset_for(settings) as dataset:
        path = split_of(dataset, "test")[0].path
        assert path.is_file()
        assert described(dataset, settings) == "drawn scenes: 8 train, 2 val, 4 test"
    assert not path.exists()


def test_a_missing_split_is_named() -> None:
    empty = DatasetIndex(Path("photos"), "yolo", ("a",), {"train": ()})
    with pytest.raises(InputError, match="photos: no images in the splits test, val"):
        split_of(empty, "test", "val")
