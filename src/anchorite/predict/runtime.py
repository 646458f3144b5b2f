"""What `Predictor` and `Validator` need of a network that is run: images in, detections out, whoever computes them.

Legend: B images, H, W of the network input in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from anchorite.choices import PrecisionName
from anchorite.devices import choose_device, choose_precision
from anchorite.errors import InputError
from anchorite.model import Detector, WeightsInfo, fold_batch_norm, to_channels_last
from anchorite.predict.config import PredictConfig
from anchorite.predict.postprocess import BatchDetections, batch_detections


class Runtime(Protocol):
    """A network with its weights, ready to run; `TorchRuntime` is one, a loaded export another."""

    @property
    def info(self) -> WeightsInfo:
        """Size, class names, anchors and input size of the network."""

    @property
    def fixed_side(self) -> int | None:
        """Side in pixels of the only (square) input that is taken; None where H and W are free."""

    @property
    def name(self) -> str:
        """Where and in which number format it runs, for people."""

    def outputs(self, images: Tensor) -> Sequence[Tensor]:
        """Whatever the network puts out, image first in every tensor, for uint8 RGB images (B, 3, H, W)."""

    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """What was found, in pixels of the network input.

        Raises InputError when the outputs are not finite or the limits are not to be had from this network.
        """


class TorchRuntime:
    """A detector's folded copy on one device; device and precision as for `Predictor`."""

    fixed_side = None

    def __init__(self, detector: Detector, info: WeightsInfo, device: str, precision: PrecisionName) -> None:
        self.info = info
        self.device = choose_device(device)
        self.dtype = _dtype(precision, self.device)
        self.detector = fold_batch_norm(detector).to(device=self.device, dtype=self.dtype)
        to_channels_last(self.detector)

    @property
    def name(self) -> str:
        """Device and number format."""
        return f"{self.device} {str(self.dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> list[Tensor]:
        """The logits of L levels."""
        return self.detector(images.to(self.device).to(self.dtype).div_(255))

    @torch.inference_mode()
    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """The detections of logits; raises InputError when they are not finite."""
        self._check_finite(outputs)
        return batch_detections(outputs, self.detector.anchors, config)

    def _check_finite(self, logits: Sequence[Tensor]) -> None:
        """Nothing found must mean that nothing is there."""
        # A sum passes on what is not finite, and needs no map of answers; one that overflows is looked into.
        if bool(torch.stack([level[:, :, 4].sum(dtype=torch.float32) for level in logits]).isfinite().all()):
            return
        if all(bool(level[:, :, 4].isfinite().all()) for level in logits):
            return
        if self.dtype == torch.float16:
            raise InputError('the network overflows in float16; use precision "bf16" or "fp32"')
        raise InputError("the network's output is not finite: its weights are damaged or its training diverged")


def _dtype(precision: PrecisionName, device: torch.device) -> torch.dtype:
    """What weights and images are converted to: the number format asked for; "auto" stays exact on a CPU."""
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return choose_precision(precision, device).dtype or torch.float32
