"""ONNX: the model of a detector, quantised where asked; its metadata; and files read as if a stranger had written them.
OpenVINO, too, whose pair of files is made of that model: NAME.xml, the graph with our metadata, and NAME.bin.

A file is refused before any runtime sees it when it is no regular file, is too large, points at data in other files,
brings functions, subgraphs or operators that are not ONNX's own, or has other inputs and outputs than its metadata
means. Nothing in it is ever executed but ONNX's own operators.
"""

from __future__ import annotations

import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.errors import InputError, StorageError, UnsafeFileError, import_extra
from anchorite.export.exported import (
    DENSE_OUTPUTS,
    INPUT,
    KEYS,
    PREFIX,
    ExportedRuntime,
    ExportInfo,
    as_input,
    from_texts,
    to_texts,
)
from anchorite.export.torch_export import quiet, traced
from anchorite.model import Detector

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # version of ONNX's operators; runtimes since 2023 know it
MAX_BYTES = 1 << 30  # of a file that is read; the largest network, x6, has a bit more than half of it in float32
MAX_XML_BYTES = 32 << 20  # of a graph of OpenVINO that is read

_OPENVINO_ROOT = "anchorite"
_FLOAT, _UINT8, _INT64 = 1, 2, 7  # of onnx.TensorProto
_OWN_DOMAINS = ("", "ai.onnx")
# All of the network's operators: where one stays float32, each of its tensors is converted there and back.
_QUANTISED_OPERATORS = ("Conv", "Mul", "Sigmoid", "Add", "Concat", "MaxPool", "Resize")


def onnx_model(detector: Detector, info: ExportInfo) -> ModelProto:
    """The ONNX model of `traced`, checked, without the exporter's notes (they hold paths of this machine)."""
    onnx = import_extra("onnx", "export")
    program = traced(detector, info)
    with quiet(), torch.no_grad():
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
    graph = model.graph
    model.producer_name, model.producer_version, model.doc_string = "anchorite", "", ""
    graph.name, graph.doc_string = "detector", ""
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    # Free dimensions get names that say what they are.
    free = [dim for dim in graph.input[0].type.tensor_type.shape.dim if dim.dim_param]
    names = {dim.dim_param: name for dim, name in zip(free, ("batch", "height", "width"), strict=False)}
    for end in (*graph.input, *graph.output):
        for dim in end.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, "places")
    onnx.checker.check_model(model, full_check=True)
    return model


def quantised(model: ModelProto, calibration: Iterable[Tensor], takes_bytes: bool) -> ModelProto:
    """The model with int8 convolutions, by onnxruntime's own tool; its inputs and outputs stay as they are.

    Activations become uint8 and weights int8, per output channel, with scales from the extremes seen on the calibration
    images: uint8 RGB (B, 3, H, W), such as it will see. The last convolution of each level and the decoding stay
    float32: boxes would lose whole pixels there. Raises InputError when there are no images.
    """
    onnx, quantization = import_extra("onnx", "export"), import_extra("onnxruntime.quantization", "export")
    batches = ({INPUT: as_input(images, takes_bytes).numpy()} for images in calibration)
    first = next(batches, None)
    if first is None:
        raise InputError("--calibrate: there are no images; name a dataset with a train split, or another --split")
    waiting = chain([first], batches)
    after_the_features, before_convolutions = [], set[str]()
    for node in reversed(model.graph.node):  # the last convolutions, and what comes after them
        if before_convolutions.isdisjoint(node.output):
            after_the_features.append(node.name)
            if node.op_type != "Conv":
                continue
        before_convolutions.update(node.input)
    with tempfile.TemporaryDirectory(prefix="anchorite-") as folder, quiet():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            type(model).FromString(model.SerializeToString()),  # it is changed in place
            target,
            SimpleNamespace(get_next=lambda: next(waiting, None)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_QUANTISED_OPERATORS),
            nodes_to_exclude=after_the_features,
        )
        result: ModelProto = onnx.load(target)
    result.producer_name = model.producer_name
    used = {node.domain for node in result.graph.node}
    own = [opset for opset in result.opset_import if opset.domain in used]
    del result.graph.value_info[:], result.opset_import[:]
    result.opset_import.extend(own)
    return result


def with_metadata(model: ModelProto, info: ExportInfo) -> bytes:
    """The bytes of an ONNX file of the model, described."""
    import_extra("onnx", "export").helper.set_model_props(model, dict(sorted(to_texts(info).items())))
    return model.SerializeToString(deterministic=True)


def onnx_runtime(path: object, content: bytes, device: str = "auto") -> ExportedRuntime:
    """An ONNX file of ours, ready to run; path: for messages.

    Raises UnsafeFileError or InputError for what the module's docstring names.
    """
    info = _checked_info(path, content)
    runtime = import_extra("onnxruntime", "export")
    available = runtime.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in available
    if device != "cpu" and device != "auto" and not (has_cuda and device in ("cuda", "cuda:0")):
        raise InputError(f"device {device}: this onnxruntime has {', '.join(available)}; use --device cpu")
    where = "cuda" if has_cuda and device != "cpu" else "cpu"
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    with _errors_as_input(f"{path}: onnxruntime cannot load it", 0):
        session = runtime.InferenceSession(content, options, providers=[f"{where.upper()}ExecutionProvider"])

    def compute(images: NDArray[np.generic]) -> Sequence[NDArray[np.generic]]:
        with _errors_as_input(f"{path}: onnxruntime cannot run it", 0):
            answers: list[NDArray[np.generic]] = session.run(list(info.outputs), {INPUT: images})
        return answers

    return ExportedRuntime(path, info, f"onnxruntime {where}", compute)


