"""How detections are made for measuring."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anchorite.predict import PredictConfig
from anchorite.predict.config import rename_iou_limit


class ValidationConfig(BaseModel):
    """Limits for measuring: far lower confidence than in use, because average precision integrates over all of them.

    confidence: least score. iou_threshold: of two boxes that overlap by more than this, the weaker one goes.
    max_detections: most boxes of an image (COCO's numbers use the best 100 of each class). class_agnostic: boxes of
    different classes compete too. multi_label: a place answers for every class above the confidence. rectangular: each
    image in the smallest network input that holds it, else in a square one, which computes on padding.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    confidence: float = Field(default=0.001, ge=0, le=1)
    iou_threshold: float = Field(default=0.55, ge=0, le=1)
    max_detections: int = Field(default=300, ge=1)
    class_agnostic: bool = False
    multi_label: bool = True
    rectangular: bool = True

    _earlier_name = model_validator(mode="before")(rename_iou_limit)

    def predict_config(self) -> PredictConfig:
        """The same limits as prediction takes them."""
        return PredictConfig(**self.model_dump(exclude={"rectangular"}))
