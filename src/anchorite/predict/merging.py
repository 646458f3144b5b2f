"""What several looks at one image found, made into one answer.

Legend: N boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anchorite.boxes import join_windows, nms, weighted_boxes_fusion
from anchorite.errors import InputError
from anchorite.predict.config import PredictConfig
from anchorite.predict.postprocess import RawDetections
from anchorite.predict.tiles import touches_seam
from anchorite.predict.view_batches import Answer
from anchorite.reading import shorten

# Of the network input: half a cell of the finest level, so about as far as the edge of a box is uncertain.
_SEAM_PX = 4
_NUM_SHOWN = 5
# Above the .55 of the paper: better for looks of one detector, by measurement (docs/how-to/large-images.md).
_FUSION_IOU_THRESHOLD = 0.65


def class_map(ours: tuple[str, ...], theirs: tuple[str, ...]) -> Tensor:
    """Our number, (K,) int64, of each of their classes; InputError naming what differs where the names do."""
    if ours == theirs:
        return torch.arange(len(ours))
    numbers = {name: number for number, name in enumerate(ours)}
    missing, unknown = set(ours) - set(theirs), set(theirs) - numbers.keys()
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(unknown)} besides"] * bool(unknown)
        raise InputError(
            f"detectors with other classes cannot be fused: beside the first, the other {' and '.join(parts)}; "
            "the order may differ, the names may not"
        )
    if len(numbers) < len(ours) or len(theirs) != len(ours):
        raise InputError("detectors in which a class name occurs twice can be fused only if all have the same order")
    return torch.tensor([numbers[name] for name in theirs])


def joined_windows(answers: Sequence[Answer], size_hw: tuple[int, int], config: PredictConfig) -> RawDetections:
    """What one channel found in an image, in its pixels, no object twice.

    size_hw: height and width of the image; boxes wholly in the padding of an input are dropped.
    """
    answers = sorted(answers, key=lambda answer: answer.view.window)  # they come as batches go
    boxes, cut = [], []
    for view, raw in answers:
        boxes.append(view.to_image(raw.boxes_xyxy))
        cut.append(touches_seam(boxes[-1], view.window, size_hw, view.to_window_px(_SEAM_PX)))
    boxes_xyxy, is_cut = torch.cat(boxes), torch.cat(cut)
    scores = torch.cat([raw.scores for _, raw in answers])
    class_ids = torch.cat([raw.class_ids for _, raw in answers])
    kept = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1).nonzero()[:, 0]
    if len(answers) > 1:
        limit = max(config.max_candidates, 2 * config.max_detections)  # who asks for more has a large image
        best = torch.sort(scores[kept], descending=True, stable=True).indices[:limit]
        kept = kept[best.sort().values]
        pools = None if config.class_agnostic else class_ids[kept]
        limits = (config.iou_threshold, config.max_detections)
        kept = kept[join_windows(boxes_xyxy[kept], scores[kept], pools, is_cut[kept], *limits)]
    return RawDetections(boxes_xyxy[kept], scores[kept], class_ids[kept])


def fused_channels(joined: Sequence[RawDetections], weights: Tensor, config: PredictConfig) -> RawDetections:
    """What channels found in one image made into one answer; weights: how much each counts."""
    channel_ids = torch.cat([torch.full((len(one),), number) for number, one in enumerate(joined)])
    boxes_xyxy, scores = torch.cat([one.boxes_xyxy for one in joined]), torch.cat([one.scores for one in joined])
    class_ids = torch.cat([one.class_ids for one in joined])
    found = weighted_boxes_fusion(boxes_xyxy, scores, class_ids, channel_ids, weights, _FUSION_IOU_THRESHOLD)
    kept = (found.scores >= config.confidence).nonzero()[:, 0]
    if config.class_agnostic:
        limits = (config.iou_threshold, config.max_detections)
        kept = kept[nms(found.boxes_xyxy[kept], found.scores[kept], None, *limits)]
    kept = kept[: config.max_detections]
    return RawDetections(found.boxes_xyxy[kept].float(), found.scores[kept].float(), found.class_ids[kept])


def _listed(names: set[str]) -> str:
    shown = ", ".join(shorten(name) for name in sorted(names)[:_NUM_SHOWN])
    return shown + (f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else "")
