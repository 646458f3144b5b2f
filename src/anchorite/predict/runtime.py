"""A network ready to run: images in, detections out, whatever computes them.

Legend: B images, L levels, A anchors, K classes, H, W of the network input in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from anchorite.choices import PrecisionName
from anchorite.devices import choose_device, choose_precision
from anchorite.errors import DivergedError, InputError
from anchorite.model import Detector, WeightsInfo, fold_batch_norm, to_channels_last
from anchorite.predict.postprocess import BatchDetections, PredictConfig, batch_detections


class Runtime(Protocol):
    """A network with its weights; `TorchRuntime` is one, a loaded export another."""

    @property
    def info(self) -> WeightsInfo:
        """Size, class names, anchors and input size of the network."""

    @property
    def fixed_side(self) -> int | None:
        """Side in pixels of the only (square) input that is taken; None where H and W are free."""

    @property
    def name(self) -> str:
        """Where and in which number format it runs, for people."""

    @property
    def least_confidence(self) -> float:
        """Below which it cannot be asked, as an export with its suppression inside; else 0."""

    def outputs(self, images: Tensor) -> Sequence[Tensor]:
        """Whatever the network puts out, image first in every tensor, for uint8 RGB images (B, 3, H, W)."""

    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """The detections in pixels of the network input.

        Raises InputError when the outputs are not finite or the limits are not to be had from this network.
        """


class TorchRuntime:
    """A detector's copy in evaluation mode on one device, its BatchNorm folded.

    device and precision: as for `Predictor`, weights and images in that number format. With `autocast_dtype` in place
    of a precision, convolutions alone are in it, as in training.
    """

    fixed_side = None
    least_confidence = 0.0

    def __init__(
        self,
        detector: Detector,
        info: WeightsInfo,
        device: str | torch.device = "auto",
        precision: PrecisionName | None = "auto",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.info = info
        self.device = choose_device(str(device))
        self.dtype = torch.float32
        if precision == "auto":  # exact on a CPU
            self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        elif precision is not None:
            self.dtype = choose_precision(precision, self.device).dtype or torch.float32
        self._autocast_dtype = None if autocast_dtype == torch.float32 else autocast_dtype
        weights_dtype = self._autocast_dtype or self.dtype  # autocast would convert them at every step
        self.detector = fold_batch_norm(detector).to(device=self.device, dtype=weights_dtype)
        to_channels_last(self.detector)
        self.name = f"{self.device} {str(self.dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> list[Tensor]:
        """The logits of L levels, each (B, A, 5 + K, H, W) of its own H and W."""
        images = images.to(self.device, non_blocking=True).to(self.dtype).div_(255)
        with torch.autocast(self.device.type, self._autocast_dtype) if self._autocast_dtype else nullcontext():
            logits: list[Tensor] = self.detector(images)
        return logits

    @torch.inference_mode()
    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """The detections of logits; raises InputError when they are not finite."""
        if images_not_finite([level[:, :, 4] for level in outputs]):  # the objectness: what is found depends on it
            if self.dtype == torch.float16:
                raise InputError('the network overflows in float16; use precision "bf16" or "fp32"')
            raise InputError("the network's output is not finite: its weights are damaged or its training diverged")
        return batch_detections(outputs, self.detector.anchors, config)


def images_not_finite(outputs: Sequence[Tensor]) -> list[int]:
    """The numbers of the images for which an output, image first, holds a value that is not finite.

    To be checked before detections are made of outputs: with NaN nothing is found, which must mean that nothing is
    there. Flat outputs, such as counts of detections, belong to no image and are passed over.
    """
    outputs = [one for one in outputs if one.ndim > 1]
    # A sum passes on what is not finite without a map of answers as large as the output; it may overflow, too.
    if bool(torch.stack([one.sum(dtype=torch.float32) for one in outputs]).isfinite().all()):
        return []
    fine = torch.stack([one.isfinite().reshape(len(one), -1).all(dim=1) for one in outputs]).all(dim=0)
    return (~fine).nonzero()[:, 0].tolist()


def require_finite(outputs: Sequence[Tensor], names: Sequence[object]) -> None:
    """DivergedError naming the first image whose outputs are not finite. names: of the images, such as their paths."""
    for number in images_not_finite(outputs):
        raise DivergedError(
            f"{names[number]}: the network's output for this image is not finite: its training diverged or its weights "
            "are damaged. Use earlier weights, or try float32 (--precision fp32)"
        )
