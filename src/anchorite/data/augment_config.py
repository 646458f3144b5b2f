"""What augmentation may do to a training image, and how much of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Gain = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, lt=90)]


class AugmentConfig(BaseModel):
    """Probabilities and ranges; a range is drawn from evenly, and 0 switches its augmentation off.

    mosaic: probability that four images share the canvas. mixup: probability that a second sample is blended in.
    hue: largest shift, in turns of the colour circle. saturation, value: factors from 1 - gain to 1 + gain.
    rotation, shear: largest angles in degrees, either way. translation: largest shift as a fraction of the canvas.
    scale: factors from 1 - scale to 1 + scale. flip_horizontal, flip_vertical: probabilities.
    close_mosaic_epochs: the last epochs see neither mosaic nor mixup. min_visible: a box stays a target when at least
    this fraction of its area is still seen, and min_side_px of each side.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    mosaic: Probability = 1.0
    mixup: Probability = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.015
    saturation: Gain = 0.7
    value: Gain = 0.4
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    translation: Gain = 0.1
    scale: Gain = 0.5
    shear: Degrees = 0.0
    flip_horizontal: Probability = 0.5
    flip_vertical: Probability = 0.0
    close_mosaic_epochs: Annotated[int, Field(ge=0)] = 10
    min_visible: Probability = 0.1
    min_side_px: Annotated[float, Field(ge=0)] = 2.0

    @classmethod
    def none(cls) -> AugmentConfig:
        """No augmentation: letterboxed images as they are."""
        off = ("mosaic", "hue", "saturation", "value", "translation", "scale", "flip_horizontal")
        return cls(**dict.fromkeys(off, 0.0), close_mosaic_epochs=0)
