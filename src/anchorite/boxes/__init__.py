"""Boxes: coordinate frames, the IoU family, NMS, and the two value types `Targets` and `Detections`."""

from anchorite.boxes.detections import Detection, Detections
from anchorite.boxes.frames import clip_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
from anchorite.boxes.iou import IouKind, paired_iou
from anchorite.boxes.nms import nms
from anchorite.boxes.pairwise import pairwise_iou_xyxy
from anchorite.boxes.targets import Targets

__all__ = [
    "Detection",
    "Detections",
    "IouKind",
    "Targets",
    "clip_xyxy",
    "cxcywh_to_xyxy",
    "nms",
    "paired_iou",
    "pairwise_iou_xyxy",
    "xyxy_to_cxcywh",
]
