"""From a detector's dense logits to boxes in pixels of the network input, a batch at a time.

Class scores are computed only at anchor cells whose objectness reaches the confidence, and boxes only for the best
candidates of each image. Nothing is lost by that: a score is objectness times a class probability of at most 1, so it
never exceeds the objectness, not even by rounding.

Legend: B images, L levels, A anchors, K classes, C = 5 + K channels, H, W grid rows and columns, P anchor cells or
candidates of the whole batch, R of the image that has most of them, N detections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float, Float32, Int64
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from torch import Tensor

from anchorite.anchors import AnchorSet, decode_boxes
from anchorite.boxes import cxcywh_to_xyxy
from anchorite.boxes.nms import nms_of_sorted

# Of the logits; 31 images of 640 px and 80 classes have as many as the first.
_NUMBERS_CPU, _NUMBERS_ACCELERATOR = 1 << 26, 1 << 28
IOU_THRESHOLD_NAMES = AliasChoices("iou_threshold", "iou_limit")  # today's, and that of earlier releases


class PredictConfig(BaseModel):
    """From raw output to detections: limits of confidence and overlap, how many, and how classes compete.

    confidence: least score, sigmoid(objectness) * sigmoid(class), equal counts. iou_threshold: of two boxes of larger
    IoU, the weaker one goes. max_detections: most boxes of an image. class_agnostic: boxes of different classes compete
    too. multi_label: an anchor cell may give a box for each class above the confidence, not only for its best class.
    max_candidates: most boxes of an image that enter suppression, the best first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    confidence: float = Field(default=0.25, ge=0, le=1)
    iou_threshold: float = Field(default=0.45, ge=0, le=1, validation_alias=IOU_THRESHOLD_NAMES)
    max_detections: int = Field(default=300, ge=1)
    class_agnostic: bool = False
    multi_label: bool = False
    max_candidates: int = Field(default=10_000, ge=1)


class Limits(TypedDict, total=False):
    """The fields of PredictConfig as keywords, where a call gives them one by one."""

    confidence: float
    iou_threshold: float
    max_detections: int
    class_agnostic: bool
    multi_label: bool
    max_candidates: int


@dataclass(frozen=True)
class RawDetections:
    """What was found in one image of a batch, best first, in the frame of the network input.

    boxes_xyxy: (N, 4) float32 in pixels, not clipped; scores: (N,) float32; class_ids: (N,) int64.
    """

    boxes_xyxy: Float32[Tensor, "N 4"]
    scores: Float32[Tensor, " N"]
    class_ids: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return self.scores.shape[0]


@dataclass(frozen=True)
class BatchDetections:
    """What was found in a batch, image after image, each best first; as `RawDetections`, which `split` makes of it.

    boxes_xyxy: (N, 4); scores: (N,); class_ids: (N,); counts: (B,) int64, how many of them each image has.
    """

    boxes_xyxy: Float32[Tensor, "N 4"]
    scores: Float32[Tensor, " N"]
    class_ids: Int64[Tensor, " N"]
    counts: Int64[Tensor, " B"]

    def cpu(self) -> BatchDetections:
        """The same detections in host memory."""
        return BatchDetections(self.boxes_xyxy.cpu(), self.scores.cpu(), self.class_ids.cpu(), self.counts.cpu())

    def split(self) -> list[RawDetections]:
        """The detections of each image."""
        counts = self.counts.tolist()
        parts = (self.boxes_xyxy.split(counts), self.scores.split(counts), self.class_ids.split(counts))
        return [RawDetections(*of_image) for of_image in zip(*parts, strict=True)]


@torch.no_grad()
def detections_from_logits(
    logits: Sequence[Float[Tensor, "B A C _ _"]], anchors: AnchorSet, config: PredictConfig
) -> list[RawDetections]:
    """The detections of each of B images.

    logits: L dense levels (B, A, 5 + K, H, W) of any floating type; everything is computed in float32. Candidates of
    equal score rank by level, anchor, row, column and class, on every device. Source: docs/objective.md, section 2.
    """
    return batch_detections(logits, anchors, config).split()


