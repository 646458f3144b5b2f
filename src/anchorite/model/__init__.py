"""The detector of ten sizes: backbone, neck and head, folding, weight files, and import of foreign checkpoints."""

from anchorite.model.detector import Detector, fold_batch_norm, to_channels_last
from anchorite.model.head import Head, MatchedCellLogits
from anchorite.model.hf_backbone import (
    BackboneConfig,
    HFBackbone,
    HFBackboneSource,
    check_source,
    download_backbone,
    parse_backbone_config,
    read_backbone,
)
from anchorite.model.sizes import SIZES, default_anchors
from anchorite.model.torch_checkpoint import ImportedCheckpoint, import_checkpoint
from anchorite.model.weights import MAX_IMAGE_SIZE, WeightsInfo, load_weights, save_weights

__all__ = [
    "MAX_IMAGE_SIZE",
    "SIZES",
    "BackboneConfig",
    "Detector",
    "HFBackbone",
    "HFBackboneSource",
    "Head",
    "ImportedCheckpoint",
    "MatchedCellLogits",
    "WeightsInfo",
    "check_source",
    "default_anchors",
    "download_backbone",
    "fold_batch_norm",
    "import_checkpoint",
    "load_weights",
    "parse_backbone_config",
    "read_backbone",
    "save_weights",
    "to_channels_last",
]
