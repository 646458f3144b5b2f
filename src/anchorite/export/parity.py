"""Does an export answer like PyTorch? Every anchor cell of every image is compared, not only what is found in the end.

Legend: B images, H, W of the network input in pixels, N anchor cells, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.data import Record, letterbox, letterboxed_batches
from anchorite.data.scenes import draw_scene
from anchorite.errors import AnchoriteError
from anchorite.evaluate import Validator
from anchorite.export.exported import ExportedRuntime, ExportInfo, filled
from anchorite.export.torch_export import DecodedNetwork
from anchorite.model import Detector
from anchorite.predict import BatchDetections, PredictConfig

Item = TypeVar("Item")

_DRAWN_SEED, _NUM_DRAWN, _BATCH = 11, 6, 4
_LEAST_SHARE_LEFT = 0.5
_LEAST_LOSS_TOLD = 0.01  # of a detector that finds nothing anyway, half may go in noise
_LEAST_SIDE_PX = 8.0


class ExportDiffersError(AnchoriteError):
    """The exported file does not answer as the weights do; nothing was written."""


# What a number format may cost: of a box's edges, in shares of its longer side; of a score; of mAP50-95. That of int8
# nobody can know before. Measured on trained weights at 320 px, on photographs and on drawn scenes, at most: fp32 7e-6
# and 3e-6, fp16 5e-3 and 8e-3.
_TOLERANCES = {"fp32": (1e-4, 1e-4, 1e-3), "fp16": (3e-2, 3e-2, 1e-2), "int8": (math.inf, math.inf, math.inf)}


@dataclass(frozen=True)
class Parity:
    """The largest differences over all anchor cells of all images.

    box_px: of an edge, in pixels of the network input; box_share: the same in shares of the box's longer side, at least
    8 px; score: of a score; found: detections compared one by one where suppression is inside, else None.
    """

    num_images: int
    num_cells: int
    box_px: float
    box_share: float
    score: float
    found: int | None = None


def batches_of(records: Sequence[Record], info: ExportInfo) -> Iterator[Tensor]:
    """uint8 images (B, 3, H, W) of labelled records, as the export takes them: of their own shape, or of the fixed one.

    Raises InputError naming an image that cannot be decoded.
    """
    if not records:
        return
    side, stride, is_free = info.weights.image_size, info.weights.anchors.strides[-1], info.fixed_shape is None
    batch_size = _BATCH if info.fixed_shape is None else info.fixed_shape[0]
    for batch in letterboxed_batches(records, side, batch_size, stride, rectangular=is_free):
        yield batch.images if is_free else filled(batch.images, batch_size)


def drawn_batches(info: ExportInfo) -> list[Tensor]:
    """uint8 images (B, 3, H, W) of synthetic scenes: of several B, H and W where these are free."""
    side, stride = info.weights.image_size, info.weights.anchors.strides[-1]
    part = max(stride, side * 5 // 8 // stride * stride)
    shapes = [(1, side, side), (2, part, side), (3, side, part)]
    scenes = [draw_scene(_DRAWN_SEED, "val", index, min(side, 640)).image for index in range(_NUM_DRAWN)]
    batches = []
    for count, *size_hw in shapes if info.fixed_shape is None else [(_NUM_DRAWN, side, side)]:
        images = np.stack([letterbox(scene, (size_hw[0], size_hw[1]))[0] for scene in scenes[:count]])
        batches.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    return batches


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly spaced."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def compare(reference: DecodedNetwork, runtime: ExportedRuntime, batches: Iterable[Tensor]) -> Parity:
    """Boxes and scores of every anchor cell against PyTorch in float32.

    Raises ExportDiffersError where they differ by more than the number format may cost, or are not finite.
    """
    num_images, num_cells, largest = 0, 0, torch.zeros(3)
    for images in batches:
        with torch.inference_mode():
            boxes, scores = reference(images.to(torch.float32).div(255))
        other_boxes, other_scores = runtime.outputs(images)
        away = (other_boxes - boxes).abs()
        sides = (boxes[..., 2:] - boxes[..., :2]).amax(dim=-1, keepdim=True).clamp(min=_LEAST_SIDE_PX)
        differences = torch.stack([away.max(), (away / sides).max(), (other_scores - scores).abs().max()])
        largest = torch.maximum(largest, differences)  # passes on what is not a number
        num_images += len(images)
        num_cells += boxes.shape[0] * boxes.shape[1]
    box_px, box_share, score = largest.tolist()
    precision, what = runtime.export.precision, runtime.path
    most_share, most_score, _ = _TOLERANCES[precision]
    numbers = f"boxes by {box_px:.3g} px, {box_share:.3g} of their side; scores by {score:.3g}"
    if not largest.isfinite().all():
        raise ExportDiffersError(f"{what}: its output is not finite ({numbers}); nothing was written")
    if box_share > most_share or score > most_score:
        raise ExportDiffersError(
            f"{what}: differs from PyTorch on {num_images} images: {numbers}; "
            f"{precision} may differ by {most_share:g} and {most_score:g}; nothing was written"
        )
    return Parity(num_images, num_cells, box_px, box_share, score)


def compare_found(
    dense: ExportedRuntime, suppressed: ExportedRuntime, limits: PredictConfig, batches: Iterable[Tensor]
) -> int:
    """How many detections built-in suppression gave, each the very one that ours gives for the same boxes and scores.

    Raises ExportDiffersError when any is another one.
    """
    number = 0
    for images in batches:
        expected = dense.detections(dense.outputs(images), limits)
        found = suppressed.detections(suppressed.outputs(images), limits)
        differs = f"{suppressed.path}: its suppression differs from ours"
        if not torch.equal(expected.counts, found.counts):
            numbers = f"{found.counts.tolist()} detections of each image instead of {expected.counts.tolist()}"
            raise ExportDiffersError(f"{differs}: {numbers}; nothing was written")
        away = float(np.abs(_in_order(expected) - _in_order(found)).max(initial=0))
        if not away <= 1e-3:
            raise ExportDiffersError(f"{differs}: a detection is away by {away:.3g}; nothing was written")
        number += len(found.scores)
    return number


def _in_order(detections: BatchDetections) -> NDArray[np.float64]:
    """(N, 7): image, class, box, score; in that order, since detections of one score may come in either."""
    images = np.repeat(np.arange(len(detections.counts)), detections.counts)
    boxes, scores = detections.boxes_xyxy.double().numpy(), detections.scores.double().numpy()
    rows = np.column_stack([images, detections.class_ids.numpy(), boxes, scores])
    return rows[np.lexsort(rows.T[::-1])]


class Measured(NamedTuple):
    """mAP50 and mAP50-95 of the detector in PyTorch, float32, and of its export."""

    torch_map50: float
    torch_map: float
    export_map50: float
    export_map: float

    @property
    def cost(self) -> float:
        """mAP50-95 that the export loses; negative where it gains."""
        return self.torch_map - self.export_map


def measure(detector: Detector, exported: ExportedRuntime, validator: Validator, what: str) -> Measured:
    """Both measured alike; the export is one without suppression, for measuring takes limits of its own.

    Raises ExportDiffersError when mAP50-95 differs by more than the number format may cost; of int8, whose cost nobody
    can know before, only when half of it, and more than noise, is gone.
    """
    ours, theirs = validator.run(detector, device="cpu").metrics, validator.run(exported).metrics
    measured = Measured(ours.map50, ours.map, theirs.map50, theirs.map)
    most = _TOLERANCES[exported.export.precision][2]
    numbers = f"mAP50-95 is {measured.export_map:.4f} instead of {measured.torch_map:.4f}"
    if abs(measured.cost) > most:
        raise ExportDiffersError(f"{what}: {numbers}; it may differ by {most:g}; nothing was written")
    is_half_gone = measured.cost > _LEAST_LOSS_TOLD and measured.export_map < _LEAST_SHARE_LEFT * measured.torch_map
    if is_half_gone and exported.export.precision == "int8":
        raise ExportDiffersError(f"{what}: {numbers}; calibrate on more images; nothing was written")
    return measured
