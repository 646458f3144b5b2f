"""From a detector to a program of torch.export, and from that to an ONNX model: inputs and outputs named, nothing else.

Legend: B images, H, W of the input in pixels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from anchorite.export.metadata import DENSE_OUTPUTS, INPUT, ExportInfo
from anchorite.export.network import DecodedNetwork, as_input
from anchorite.model import Detector

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

OPSET = 18
"""Version of ONNX's operators; runtimes since 2023 know it."""

_DTYPES = {"fp32": torch.float32, "int8": torch.float32, "fp16": torch.float16}


def traced(detector: Detector, info: ExportInfo) -> ExportedProgram:
    """The decoded network as a program of torch.export: its shapes free, H and W in multiples of the stride, or fixed.

    Of a suppression or int8, which ONNX adds later, it has nothing.
    """
    network = DecodedNetwork(detector, _DTYPES[info.precision], info.takes_bytes).eval()
    stride = detector.strides[-1]
    # Two of each and not square: whatever equals 1, or each other, would be taken for a constant.
    batch, height, width = info.fixed_shape or (2, 2 * stride, 3 * stride)
    example = as_input(torch.zeros((batch, 3, height, width), dtype=torch.uint8), info.takes_bytes)
    with _quiet(), torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=_dynamic_shapes(info, stride), strict=False)


def _dynamic_shapes(info: ExportInfo, stride: int) -> tuple[dict[int, Any]] | None:
    if info.fixed_shape is not None:
        return None
    batch = torch.export.Dim("batch")
    height, width = (stride * torch.export.Dim(name) for name in ("rows", "columns"))
    return ({0: batch, 1: height, 2: width} if info.takes_bytes else {0: batch, 2: height, 3: width},)


def onnx_model(detector: Detector, info: ExportInfo) -> ModelProto:
    """The ONNX model of `traced`, checked, without the exporter's notes (they hold paths of this machine)."""
    import onnx

    program = traced(detector, info)
    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(DENSE_OUTPUTS),
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _strip(model)
    _name_free_dimensions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _strip(model: ModelProto) -> None:
    graph = model.graph
    model.producer_name, model.producer_version, model.doc_string = "anchorite", "", ""
    del model.metadata_props[:], graph.metadata_props[:]
    del graph.value_info[:]
    graph.name, graph.doc_string = "detector", ""
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_free_dimensions(model: ModelProto) -> None:
    """Give the free dimensions of inputs and outputs names that say what they are."""
    (images,) = model.graph.input
    free = [dim for dim in images.type.tensor_type.shape.dim if dim.dim_param]
    if free:
        known = {dim.dim_param: name for dim, name in zip(free, ("batch", "height", "width"), strict=True)}
        for dim in free:
            dim.dim_param = known[dim.dim_param]
        for output in model.graph.output:
            for dim in output.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = known.get(dim.dim_param, "places")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say about packages that are not needed and interfaces of their own."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
