"""Prediction: sources, letterbox, detector, decoding, suppression, detections; drawing and writing them."""

from anchorite.predict.drawing import draw
from anchorite.predict.engine import (
    Ensemble,
    FrameResult,
    Member,
    Predictor,
    Runtime,
    TorchRuntime,
    images_not_finite,
    load,
    require_finite,
)
from anchorite.predict.frames import Frame
from anchorite.predict.outputs import PredictionWriter, Save
from anchorite.predict.postprocess import (
    BatchDetections,
    PredictConfig,
    RawDetections,
    batch_detections,
    decoded_detections,
    detections_from_logits,
)
from anchorite.predict.pseudo_labels import PseudoLabels, pseudo_label
from anchorite.predict.sources import SourceConfig, Sources, expand_sources, open_sources
from anchorite.predict.views import ImageSize, ViewConfig

RefiningConfig = ViewConfig
"""The earlier name of `ViewConfig`."""

__all__ = [
    "BatchDetections",
    "Ensemble",
    "Frame",
    "FrameResult",
    "ImageSize",
    "Member",
    "PredictConfig",
    "PredictionWriter",
    "Predictor",
    "PseudoLabels",
    "RawDetections",
    "RefiningConfig",
    "Runtime",
    "Save",
    "SourceConfig",
    "Sources",
    "TorchRuntime",
    "ViewConfig",
    "batch_detections",
    "decoded_detections",
    "detections_from_logits",
    "draw",
    "expand_sources",
    "images_not_finite",
    "load",
    "open_sources",
    "pseudo_label",
    "require_finite",
]
