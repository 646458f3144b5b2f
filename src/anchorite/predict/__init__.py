"""Prediction: sources, letterbox, detector, decoding, suppression, detections; drawing and writing them."""

from anchorite.predict.config import PredictConfig
from anchorite.predict.drawing import draw
from anchorite.predict.output import PredictionWriter, fresh_folder
from anchorite.predict.postprocess import (
    BatchDetections,
    RawDetections,
    batch_detections,
    decoded_detections,
    detections_from_logits,
)
from anchorite.predict.predictor import Predictor, load
from anchorite.predict.runtime import Runtime
from anchorite.predict.sources import expand_sources

__all__ = [
    "BatchDetections",
    "PredictConfig",
    "PredictionWriter",
    "Predictor",
    "RawDetections",
    "Runtime",
    "batch_detections",
    "decoded_detections",
    "detections_from_logits",
    "draw",
    "expand_sources",
    "fresh_folder",
    "load",
]
