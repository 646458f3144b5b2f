"""OpenVINO's pair of files: NAME.xml, the graph with our metadata, and NAME.bin, the weights."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.errors import InputError
from anchorite.export.exported import INPUT, KEYS, PREFIX, ExportedRuntime, ExportInfo, from_texts, needed, to_texts

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_XML_BYTES = 32 << 20
"""Longest graph that is read."""
_ROOT = "anchorite"


def openvino() -> Any:
    """OpenVINO, imported without the package by which its import reports itself over the network.

    With that package out of the way it falls back on a stand-in of its own that sends nothing and leaves no file.
    """
    reporting = "openvino_telemetry"
    if "openvino" in sys.modules or reporting in sys.modules:
        return needed("openvino", "openvino")
    sys.modules[reporting] = None  # type: ignore[assignment]  # as Python documents it: importing it is an ImportError
    try:
        return needed("openvino", "openvino")
    finally:
        del sys.modules[reporting]


def openvino_pair(model: ModelProto, info: ExportInfo) -> tuple[bytes, bytes]:
    """The bytes of .xml and .bin for an ONNX model."""
    engine = openvino()
    converted = engine.Core().read_model(model.SerializeToString())
    for key, text in to_texts(info).items():
        converted.set_rt_info(text, [_ROOT, key.removeprefix(PREFIX)])
    with tempfile.TemporaryDirectory(prefix="anchorite-") as folder:
        target = Path(folder) / "model.xml"
        engine.save_model(converted, target, compress_to_fp16=False)
        return target.read_bytes(), target.with_suffix(".bin").read_bytes()


def openvino_runtime(path: object, xml: bytes, weights: bytes) -> ExportedRuntime:
    """An OpenVINO pair of ours, ready to run on the CPU in the number format of its weights; path: for messages.

    Raises InputError when it is not ours or OpenVINO cannot read it.
    """
    engine = openvino()
    core = engine.Core()
    try:
        # As tensors, never as a path: so it reads no file but these.
        model = core.read_model(xml, engine.Tensor(np.frombuffer(weights or b"\0", np.uint8).copy()))
    except Exception as error:  # the errors of OpenVINO have no other base
        raise InputError(f"{path}: OpenVINO cannot read it: {_last_line(error)}") from error
    there = [key for key in KEYS if model.has_rt_info([_ROOT, key])]
    info = from_texts(path, {PREFIX + key: str(model.get_rt_info([_ROOT, key]).value) for key in there})
    # OpenVINO would compute in bfloat16 where a CPU is fast at it, and differ from what was verified.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        compiled = core.compile_model(model, "CPU", settings)
        ports = [compiled.output(name) for name in info.outputs]
        compiled.input(INPUT)
    except Exception as error:
        raise InputError(f"{path}: OpenVINO cannot compile it: {_last_line(error)}") from error

    def compute(images: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        try:
            answers = compiled(images)
        except Exception as error:
            raise InputError(f"{path}: OpenVINO cannot run it: {_last_line(error)}") from error
        return [np.array(answers[port]) for port in ports]

    return ExportedRuntime(path, info, "openvino cpu", compute)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
