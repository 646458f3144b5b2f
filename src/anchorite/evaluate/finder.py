"""What a `Validator` asks of something that turns image files into detections by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anchorite.boxes import Detections
from anchorite.model import WeightsInfo
from anchorite.predict import PredictConfig


class Finder(Protocol):
    """What finds objects in image files: a `Predictor` or an `Ensemble`."""

    @property
    def info(self) -> WeightsInfo:
        """Its class names, among others."""

    def stream(
        self, sources: Any, config: PredictConfig | None, image_size: int | None, batch_size: int
    ) -> Iterator[tuple[NDArray[np.uint8], Detections]]:
        """Each image with its detections, in the order of the sources; raises InputError for what is no image."""
