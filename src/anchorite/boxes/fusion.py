"""One set of boxes from several predictions of one image: weighted boxes fusion, and the seams between windows.

Legend: N boxes, M models, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from anchorite.boxes.iou import pairwise_overlap_xyxy
from anchorite.boxes.nms import nms
from anchorite.errors import accepts_iou_limit

FUSION_IOU_THRESHOLD = 0.55
"""Overlap from which boxes are of one object: the value that the paper of weighted boxes fusion found best."""

SEAM_COVERED = 0.6
"""Least share of a cut box that lies in a whole one where the whole one replaces it."""
SEAM_SCORE = 0.5
"""Least score of the whole box, as a share of the cut one's score, where it replaces the cut one."""

# In place of area 0, so that no overlap is divided by 0.
_LEAST_AREA = 1e-300
# Whole boxes compared with all cut ones at a time: bounds the memory.
_AT_A_TIME = 256


class FusedBoxes(NamedTuple):
    """Clusters as boxes, best first: boxes_xyxy (C, 4) float64, scores (C,) float64, class_ids (C,) int64."""

    boxes_xyxy: Float64[Tensor, "C 4"]
    scores: Float64[Tensor, " C"]
    class_ids: Int64[Tensor, " C"]


@accepts_iou_limit
def weighted_boxes_fusion(
    boxes_xyxy: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    class_ids: Int[Tensor, " N"],
    model_ids: Int[Tensor, " N"],
    weights: Float[Tensor, " M"],
    iou_threshold: float = FUSION_IOU_THRESHOLD,
) -> FusedBoxes:
    """What M models found in one image, made into one set: boxes averaged, scores by how many models agree.

    boxes_xyxy: (N, 4) in any unit; scores: (N,) in 0..1; model_ids: (N,), which model found each, 0..M-1; weights: (M,)
    of the models, above 0. From the best weighted score to the worst (equal ones as they came), a box joins
    the fused box of its class that it overlaps most, if by more than `iou_threshold`; that becomes the mean of all its
    boxes, each weighted by weight * score; else it starts one. The score of a fused box is the weighted mean of its
    T boxes' scores, times min(T, M) / M, with sums of weights for T and M: where one of M models missed an object, the
    score loses 1 / M.

    All is computed in float64 on the CPU, in this order, so that the result is always the same. Raises ValueError
    when a weight is not above 0. Source: arXiv:1910.13302, section 3.1, with weights for all formulas.
    """
    if not bool((weights > 0).all()):
        raise ValueError(f"weights of models must be above 0, got {weights.tolist()}")
    weights = weights.double().cpu()
    of_box = weights[model_ids.cpu()]
    weighted = of_box * scores.double().cpu()
    order = torch.sort(weighted, descending=True, stable=True).indices
    classes = class_ids.cpu()[order]
    rows = torch.cat([boxes_xyxy.double().cpu(), weighted[:, None], of_box[:, None]], dim=1)[order].numpy()
    parts = [(each, _clustered(rows[(classes == each).numpy()], iou_threshold)) for each in classes.unique().tolist()]
    fused = torch.from_numpy(np.concatenate([np.zeros((0, 6)), *(clusters for _, clusters in parts)]))
    fused_classes = torch.cat(
        [classes.new_zeros(0, dtype=torch.int64)]
        + [torch.full((len(clusters),), each, dtype=torch.int64) for each, clusters in parts]
    )
    total = weights.sum()
    fused_scores = fused[:, 4] / fused[:, 5] * fused[:, 5].clamp(max=total) / total
    best_first = torch.sort(fused_scores, descending=True, stable=True).indices
    return FusedBoxes(fused[best_first, :4], fused_scores[best_first], fused_classes[best_first])


