"""Prediction: sources, letterbox, detector, decoding, suppression, detections; drawing and writing them."""

from anchorite.predict.config import PredictConfig
from anchorite.predict.drawing import draw
from anchorite.predict.ensemble import Ensemble, Member, RefiningConfig
from anchorite.predict.merging import class_map
from anchorite.predict.output import BackgroundWriter, Kind, PredictionWriter, Save, fresh_folder
from anchorite.predict.postprocess import (
    BatchDetections,
    RawDetections,
    batch_detections,
    decoded_detections,
    detections_from_logits,
)
from anchorite.predict.predictor import Predictor, load
from anchorite.predict.runtime import Runtime
from anchorite.predict.sources import Frame, SourceConfig, Sources, Underway, expand_sources, open_sources

__all__ = [
    "BackgroundWriter",
    "BatchDetections",
    "Ensemble",
    "Frame",
    "Kind",
    "Member",
    "PredictConfig",
    "PredictionWriter",
    "Predictor",
    "RawDetections",
    "RefiningConfig",
    "Runtime",
    "Save",
    "SourceConfig",
    "Sources",
    "Underway",
    "batch_detections",
    "class_map",
    "decoded_detections",
    "detections_from_logits",
    "draw",
    "expand_sources",
    "fresh_folder",
    "load",
    "open_sources",
]