def read_bounded(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A regular file's bytes; InputError for anything else, UnsafeFileError for more than `max_bytes`, StorageError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is no file; give the path of an exported file")
        if status.st_size > max_bytes:
            raise UnsafeFileError(f"{path}: has {status.st_size} bytes; more than {max_bytes} are not read")
        with path.open("rb") as file:
            return file.read(max_bytes)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}; check the permissions") from error


def _checked_info(path: object, content: bytes) -> ExportInfo:
    """What an ONNX file says of itself, once the file is known to be harmless and of our making."""
    try:
        model = import_extra("onnx", "export").load_model_from_string(content)
    except import_extra("google.protobuf.message", "export").DecodeError as error:
        raise InputError(f"{path}: cut off or no ONNX file; copy or export it again") from error
    foreign = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    foreign -= set(_OWN_DOMAINS)
    if foreign:
        raise UnsafeFileError(f"{path}: has operators of {sorted(foreign)}, not ONNX's own, so it is not used")
    if model.functions or model.training_info:
        raise UnsafeFileError(f"{path}: brings functions or training of its own; no export of ours does")
    tensors, sparse = list(model.graph.initializer), list(model.graph.sparse_initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise UnsafeFileError(f"{path}: {node.op_type} holds a graph of its own; no export of ours does")
            tensors += [attribute.t, *attribute.tensors]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    tensors += [part for one in sparse for part in (one.values, one.indices)]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise UnsafeFileError(f"{path}: points at data in another file, which could be any of yours; nothing was read")
    info = from_texts(path, {entry.key: entry.value for entry in model.metadata_props})
    inputs = [(one.name, one.type.tensor_type.elem_type) for one in model.graph.input]
    outputs = [(one.name, one.type.tensor_type.elem_type) for one in model.graph.output]
    expected = (
        [(INPUT, _UINT8 if info.takes_bytes else _FLOAT)],
        [(info.outputs[0], _FLOAT), (info.outputs[1], _FLOAT if info.suppression is None else _INT64)],
    )
    if (inputs, outputs) != expected:
        raise InputError(
            f"{path}: inputs and outputs (names, types) are {inputs}, {outputs}, but its metadata means {expected}"
        )
    return info


# OpenVINO


def openvino() -> Any:
    """OpenVINO, imported without the package by which its import reports itself over the network.

    With that package out of the way it falls back on a stand-in of its own that sends nothing and leaves no file.
    """
    reporting = "openvino_telemetry"
    if "openvino" in sys.modules or reporting in sys.modules:
        return import_extra("openvino", "openvino")
    sys.modules[reporting] = None  # type: ignore[assignment]  # as Python documents it: importing it is an ImportError
    try:
        return import_extra("openvino", "openvino")
    finally:
        del sys.modules[reporting]


def openvino_pair(model: ModelProto, info: ExportInfo) -> tuple[bytes, bytes]:
    """The bytes of .xml and .bin for an ONNX model."""
    engine = openvino()
    converted = engine.Core().read_model(model.SerializeToString())
    for key, text in to_texts(info).items():
        converted.set_rt_info(text, [_OPENVINO_ROOT, key.removeprefix(PREFIX)])
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
    with _errors_as_input(f"{path}: OpenVINO cannot read it", -1):
        # As tensors, never as a path: so it reads no file but these.
        model = core.read_model(xml, engine.Tensor(np.frombuffer(weights or b"\0", np.uint8).copy()))
    there = [key for key in KEYS if model.has_rt_info([_OPENVINO_ROOT, key])]
    info = from_texts(path, {PREFIX + key: str(model.get_rt_info([_OPENVINO_ROOT, key]).value) for key in there})
    # OpenVINO would compute in bfloat16 where a CPU is fast at it, and differ from what was verified.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    with _errors_as_input(f"{path}: OpenVINO cannot compile it", -1):
        compiled = core.compile_model(model, "CPU", settings)
        ports = [compiled.output(name) for name in info.outputs]
        compiled.input(INPUT)

    def compute(images: NDArray[np.generic]) -> Sequence[NDArray[np.generic]]:
        with _errors_as_input(f"{path}: OpenVINO cannot run it", -1):
            answers = compiled(images)
        return [np.array(answers[port]) for port in ports]

    return ExportedRuntime(path, info, "openvino cpu", compute)


@contextmanager
def _errors_as_input(failure: str, line: int) -> Iterator[None]:
    """Any error of an engine, whose errors have no other base, as an InputError that gives one line of it."""
    try:
        yield
    except Exception as error:
        lines = [text.strip() for text in str(error).splitlines() if text.strip()] or [type(error).__name__]
        raise InputError(f"{failure}: {lines[line][:300]}") from error