@torch.no_grad()
def batch_detections(
    logits: Sequence[Float[Tensor, "B A C _ _"]], anchors: AnchorSet, config: PredictConfig
) -> BatchDetections:
    """`detections_from_logits` with all images in one.

    Of many classes some images at a time: scores of every class at every likely cell take several times the logits.
    """
    num_images = len(logits[0])
    most = _NUMBERS_CPU if logits[0].device.type == "cpu" else _NUMBERS_ACCELERATOR
    if num_images > 1 and sum(level.numel() for level in logits) > most:
        halves = slice(None, num_images // 2), slice(num_images // 2, None)
        parts = [vars(batch_detections([level[half] for level in logits], anchors, config)) for half in halves]
        return BatchDetections(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    image, cell_logits, grid = _likely_cells(logits, anchors, config.confidence)
    objectness, classes = cell_logits[:, 4:5].sigmoid(), cell_logits[:, 5:]
    if config.multi_label:
        scores = classes.sigmoid() * objectness
        cell, class_ids = (scores >= config.confidence).nonzero(as_tuple=True)
        scores = scores[cell, class_ids]
    else:
        # By logit: probabilities of confident classes round to the same 1.0.
        best, class_ids = classes.max(dim=1)
        scores = best.sigmoid() * objectness[:, 0]
        cell = (scores >= config.confidence).nonzero()[:, 0]
        scores, class_ids = scores[cell], class_ids[cell]

    def boxes_of(chosen: Tensor) -> Tensor:
        place, anchor_cells, stride = grid[cell[chosen]].split([2, 2, 1], dim=-1)
        boxes_cells = decode_boxes(cell_logits[:, :4][cell[chosen]], anchor_cells)
        return cxcywh_to_xyxy(torch.cat([boxes_cells[..., :2] + place, boxes_cells[..., 2:]], dim=-1) * stride)

    return _suppressed(image[cell], scores, class_ids, boxes_of, num_images, config)


@torch.no_grad()
def decoded_detections(
    boxes_xyxy: Float32[Tensor, "B N 4"], scores: Float32[Tensor, "B N K"], config: PredictConfig
) -> BatchDetections:
    """`batch_detections` for a network that decodes by itself: boxes in pixels, scores = objectness * class."""
    if config.multi_label:
        image, cell, class_ids = (scores >= config.confidence).nonzero(as_tuple=True)
        best = scores[image, cell, class_ids]
    else:
        all_best, all_classes = scores.max(dim=2)
        image, cell = (all_best >= config.confidence).nonzero(as_tuple=True)
        best, class_ids = all_best[image, cell], all_classes[image, cell]
    return _suppressed(
        image, best, class_ids, lambda chosen: boxes_xyxy[image[chosen], cell[chosen]], len(scores), config
    )


def _suppressed(
    image: Tensor,
    scores: Tensor,
    class_ids: Tensor,
    boxes_of: Callable[[Tensor], Tensor],
    num_images: int,
    config: PredictConfig,
) -> BatchDetections:
    """What suppression leaves of P candidates: their image, score and class, each (P,), and boxes (..., 4) by index."""
    # In the order of their images, then from the best to the worst, equal ones as they came. One number tells both:
    # scores are not negative, and the bits of such floats rise with their values.
    key, order = ((image + 1 << 32) - scores.view(torch.int32)).sort(stable=True)
    bounds = torch.searchsorted(key, torch.arange(num_images + 1, device=key.device) << 32, right=True)
    counts = bounds.diff().clamp(max=config.max_candidates)
    # A table (B, R): beyond the end of its image's list, a row goes on with whatever follows.
    table = bounds[:-1, None] + torch.arange(int(counts.max()), device=bounds.device)
    chosen = order[table.clamp(max=len(order) - 1)]
    boxes_xyxy, scores, class_ids = boxes_of(chosen), scores[chosen], class_ids[chosen]
    classes = None if config.class_agnostic else class_ids
    kept = nms_of_sorted(boxes_xyxy, classes, counts, config.iou_threshold, config.max_detections)
    return BatchDetections(boxes_xyxy[kept], scores[kept], class_ids[kept], kept.sum(dim=1))


def _likely_cells(logits: Sequence[Tensor], anchors: AnchorSet, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """All anchor cells whose objectness may reach the confidence, by level, image, anchor, row and column.

    Returns their image (P,), their logits (P, C) float32, and their grid (P, 5): column, row, anchor width and height
    in cells, stride.
    """
    least = _least_logit(confidence)
    anchors_cells = anchors.cells(device=logits[0].device)
    levels = []
    for number, level in enumerate(logits):
        image, anchor, row, column = (level[:, :, 4] >= least).nonzero(as_tuple=True)
        num_anchors, channels, height, width = level.shape[1:]
        # Where the memory is channels_last, as convolutions leave it, an anchor cell is a row of it.
        by_cell = level.permute(0, 3, 4, 1, 2).reshape(-1, channels)
        at_cells = by_cell[((image * height + row) * width + column) * num_anchors + anchor].float()
        cell, stride = torch.stack([column, row], dim=1), torch.full_like(column, anchors.strides[number])
        levels.append((image, at_cells, torch.cat([cell, anchors_cells[number][anchor], stride[:, None]], dim=1)))
    images, at_cells, grids = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return images, at_cells, grids


def _least_logit(confidence: float) -> float:
    """A little less than any logit, as rounded as bfloat16, whose sigmoid in float32 reaches the confidence."""
    if confidence <= 0:
        return -math.inf
    logit = math.log(confidence / (1 - confidence)) if confidence < 1 else math.inf
    logit = min(logit, 10.0)  # float32 knows no probabilities between 1 - 2^-24 and 1
    return logit - 0.01 - abs(logit) / 64
