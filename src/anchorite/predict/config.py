"""What counts as a detection."""

from __future__ import annotations

from typing import Any, TypedDict

from pydantic import BaseModel, ConfigDict, Field, model_validator


def rename_iou_limit(given: Any) -> Any:
    """Fields as given, `iou_limit`, the earlier name of `iou_threshold`, under its present one."""
    if isinstance(given, dict) and "iou_limit" in given and "iou_threshold" not in given:
        return {("iou_threshold" if name == "iou_limit" else name): value for name, value in given.items()}
    return given


class PredictConfig(BaseModel):
    """From raw output to detections: limits of confidence and overlap, how many, and how classes compete.

    confidence: least score, sigmoid(objectness) * sigmoid(class), equal counts. iou_threshold: of two boxes of larger
    IoU, the weaker one goes. max_detections: most boxes of an image. class_agnostic: boxes of different
    classes compete too. multi_label: a place answers for every class above the confidence, not for its best one alone.
    max_candidates: most boxes of an image that enter suppression, the best first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    confidence: float = Field(default=0.25, ge=0, le=1)
    iou_threshold: float = Field(default=0.45, ge=0, le=1)
    max_detections: int = Field(default=300, ge=1)
    class_agnostic: bool = False
    multi_label: bool = False
    max_candidates: int = Field(default=10_000, ge=1)

    _earlier_name = model_validator(mode="before")(rename_iou_limit)


class Limits(TypedDict, total=False):
    """The fields of PredictConfig as keywords, where a call gives them one by one."""

    confidence: float
    iou_threshold: float
    max_detections: int
    class_agnostic: bool
    multi_label: bool
    max_candidates: int
