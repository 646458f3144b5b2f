"""What counts as a detection."""

from __future__ import annotations

from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field


class PredictConfig(BaseModel):
    """From raw output to detections: limits of confidence and overlap, how many, and how classes compete.

    confidence: least score, sigmoid(objectness) * sigmoid(class), equal counts. iou_limit: of two boxes that overlap
    by more than this, the weaker one goes. max_detections: most boxes of an image. class_agnostic: boxes of different
    classes compete too. multi_label: a place answers for every class above the confidence, not for its best one alone.
    max_candidates: most boxes of an image that enter suppression, the best first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    confidence: float = Field(default=0.25, ge=0, le=1)
    iou_limit: float = Field(default=0.45, ge=0, le=1)
    max_detections: int = Field(default=300, ge=1)
    class_agnostic: bool = False
    multi_label: bool = False
    max_candidates: int = Field(default=10_000, ge=1)


class Limits(TypedDict, total=False):
    """The fields of PredictConfig as keywords, where a call gives them one by one."""

    confidence: float
    iou_limit: float
    max_detections: int
    class_agnostic: bool
    multi_label: bool
    max_candidates: int
