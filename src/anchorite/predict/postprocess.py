"""From a detector's dense logits to boxes in pixels of the network input.

Decoding and class scores are worked out only at places whose objectness reaches the confidence. Nothing is lost by
that: a score is objectness times a class probability of at most 1, so it never exceeds the objectness, not even by
rounding.

Legend: B images, L levels, A anchors, K classes, C = 5 + K channels, H, W grid rows and columns, P places or
candidates, N detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from anchorite.anchors import AnchorSet, decode_boxes
from anchorite.boxes import cxcywh_to_xyxy
from anchorite.boxes.nms import nms
from anchorite.predict.config import PredictConfig


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

    def cpu(self) -> RawDetections:
        """The same detections in host memory."""
        return RawDetections(self.boxes_xyxy.cpu(), self.scores.cpu(), self.class_ids.cpu())


@torch.no_grad()
def detections_from_logits(
    logits: Sequence[Float[Tensor, "B A C _ _"]], anchors: AnchorSet, config: PredictConfig
) -> list[RawDetections]:
    """The detections of each of B images.

    logits: L dense levels (B, A, 5 + K, H, W) of any floating type; everything is computed in float32. Candidates of
    equal score rank by level, anchor, row, column and class, on every device. Source: docs/objective.md, section 2.
    """
    anchors_cells = anchors.cells(device=logits[0].device)
    levels = [
        _level_candidates(level, anchors_cells[number], anchors.strides[number], config)
        for number, level in enumerate(logits)
    ]
    images, boxes_xyxy, scores, class_ids = (torch.cat(parts) for parts in zip(*levels, strict=True))
    by_image = images.argsort(stable=True)
    counts = images.bincount(minlength=logits[0].shape[0]).tolist()
    found = []
    for chosen in by_image.split(counts):
        chosen = _best(chosen, scores, config.max_candidates)
        classes = None if config.class_agnostic else class_ids[chosen]
        kept = nms(boxes_xyxy[chosen], scores[chosen], classes, config.iou_limit, config.max_detections)
        chosen = chosen[kept]
        found.append(RawDetections(boxes_xyxy[chosen], scores[chosen], class_ids[chosen]))
    return found


def _level_candidates(
    logits: Tensor, anchors_cells: Tensor, stride: int, config: PredictConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image (P,), box_xyxy in pixels (P, 4), score (P,) and class (P,) of all that reaches the confidence."""
    objectness = logits[:, :, 4].float().sigmoid()
    image, anchor, row, column = (objectness >= config.confidence).nonzero(as_tuple=True)
    at_places = logits[image, anchor, :, row, column].float()
    scores = at_places[:, 5:].sigmoid() * objectness[image, anchor, row, column, None]
    if config.multi_label:
        place, class_ids = (scores >= config.confidence).nonzero(as_tuple=True)
    else:
        # By logit: probabilities of confident classes round to the same 1.0.
        best = at_places[:, 5:].argmax(dim=1)
        place = (scores.gather(1, best[:, None])[:, 0] >= config.confidence).nonzero()[:, 0]
        class_ids = best[place]
    boxes_cells = decode_boxes(at_places[place, :4], anchors_cells[anchor[place]])
    corners = torch.stack([column[place], row[place]], dim=-1)
    boxes_cxcywh = torch.cat([boxes_cells[:, :2] + corners, boxes_cells[:, 2:]], dim=-1) * stride
    return image[place], cxcywh_to_xyxy(boxes_cxcywh), scores[place, class_ids], class_ids


def _best(candidates: Tensor, scores: Tensor, limit: int) -> Tensor:
    """The `limit` candidates of the highest scores (P,), equal ones in their order."""
    if candidates.numel() <= limit:
        return candidates
    return candidates[torch.sort(scores[candidates], descending=True, stable=True).indices[:limit]]
