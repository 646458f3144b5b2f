"""A small detector with opinions, and exports of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import torch
from onnx import ModelProto
from torch import Tensor

from anchorite.data.scenes import SCENE_CLASSES
from anchorite.export import Built, ExportInfo, ExportRequest, build, drawn_batches, export_info, exporting
from anchorite.export.exported import to_texts
from anchorite.export.onnx_format import onnx_model
from anchorite.model import Detector, WeightsInfo, default_anchors, save_weights
from anchorite.predict import PredictConfig
from tests.once import made_once
from tests.unchecked import unchecked_shapes

CLASS_NAMES = SCENE_CLASSES  # so that it can be measured on drawn scenes
P5 = default_anchors("n")
INFO = WeightsInfo("n", CLASS_NAMES, P5, 96)
LIMITS = PredictConfig(confidence=0.05, max_detections=20)


@cache
def detector() -> Detector:
    """Random, but its normalisation has seen a batch and its scores lie far apart, so that all sorts are found."""
    torch.manual_seed(0)
    made = Detector("n", len(CLASS_NAMES), P5).train()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        made(drawn_batches(export_info(INFO, ExportRequest(fixed_batch=6)))[0].float() / 255)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # Random weights blow rounding up from layer to layer, trained ones do not; this keeps it smaller.
                module.running_var *= 1.5
        for predictor in made.head.predictors.values():
            predictor.weight *= 20
            predictor.bias.view(3, 10)[:, 4:] += 2.5
    return made.eval()


@cache
def images() -> list[Tensor]:
    """Batches of 1, 2 and 3 scenes of three shapes."""
    return drawn_batches(export_info(INFO, ExportRequest()))


@cache
def weights() -> Path:
    """The detector as a weight file."""
    path = Path(mkdtemp()) / "w.safetensors"
    save_weights(path, detector(), INFO)
    return path


@cache
def built(request: ExportRequest) -> Built:
    """The export of a request, compared on `images`."""
    calibration = images() if request.int8 else ()
    batches = images() if request.fixed_batch is None else drawn_batches(export_info(INFO, request))
    return built_anew(request, batches, calibration)


def built_anew(
    request: ExportRequest, batches: Iterable[Tensor] = (), calibration: Iterable[Tensor] = (), what: str = "export"
) -> Built:
    """`built`, not from memory, but for the ONNX model it begins with."""
    with unchecked_shapes(), patch.object(exporting, "onnx_model", lambda _, info: model_of(info)):
        return build(detector(), INFO, request, list(batches), calibration, what)


def model_of(info: ExportInfo) -> ModelProto:
    """The ONNX model of a description: with free shapes it takes half a minute to make."""
    traced = replace(info, precision="fp32") if info.precision == "int8" else info
    key = hashlib.sha256(json.dumps(to_texts(traced)).encode()).hexdigest()

    def make() -> bytes:
        with unchecked_shapes():
            return onnx_model(detector(), traced).SerializeToString()

    return ModelProto.FromString(made_once(f"{key}.onnx", make))


PLAIN = ExportRequest()
SUPPRESSED = ExportRequest(suppression=LIMITS)
BYTES = ExportRequest(takes_bytes=True, half=True, fixed_batch=2)


@cache
def plain_file() -> Path:
    """A dense ONNX file; tests must not change it."""
    path = Path(mkdtemp()) / "plain.onnx"
    path.write_bytes(built(PLAIN).files[".onnx"])
    return path
