"""The detector: blocks, backbone, neck and head of ten sizes, folding, weight files, and foreign checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchorite.model.backbone_config import BackboneConfig, config_from_noted
    from anchorite.model.detector import Detector, to_channels_last
    from anchorite.model.fold import fold_batch_norm
    from anchorite.model.foreign.checkpoint import ImportedCheckpoint, import_checkpoint
    from anchorite.model.head import Head, MatchedCellLogits
    from anchorite.model.hf_source import HFBackboneSource, check_source, download_backbone, read_backbone
    from anchorite.model.table import SIZES, default_anchors
    from anchorite.model.weights import MAX_IMAGE_SIZE, WeightsInfo, load_weights, save_weights

__all__ = [
    "MAX_IMAGE_SIZE",
    "SIZES",
    "BackboneConfig",
    "Detector",
    "HFBackboneSource",
    "Head",
    "ImportedCheckpoint",
    "MatchedCellLogits",
    "WeightsInfo",
    "check_source",
    "config_from_noted",
    "default_anchors",
    "download_backbone",
    "fold_batch_norm",
    "import_checkpoint",
    "load_weights",
    "read_backbone",
    "save_weights",
    "to_channels_last",
]

_LATE = {
    "anchorite.model.backbone_config": ("BackboneConfig", "config_from_noted"),
    "anchorite.model.hf_source": ("HFBackboneSource", "check_source", "download_backbone", "read_backbone"),
    "anchorite.model.detector": ("Detector", "to_channels_last"),
    "anchorite.model.fold": ("fold_batch_norm",),
    "anchorite.model.foreign.checkpoint": ("ImportedCheckpoint", "import_checkpoint"),
    "anchorite.model.head": ("Head", "MatchedCellLogits"),
    "anchorite.model.table": ("SIZES", "default_anchors"),
    "anchorite.model.weights": ("MAX_IMAGE_SIZE", "WeightsInfo", "load_weights", "save_weights"),
}


def __getattr__(name: str) -> Any:
    # The process that reads foreign checkpoints must do without torch, which takes seconds and gigabytes of addresses.
    for module, names in _LATE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
