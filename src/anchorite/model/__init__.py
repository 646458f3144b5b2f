"""The detector: blocks, backbone, neck and head of ten sizes, folding, and weight files."""

from anchorite.model.detector import Detector, to_channels_last
from anchorite.model.fold import fold_batch_norm
from anchorite.model.head import Head, MatchedCellLogits
from anchorite.model.table import SIZES, default_anchors
from anchorite.model.weights import WeightsInfo, load_weights, save_weights

__all__ = [
    "SIZES",
    "Detector",
    "Head",
    "MatchedCellLogits",
    "WeightsInfo",
    "default_anchors",
    "fold_batch_norm",
    "load_weights",
    "save_weights",
    "to_channels_last",
]
