"""The matched-cell head and the dense head give the criterion the same loss and the network the same gradients."""

from __future__ import annotations

import pytest
import torch

from anchorite.boxes import LabelCoverage, Targets
from anchorite.loss import DetectionLoss, LossConfig, LossTerms
from anchorite.model import Detector, default_anchors


def random_targets(generator: torch.Generator, num_images: int, num_classes: int, per_image: int) -> torch.Tensor:
    """(T, 6) rows in float64, boxes of 2 to 60 % of the image, several to a cell."""
    count = num_images * per_image
    image = torch.arange(count) // per_image
    label = torch.randint(num_classes, (count,), generator=generator)
    centres = (torch.rand((count, 2), generator=generator, dtype=torch.float64) * 6).round() / 6
    sides = 0.02 + 0.58 * torch.rand((count, 2), generator=generator, dtype=torch.float64)
    return torch.cat([image[:, None], label[:, None], centres, sides], dim=1)


def loss_and_gradients(
    detector: Detector,
    loss: DetectionLoss,
    images: torch.Tensor,
    targets: Targets,
    head: str,
    coverage: LabelCoverage | None = None,
) -> tuple[LossTerms, dict[str, torch.Tensor]]:
    detector.zero_grad()
    features = detector.features(images)
    logits = detector.head.matched(features) if head == "matched" else detector.head.dense(features)
    terms = loss(logits, targets, coverage)
    terms.total.backward()
    return terms, {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("size", "num_classes"), [("n", 1), ("n", 7), ("n6", 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_equal_loss_and_gradients(
    dtype: torch.dtype, tolerance: float, size: str, num_classes: int, padded: bool
) -> None:
    """The matched-cell head, in either precision, against the dense one in float64 on the same numbers.

    Not float32 against float32: objectness biases are small sums of large terms, where the dense way is 8e-6 off.
    """
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    anchors = default_anchors(size)
    detector = Detector(size, num_classes, anchors).eval()
    loss = DetectionLoss(anchors, num_classes, LossConfig(label_smoothing=0.1, focal_gamma=1.5))
    images = torch.rand((2, 3, 128, 192), generator=generator)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    capacity = 50 if padded else None
    targets = Targets.from_rows(random_targets(generator, 2, num_classes, 20), weights, capacity=capacity)
    covered = torch.ones(2, num_classes, dtype=torch.bool)
    regions = torch.tensor([[0, 0.2, 0.2, 0.3, 0.3], [1, 0.6, 0.5, 0.5, 0.9]], dtype=torch.float64)
    known = LabelCoverage(regions, covered, torch.tensor([1.0, 0.3], dtype=torch.float64))
    dense, dense_gradients = loss_and_gradients(detector.double(), loss, images.double(), targets, "dense", known)
    detector, images = detector.to(dtype), images.to(dtype)
    matched, matched_gradients = loss_and_gradients(detector, loss, images, targets, "matched", known)
    for name in LossTerms._fields:
        torch.testing.assert_close(getattr(matched, name).double(), getattr(dense, name), rtol=tolerance, atol=0)
    assert matched_gradients.keys() == dense_gradients.keys() == dict(detector.named_parameters()).keys()
    largest = max(float(gradient.abs().max()) for gradient in dense_gradients.values())
    for name, gradient in dense_gradients.items():
        scale = float(gradient.abs().max()) if dtype == torch.float64 else largest
        worst = float((matched_gradients[name].double() - gradient).abs().max()) / scale
        assert worst <= tolerance, f"{name}: {worst}"


def test_images_without_objects_still_teach_objectness() -> None:
    torch.manual_seed(0)
    anchors = default_anchors("n")
    detector = Detector("n", 3, anchors).double().eval()
    targets = Targets.from_rows(torch.zeros((0, 6), dtype=torch.float64))
    images = torch.rand((1, 3, 64, 64), dtype=torch.float64)
    loss = DetectionLoss(anchors, 3)
    dense, dense_gradients = loss_and_gradients(detector, loss, images, targets, "dense")
    matched, matched_gradients = loss_and_gradients(detector, loss, images, targets, "matched")
    assert matched.box == matched.classification == 0
    torch.testing.assert_close(matched.total, dense.total, rtol=1e-12, atol=0)
    weight = matched_gradients["head.predictors.p3.weight"].view(3, 8, -1)
    assert weight[:, 4].abs().max() > 0
    assert weight[:, [0, 1, 2, 3, 5, 6, 7]].abs().max() == 0
    torch.testing.assert_close(weight, dense_gradients["head.predictors.p3.weight"].view(3, 8, -1), rtol=1e-10, atol=0)