def join_windows(
    boxes_xyxy: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    class_ids: Int[Tensor, " N"] | None,
    is_cut: Bool[Tensor, " N"],
    iou_threshold: float,
    max_detections: int,
) -> Int64[Tensor, " kept"]:
    """Indices (int64) of the boxes to keep of those that overlapping windows of an image found, best first.

    boxes_xyxy: (N, 4) in pixels of the image; class_ids: (N,), or None for one pool; is_cut: (N,), whether an inner
    edge of its window ends a box, so that it may be a part of an object that another window shows whole. Among whole
    boxes overlap decides, as in `nms`. A cut box goes when `SEAM_COVERED` of it lie in a box of its class that stays: a
    whole one at least `SEAM_SCORE` as sure, or a larger cut one. Overlap alone would not do: half an object and the
    whole have an IoU of one half.
    """
    if class_ids is None:
        class_ids = torch.zeros_like(scores, dtype=torch.int64)
    everything = torch.arange(len(scores), device=scores.device)
    whole, cut = everything[~is_cut], everything[is_cut]
    whole = whole[nms(boxes_xyxy[whole], scores[whole], class_ids[whole], iou_threshold, len(whole))]
    explained = torch.zeros(len(cut), dtype=torch.bool, device=cut.device)
    for some in whole.split(_AT_A_TIME):
        is_covered = _covered(boxes_xyxy, class_ids, some, cut)
        explained |= (is_covered & (scores[some, None] >= SEAM_SCORE * scores[cut])).any(dim=0)
    # Of the other cut boxes, those that no larger one explains: the larger one shows more of the object. NMS comes
    # first, because it leaves few to compare.
    cut = cut[~explained]
    cut = cut[nms(boxes_xyxy[cut], scores[cut], class_ids[cut], iou_threshold, len(cut))]
    sides = boxes_xyxy[cut, 2:] - boxes_xyxy[cut, :2]
    cut = cut[torch.sort(sides[:, 0] * sides[:, 1], descending=True, stable=True).indices]
    explained = torch.zeros(len(cut), dtype=torch.bool, device=cut.device)
    parts = []
    for index in range(len(cut)):
        if not explained[index]:
            parts.append(index)
            explained |= _covered(boxes_xyxy, class_ids, cut[index : index + 1], cut)[0]
    kept = torch.cat([whole, cut[parts]]).sort().values
    return kept[torch.sort(scores[kept], descending=True, stable=True).indices[:max_detections]]


def _covered(boxes_xyxy: Tensor, class_ids: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Whether each box of `over` (S,) has most of one of `under` (R,), of its class, inside: (S, R)."""
    overlap, _ = pairwise_overlap_xyxy(boxes_xyxy[over], boxes_xyxy[under])
    sides = (boxes_xyxy[under, 2:] - boxes_xyxy[under, :2]).clamp(min=0)
    return (overlap > SEAM_COVERED * (sides[:, 0] * sides[:, 1])) & (class_ids[over, None] == class_ids[under])


def _clustered(rows: NDArray[np.float64], iou_threshold: float) -> NDArray[np.float64]:
    """Clusters (C, 6): mean box, sum of weighted scores, sum of weights; of rows (N, 6): box, weighted score, weight.

    One box after the other, because each moves the cluster that the next is compared with.
    """
    # right, bottom, -left, -top: the least of two boxes' are the edges of their intersection.
    edges, areas = np.zeros((4, len(rows))), np.zeros(len(rows))
    clusters: list[list[float]] = []
    sums: list[list[float]] = []
    for left, top, right, bottom, weighted, weight in rows.tolist():
        chosen = count = len(clusters)
        if count:  # the cluster that the box overlaps most, the first of equal ones
            shared = np.minimum(edges[:, :count], np.array([[right], [bottom], [-left], [-top]]))
            width, height = np.maximum(shared[:2] + shared[2:], 0)
            overlap = width * height
            area = max(right - left, 0.0) * max(bottom - top, 0.0)
            iou = overlap / (areas[:count] + area - overlap)
            most = int(iou.argmax())
            chosen = most if iou[most] > iou_threshold else count
        if chosen == count:
            clusters.append([left, top, right, bottom])
            sums.append([0.0] * 6)
        total = sums[chosen]
        for edge, value in enumerate((left, top, right, bottom)):
            total[edge] += value * weighted
        total[4] += weighted
        total[5] += weight
        if total[4] > 0:  # boxes without any score have no mean; the first stands for them
            clusters[chosen] = [value / total[4] for value in total[:4]]
        left, top, right, bottom = clusters[chosen]
        edges[:, chosen] = right, bottom, -left, -top
        areas[chosen] = max(max(right - left, 0.0) * max(bottom - top, 0.0), _LEAST_AREA)
    return np.concatenate([np.reshape(clusters, (-1, 4)), np.reshape(sums, (-1, 6))[:, 4:]], axis=1)
