"""`LossConfig`: the options of the objective, with the defaults of docs/objective.md."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from anchorite.boxes import IouKind


class LossConfig(BaseModel):
    """Options of the objective. Gains are applied unchanged; `scaled` derives those of a trainer."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    box_gain: float = Field(0.05, ge=0, allow_inf_nan=False, description="weight of the box term")
    objectness_gain: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the objectness term")
    class_gain: float = Field(0.5, ge=0, allow_inf_nan=False, description="weight of the class term")
    ratio_limit: float = Field(4.0, gt=1, allow_inf_nan=False, description="largest side ratio of box and anchor")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="e: class targets are 1 - e/2 and e/2")
    focal_gamma: float = Field(0.0, ge=0, allow_inf_nan=False, description="focal exponent; 0 is plain BCE")
    class_pos_weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of positive class targets")
    objectness_pos_weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of positive objectness")
    objectness_iou_ratio: float = Field(1.0, ge=0, le=1, description="gr: share of the IoU in objectness targets")
    automatic_balance: bool = Field(False, description="let the levels' objectness weights follow their losses")
    collision: Literal["last", "best"] = Field("last", description="which of several candidates of an anchor cell wins")
    box_iou: IouKind = Field("ciou", description="the IoU of the box term")
    class_weights: tuple[float, ...] | None = Field(None, strict=False, description="K weights of the class term")

    def scaled(self, num_levels: int, num_classes: int, image_size: int) -> LossConfig:
        """The same options with the gains a trainer derives (docs/objective.md, section 4, "Gain scaling").

        box * 3/L; class * K/80 * 3/L; objectness * (image_size/640)^2 * 3/L.
        """
        share = 3 / num_levels
        return self.model_copy(
            update={
                "box_gain": self.box_gain * share,
                "class_gain": self.class_gain * num_classes / 80 * share,
                "objectness_gain": self.objectness_gain * (image_size / 640) ** 2 * share,
            }
        )
