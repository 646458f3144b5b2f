"""`ExportedRuntime`: an exported network behind the same interface as a detector in torch, whatever computes it.

Legend: B images, H, W of the input in pixels, N places, K classes, M most detections of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.errors import InputError
from anchorite.export.metadata import ExportInfo
from anchorite.export.network import as_input
from anchorite.model import WeightsInfo
from anchorite.predict import BatchDetections, PredictConfig, decoded_detections

Compute = Callable[[NDArray[np.generic]], Sequence[NDArray[np.generic]]]


class ExportedRuntime:
    """What `Predictor` and `Validator` run when weights are an export.

    path: for messages; info: what the file says; engine: what computes it, for people; compute: from the input, as the
    file wants it, to its outputs in their order.
    """

    def __init__(self, path: object, export: ExportInfo, engine: str, compute: Compute) -> None:
        self.path, self.export, self._engine, self._compute = path, export, engine, compute

    @property
    def info(self) -> WeightsInfo:
        """As of a weight file."""
        return self.export.weights

    @property
    def fixed_side(self) -> int | None:
        """Side in pixels of the only input that is taken; None where H and W are free."""
        return None if self.export.fixed_shape is None else self.export.fixed_shape[1]

    @property
    def name(self) -> str:
        """Engine and number format."""
        return f"{self._engine} {self.export.precision}"

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of uint8 RGB images (B, 3, H, W), any B; raises InputError when they have other shapes than ours."""
        if self.export.fixed_shape is None:
            return self._outputs_of(images)
        batch = self.export.fixed_shape[0]
        parts = [self._outputs_of(filled(part, batch)) for part in images.split(batch)]
        return tuple(torch.cat(of_parts)[: len(images)] for of_parts in zip(*parts, strict=True))

    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """What was found; raises InputError when outputs are not finite or built-in limits rule out those asked for."""
        if not all(bool(output.isfinite().all()) for output in outputs):
            raise InputError(f"{self.path}: its output is not finite; export it anew, or as fp32")
        first, second = outputs
        if self.export.suppression is None:
            return decoded_detections(first, second, config)
        self._check_limits(self.export.suppression, config)
        counts = second.to(torch.int64).clamp(0, first.shape[1])
        # What is less sure comes later and suppressed nothing that is surer: leaving it out now is as good as before.
        rank = torch.arange(first.shape[1])
        kept = (rank < counts[:, None]) & (rank < config.max_detections) & (first[..., 4] >= config.confidence)
        rows = first[kept]
        return BatchDetections(rows[:, :4], rows[:, 4], rows[:, 5].to(torch.int64), kept.sum(dim=1))

    def _outputs_of(self, images: Tensor) -> tuple[Tensor, ...]:
        ready = as_input(images, self.export.takes_bytes).numpy()
        outputs = tuple(torch.from_numpy(np.ascontiguousarray(one)) for one in self._compute(ready))
        shapes = tuple(tuple(output.shape) for output in outputs)
        expected = self._shapes(len(images), *images.shape[2:])
        if shapes != expected:
            raise InputError(f"{self.path}: its outputs are {shapes} where its metadata means {expected}; export anew")
        return outputs

    def _shapes(self, batch: int, height: int, width: int) -> tuple[tuple[int, ...], ...]:
        if self.export.suppression is not None:
            return (batch, self.export.suppression.max_detections, 6), (batch,)
        anchors = self.info.anchors
        places = sum(anchors.num_anchors * (height // stride) * (width // stride) for stride in anchors.strides)
        return (batch, places, 4), (batch, places, len(self.info.class_names))

    def _check_limits(self, built_in: PredictConfig, asked: PredictConfig) -> None:
        problems = [
            f"{name.replace('_', '-')} {getattr(built_in, name)} is built in, {getattr(asked, name)} was asked for"
            for name in ("iou_threshold", "class_agnostic", "multi_label")
            if getattr(built_in, name) != getattr(asked, name)
        ]
        if asked.confidence < built_in.confidence:
            problems.append(f"confidence {built_in.confidence} is the least, {asked.confidence} was asked for")
        if asked.max_detections > built_in.max_detections:
            problems.append(f"max-detections {built_in.max_detections} is the most, {asked.max_detections} was asked")
        if problems:
            raise InputError(
                f"{self.path}: has its suppression inside: {'; '.join(problems)}. "
                "Ask for what is built in, or export without --nms"
            )


def filled(images: Tensor, batch: int) -> Tensor:
    """Images (B, ...) with the last one repeated up to `batch`."""
    missing = batch - len(images)
    return images if not missing else torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
