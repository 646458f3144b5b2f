"""The dense yardstick computes what DetectionLoss computes, so that comparing their speed is fair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anchorite.benchmark import detector_of, targets_for
from anchorite.boxes import Targets
from anchorite.loss import DetectionLoss, LossConfig, assign
from benchmarks.loss import DenseLoss, assign_by_masks, dense_logits, make_works
from benchmarks.measure import features_for, predictors_of

CPU = torch.device("cpu")
TOLERANCE = 1e-10


def both(targets: Targets, num_classes: int, image_size: int = 128) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and gradients of features and head of ours and of the dense way, in float64."""
    detector = detector_of("n", num_classes, CPU).double()
    features = features_for(detector, 3, image_size, torch.float64, CPU)
    wanted = [*features, *detector.head.parameters()]
    config = LossConfig(box_gain=0.3, objectness_gain=0.7, class_gain=1.1)
    ours = DetectionLoss(detector.anchors, num_classes, config)(detector.head.matched(features), targets).total
    plain = DenseLoss(detector.anchors.cells(torch.float64), config)
    dense = plain(dense_logits(features, predictors_of(detector), 3), targets.rows)
    return (
        [ours, *torch.autograd.grad(ours, wanted)],
        [dense, *torch.autograd.grad(dense, wanted)],
    )


@pytest.mark.parametrize("num_classes", [1, 2, 80])
@pytest.mark.parametrize("objects", [1, 8, 100])
def test_same_loss_and_gradients(num_classes: int, objects: int) -> None:
    targets = Targets.from_rows(targets_for(3, objects, num_classes, CPU).rows.double())
    for ours, dense in zip(*both(targets, num_classes), strict=True):
        assert (ours - dense).abs().max() <= TOLERANCE * ours.abs().max()


def test_same_without_objects_and_with_an_image_that_has_none() -> None:
    for rows in (torch.zeros((0, 6)), torch.tensor([[2.0, 1.0, 0.99, 0.01, 0.02, 0.015]])):
        for ours, dense in zip(*both(Targets.from_rows(rows.double()), 4), strict=True):
            assert (ours - dense).abs().max() <= TOLERANCE * max(1.0, ours.abs().max().item())


def test_same_where_many_objects_contend_for_few_places() -> None:
    rows = targets_for(3, 60, 5, CPU).rows.double()
    rows[:, 2:4] = 0.4 + rows[:, 2:4] * 0.1
    found = assign(Targets.from_rows(rows), detector_of("n", 5, CPU).anchors, [(16, 16), (8, 8), (4, 4)])[0]
    places = torch.stack([found.image, found.anchor, found.row, found.column], dim=1)
    assert len(places.unique(dim=0)) < len(places) / 2
    for ours, dense in zip(*both(Targets.from_rows(rows), 5), strict=True):
        assert (ours - dense).abs().max() <= TOLERANCE * ours.abs().max()


def test_same_candidates_in_the_same_order() -> None:
    rows = targets_for(4, 50, 7, CPU).rows.double()
    anchors = detector_of("n", 7, CPU).anchors
    grids = [(20, 12), (10, 6), (5, 3)]
    for level, ours in enumerate(assign(Targets.from_rows(rows), anchors, grids)):
        plain = assign_by_masks(rows, anchors.cells(torch.float64)[level], grids[level], 4.0)
        for name in ("image", "anchor", "row", "column", "class_index", "box"):
            assert torch.equal(getattr(ours, name), getattr(plain, name)), name


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_what_is_timed_gives_the_same_loss_and_gradients(precision: str, tolerance: float) -> None:
    ours, dense, features = make_works(CPU, 2, 128, precision, 8, 80)
    assert features[0].is_contiguous(memory_format=torch.channels_last)
    found, expected = ours(), dense()
    assert isinstance(found, tuple)
    assert isinstance(expected, tuple)
    assert len(found) == len(expected) == 1 + 3 + 6
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()
