"""Boxes: coordinate frames, the IoU family, NMS, and the value types `Targets`, `LabelCoverage` and `Detections`."""

from anchorite.boxes.fusion import FusedBoxes, join_windows, weighted_boxes_fusion
from anchorite.boxes.iou import IouKind, clip_xyxy, cxcywh_to_xyxy, paired_iou, pairwise_iou_xyxy, xyxy_to_cxcywh
from anchorite.boxes.nms import nms
from anchorite.boxes.values import Detection, Detections, LabelCoverage, Targets

__all__ = [
    "Detection",
    "Detections",
    "FusedBoxes",
    "IouKind",
    "LabelCoverage",
    "Targets",
    "clip_xyxy",
    "cxcywh_to_xyxy",
    "join_windows",
    "nms",
    "paired_iou",
    "pairwise_iou_xyxy",
    "weighted_boxes_fusion",
    "xyxy_to_cxcywh",
]
