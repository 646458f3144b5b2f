"""What is measured: detectors, feature maps, targets and batches, synthetic and equal from run to run.

Legend: B images, L levels, C_l channels, H_l, W_l cells, T objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anchorite.boxes import Targets
from anchorite.data import Batch
from anchorite.model import Detector, default_anchors, to_channels_last

Predictors = Sequence[nn.Conv2d]

_SHORTEST, _LONGEST = 0.02, 0.6  # sides of objects, as fractions of the image's


def detector_of(size: str, num_classes: int, device: torch.device, seed: int = 0) -> Detector:
    """A detector with random weights, the same ones for the same arguments, laid out as channels_last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(size, num_classes, default_anchors(size))
    detector = detector.to(device)
    to_channels_last(detector)
    return detector


def predictors_of(detector: Detector) -> list[nn.Conv2d]:
    """The head's convolutions, fine to coarse."""
    return [module for module in detector.head.predictors.values() if isinstance(module, nn.Conv2d)]


def features_for(
    detector: Detector, batch: int, image_size: int, dtype: torch.dtype, device: torch.device, seed: int = 1
) -> list[Tensor]:
    """Random leaf maps (B, C_l, H_l, W_l) that want a gradient, as the neck leaves them: channels_last, spread 1."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for predictor, stride in zip(predictors_of(detector), detector.strides, strict=True):
        side = image_size // stride
        values = torch.randn(batch, predictor.in_channels, side, side, generator=generator)
        values = values.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        maps.append(values.requires_grad_())
    return maps


def targets_for(batch: int, objects: int, num_classes: int, device: torch.device, seed: int = 2) -> Targets:
    """`objects` boxes in each of `batch` images: sides spread evenly over their logarithm, inside the image."""
    generator = torch.Generator().manual_seed(seed)
    total = batch * objects
    sides = _SHORTEST * (_LONGEST / _SHORTEST) ** torch.rand(total, 2, generator=generator)
    centres = sides / 2 + torch.rand(total, 2, generator=generator) * (1 - sides)
    images = torch.arange(batch).repeat_interleave(objects)
    classes = torch.randint(num_classes, (total,), generator=generator)
    rows = torch.cat([torch.stack([images, classes], dim=1).float(), centres, sides], dim=1)
    return Targets.from_rows(rows.to(device))


def batch_for(
    batch: int, image_size: int, objects: int, num_classes: int, device: torch.device, seed: int = 3
) -> Batch:
    """Noise images as a loader would hand them over, with `objects` boxes each."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    targets = targets_for(batch, objects, num_classes, device, seed)
    return Batch(pixels.permute(0, 3, 1, 2).to(device), targets, torch.arange(batch))


@torch.no_grad()
def find_objects(detector: Detector, images: Tensor, per_image: int, confidence: float) -> None:
    """Make a detector of random weights find things: as many places of `images` as asked for reach the confidence.

    images: (B, 3, H, W) in 0..1. Normalisation takes its statistics from the images, one class of each anchor becomes
    likely, and the objectness is shifted until, over all images, `per_image` places an image score `confidence`. It
    stays in evaluation mode.
    """
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    detector.train()
    detector(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    detector.eval()
    for predictor in predictors_of(detector):
        assert predictor.bias is not None
        by_anchor = predictor.bias.view(detector.head.num_anchors, -1)
        by_anchor[:, 5:] = -8.0
        for anchor in range(len(by_anchor)):
            by_anchor[anchor, 5 + anchor % detector.num_classes] = 4.0
    needed = []
    for level in detector(images):
        best = level[:, :, 5:].amax(dim=2).sigmoid()
        enough = torch.logit((confidence / best).clamp(max=1 - 1e-6))
        needed.append((enough - level[:, :, 4]).flatten())
    shift = torch.cat(needed).kthvalue(per_image * len(images)).values + 1e-4  # a hair, for rounding
    for predictor in predictors_of(detector):
        assert predictor.bias is not None
        predictor.bias.view(detector.head.num_anchors, -1)[:, 4] += shift
