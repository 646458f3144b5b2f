"""Tiny backbones of transformers for tests, made offline from their settings."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from anchorite.anchors import AnchorSet
from anchorite.model import Detector, default_anchors
from anchorite.model.hf_backbone import config_of_library
from tests.model.oracle import randomise_norms

NAMES = ("one", "two", "three")
_CONVOLUTIONAL: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_WINDOWED: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet": {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **_CONVOLUTIONAL},
    "convnext": {"model_type": "convnext", **_CONVOLUTIONAL},
    "convnextv2": {"model_type": "convnextv2", **_CONVOLUTIONAL},
    "swin": {"model_type": "swin", **_WINDOWED},
    "swinv2": {"model_type": "swinv2", **_WINDOWED},
}
FAMILIES = tuple(SETTINGS)
WIDTHS = {"n": (64, 128, 256), "n6": (64, 128, 192, 256)}
"""Channels of the maps by size, by hand."""


@cache
def anchors(size: str) -> AnchorSet:
    return default_anchors(size)


@cache
def detector(family: str, size: str = "n") -> Detector:
    """In evaluation mode, its normalisations not at their start; tests must not change it."""
    torch.manual_seed(0)
    made = Detector(size, len(NAMES), anchors(size), config_of_library(SETTINGS[family], family))
    randomise_norms(made, seed=1)
    return made.eval()


@cache
def folder(family: str) -> Path:
    """A folder as the library writes it for a classifier, with means and deviations that are not ImageNet's."""
    import transformers

    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(**SETTINGS[family])
    model = transformers.AutoModelForImageClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    place = Path(mkdtemp()) / family
    model.save_pretrained(place)
    stated = {"image_mean": [0.5, 0.25, 0.75], "image_std": [0.5, 0.25, 0.125]}
    (place / "preprocessor_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return place


def images(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
