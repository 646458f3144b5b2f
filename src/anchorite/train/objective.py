"""What a training step differentiates: the loss of a batch, as one module, alone or shared among ranks.

Legend: B images, H, W height and width in pixels, T targets.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anchorite.boxes import Targets
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.model import Detector


class Objective(nn.Module):
    """A detector and its loss. dtype: what the convolutions compute in by autocast, None for the weights' own type."""

    def __init__(self, detector: Detector, criterion: DetectionLoss, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.detector, self.criterion, self.dtype = detector, criterion, dtype

    def forward(self, images: Tensor, rows: Tensor, valid: Tensor | None, num_images: int | None) -> LossTerms:
        """The loss of images (B, 3, H, W) uint8 and targets (T, 6), valid (T,); num_images: of all ranks together."""
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            features = self.detector.features(normalised(images, self.dtype, self.detector))
            logits = self.detector.head.matched(features)
            terms: LossTerms = self.criterion(logits, Targets(rows, valid), num_images)
        return terms


def shared(objective: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The objective with gradients averaged over the ranks as they are made; all start from the first rank's weights.

    Buffers are not exchanged: statistics of batch normalisation stay each rank's own, and the first rank's are kept.
    """
    with warnings.catch_warnings():
        # The name that replaces `broadcast_buffers` is not in all releases of torch that are supported.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            objective,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def normalised(images: Tensor, dtype: torch.dtype | None, model: nn.Module) -> Tensor:
    """Images (B, 3, H, W) uint8 as floating point in 0..1, in the type that the first convolution wants."""
    return images.to(dtype or next(model.parameters()).dtype) / 255
