"""One training step: forward, loss, backward, clipping, optimizer, average."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anchorite.boxes import Targets
from anchorite.data import Batch
from anchorite.devices import Precision
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.model import Detector
from anchorite.train.average import WeightAverage
from anchorite.train.optimizer import apply_settings, clip_gradients
from anchorite.train.schedule import Settings

_LEAST_CAPACITY = 64


@dataclass
class Trainee:
    """What a run changes: the network, the loss's balance, the optimizer, the average and the gradient scaler."""

    detector: Detector
    criterion: DetectionLoss
    optimizer: Optimizer
    average: WeightAverage[Detector]
    scaler: torch.amp.GradScaler


class TrainingStep:
    """Runs batches through a trainee; gradients add up until `apply`.

    The convolutions run in `precision`, the loss in float32; images are normalised on the device. compiled: fuse
    forward pass and loss, and the backward pass, by torch.compile.
    """

    def __init__(
        self, trainee: Trainee, precision: Precision, clip_norm: float, device: torch.device, compiled: bool = False
    ) -> None:
        self.trainee = trainee
        self.precision = precision
        self.clip_norm = clip_norm
        self.device = device
        self._parameters: list[nn.Parameter] = list(trainee.detector.parameters())
        self._static = compiled or device.type == "cuda"
        self._forward = torch.compile(self._terms, fullgraph=True) if compiled else self._terms

    def accumulate(self, batch: Batch) -> LossTerms:
        """Add the gradients of one batch; its loss, detached."""
        if self._static:
            batch = replace(batch, targets=with_fixed_capacity(batch.targets))
        batch = batch.to(self.device, non_blocking=True)
        terms = self._forward(batch.images, batch.targets.rows, batch.targets.valid)
        self.trainee.scaler.scale(terms.total).backward()
        return LossTerms(*(term.detach() for term in terms))

    def _terms(self, images: Tensor, rows: Tensor, valid: Tensor | None) -> LossTerms:
        """The loss of images (B, 3, H, W) uint8 and the rows of their targets."""
        detector, criterion, dtype = self.trainee.detector, self.trainee.criterion, self.precision.dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            features = detector.features(normalised(images, dtype))
            terms: LossTerms = criterion(detector.head.matched(features), Targets(rows, valid))
        return terms

    def apply(self, settings: Settings) -> Tensor:
        """Move the weights by the gradients gathered so far, at the given settings; the gradient norm (scalar)."""
        trainee = self.trainee
        apply_settings(trainee.optimizer, settings.rate, settings.bias_rate, settings.momentum)
        trainee.scaler.unscale_(trainee.optimizer)
        norm = clip_gradients(self._parameters, self.clip_norm)
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        trainee.optimizer.zero_grad(set_to_none=True)
        trainee.average.update()
        return norm


def with_fixed_capacity(targets: Targets) -> Targets:
    """Padded targets: of compact ones, to the next power of two (64 at least), so that few shapes occur in a run."""
    if targets.is_padded:
        return targets
    return targets.padded(max(_LEAST_CAPACITY, 1 << (len(targets) - 1).bit_length()))


def normalised(images: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Images (B, 3, H, W) uint8 as floating point in 0..1, in the type that the first convolution wants."""
    return images.to(dtype or torch.float32) / 255
