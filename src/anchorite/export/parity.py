"""Does an export answer like PyTorch? Every place of every image is compared, not only what is found in the end.

Legend: B images, N places, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anchorite.errors import AnchoriteError
from anchorite.export.exported import ExportedRuntime
from anchorite.export.metadata import PrecisionName
from anchorite.export.network import DecodedNetwork
from anchorite.predict import BatchDetections, PredictConfig

_LEAST_SIDE_PX = 8.0


class ExportDiffersError(AnchoriteError):
    """The exported file does not answer as the weights do; nothing was written."""


class Tolerance(NamedTuple):
    """The most that may differ: of a box's edges, in shares of its longer side; of a score; of mAP50-95."""

    box: float
    score: float
    map: float


def tolerance_of(precision: PrecisionName) -> Tolerance | None:
    """What a number format may cost; None for int8, whose cost is to be measured in mAP.

    Measured on trained weights at 320 px, on photographs and on drawn scenes, at most: fp32 7e-6 and 3e-6, fp16 5e-3
    and 8e-3.
    """
    return {"fp32": Tolerance(1e-4, 1e-4, 1e-3), "fp16": Tolerance(3e-2, 3e-2, 1e-2), "int8": None}[precision]


@dataclass(frozen=True)
class Parity:
    """The largest differences over all places of all images.

    box_px: of an edge, in pixels of the network input; box_share: the same in shares of the box's longer side, at least
    8 px; score: of a score; found: detections compared one by one where suppression is inside, else None.
    """

    num_images: int
    num_places: int
    box_px: float
    box_share: float
    score: float
    found: int | None = None


def compare(reference: DecodedNetwork, runtime: ExportedRuntime, batches: Iterable[Tensor]) -> Parity:
    """Boxes and scores of every place against PyTorch in float32."""
    num_images, num_places, box_px, box_share, score = 0, 0, 0.0, 0.0, 0.0
    for images in batches:
        with torch.inference_mode():
            boxes, scores = reference(images.to(torch.float32).div(255))
        other_boxes, other_scores = runtime.outputs(images)
        away = (other_boxes - boxes).abs()
        sides = (boxes[..., 2:] - boxes[..., :2]).amax(dim=-1, keepdim=True).clamp(min=_LEAST_SIDE_PX)
        # As Python's max does not, these pass on what is not a number.
        box_px = _most(box_px, away)
        box_share = _most(box_share, away / sides)
        score = _most(score, (other_scores - scores).abs())
        num_images += len(images)
        num_places += boxes.shape[0] * boxes.shape[1]
    return Parity(num_images, num_places, box_px, box_share, score)


def _most(before: float, differences: Tensor) -> float:
    return float(torch.maximum(torch.tensor(before), differences.max()))


def refuse_difference(parity: Parity, precision: PrecisionName, what: str) -> None:
    """Raise ExportDiffersError where the differences are above what the number format may cost, or not finite."""
    limits = tolerance_of(precision)
    numbers = f"boxes by {parity.box_px:.3g} px, {parity.box_share:.3g} of their side; scores by {parity.score:.3g}"
    if not np.isfinite([parity.box_share, parity.score]).all():
        raise ExportDiffersError(f"{what}: its output is not finite ({numbers}); nothing was written")
    if limits is not None and (parity.box_share > limits.box or parity.score > limits.score):
        raise ExportDiffersError(
            f"{what}: differs from PyTorch on {parity.num_images} images: {numbers}; "
            f"{precision} may differ by {limits.box:g} and {limits.score:g}; nothing was written"
        )


def compare_found(
    dense: ExportedRuntime, suppressed: ExportedRuntime, limits: PredictConfig, batches: Iterable[Tensor], what: str
) -> int:
    """How many detections built-in suppression gave, each the very one that ours gives for the same boxes and scores.

    Raises ExportDiffersError when any is another one.
    """
    number = 0
    for images in batches:
        expected = dense.detections(dense.outputs(images), limits)
        found = suppressed.detections(suppressed.outputs(images), limits)
        problem = _other_detections(expected, found)
        if problem:
            raise ExportDiffersError(f"{what}: its suppression differs from ours: {problem}; nothing was written")
        number += len(found.scores)
    return number


def _other_detections(expected: BatchDetections, found: BatchDetections) -> str:
    if not torch.equal(expected.counts, found.counts):
        return f"{found.counts.tolist()} detections of each image instead of {expected.counts.tolist()}"
    for one, other in zip(_rows(expected), _rows(found), strict=True):
        # Sorted, since detections of one score may come in either order.
        away = float((_in_order(one) - _in_order(other)).abs().max()) if len(one) else 0.0
        if not away <= 1e-3:
            return f"a detection is away by {away:.3g}"
    return ""


def _rows(detections: BatchDetections) -> Sequence[Tensor]:
    columns = [detections.boxes_xyxy, detections.scores[:, None], detections.class_ids[:, None].float()]
    return torch.cat(columns, dim=1).split(detections.counts.tolist())


def _in_order(rows: Tensor) -> Tensor:
    order = sorted(range(len(rows)), key=lambda index: rows[index, [5, 0, 1, 2, 3]].tolist())
    return rows[order]
