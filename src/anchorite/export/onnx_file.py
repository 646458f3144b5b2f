"""ONNX files: metadata put in, and files read as if a stranger had written them.

A file is refused before any runtime sees it when it is no regular file, is too large, points at data in other files,
brings functions, subgraphs or operators that are not ONNX's own, or has other inputs and outputs than its metadata
means. Nothing in it is ever executed but ONNX's own operators.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.errors import InputError, StorageError, UnsafeFileError
from anchorite.export.exported import ExportedRuntime
from anchorite.export.extras import needed
from anchorite.export.metadata import INPUT, ExportInfo, from_texts, to_texts

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_BYTES = 1 << 30
"""Largest file that is read; the largest network, x6, has a bit more than half of it in float32."""

_FLOAT, _UINT8, _INT64 = 1, 2, 7  # of onnx.TensorProto
_OWN_DOMAINS = ("", "ai.onnx")


def with_metadata(model: ModelProto, info: ExportInfo) -> bytes:
    """The bytes of an ONNX file of the model, described."""
    del model.metadata_props[:]
    for key, text in sorted(to_texts(info).items()):
        model.metadata_props.add(key=key, value=text)
    return model.SerializeToString(deterministic=True)


def load_onnx(path: Path, device: str = "auto", num_threads: int | None = None) -> ExportedRuntime:
    """An ONNX file of ours, ready to run.

    Raises UnsafeFileError or InputError for what the module's head names, StorageError when it cannot be read.
    """
    return onnx_runtime(path, read_bounded(path), device, num_threads)


def onnx_runtime(path: object, content: bytes, device: str = "auto", num_threads: int | None = None) -> ExportedRuntime:
    """`load_onnx` of a file's bytes; path: for messages."""
    info = checked_info(path, content)
    runtime = needed("onnxruntime", "export")
    provider = _provider(runtime.get_available_providers(), device)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # the errors of onnxruntime have no other base
        raise InputError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from error

    def compute(images: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        try:
            return session.run(list(info.outputs), {INPUT: images})
        except Exception as error:
            raise InputError(f"{path}: onnxruntime cannot run it: {_first_line(error)}") from error

    where = "cuda" if provider.startswith("CUDA") else "cpu"
    return ExportedRuntime(path, info, f"onnxruntime {where}", compute)


def read_bounded(path: Path, most_bytes: int = MAX_BYTES) -> bytes:
    """A regular file's bytes; InputError for anything else or more than `most_bytes`, StorageError when unreadable."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is no file; give the path of an exported file")
        if status.st_size > most_bytes:
            raise UnsafeFileError(f"{path}: has {status.st_size} bytes; more than {most_bytes} are not read")
        with path.open("rb") as file:
            return file.read(most_bytes)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}; check the permissions") from error


def checked_info(path: object, content: bytes) -> ExportInfo:
    """What an ONNX file says of itself, once the file is known to be harmless and of our making."""
    onnx = needed("onnx", "export")
    try:
        model = onnx.load_model_from_string(content)
    except needed("google.protobuf.message", "export").DecodeError as error:
        raise InputError(f"{path}: cut off or no ONNX file; copy or export it again") from error
    _refuse_unsafe(path, model)
    info = from_texts(path, {entry.key: entry.value for entry in model.metadata_props})
    _check_ends(path, model, info)
    return info


def _refuse_unsafe(path: object, model: ModelProto) -> None:
    foreign = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    foreign -= set(_OWN_DOMAINS)
    if foreign:
        raise UnsafeFileError(f"{path}: has operators of {sorted(foreign)}, not ONNX's own, so it stays unused")
    if model.functions or model.training_info:
        raise UnsafeFileError(f"{path}: brings functions or training of its own; no export of ours does")
    tensors = list(model.graph.initializer)
    for sparse in model.graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise UnsafeFileError(f"{path}: {node.op_type} holds a graph of its own; no export of ours does")
            tensors += [attribute.t, *attribute.tensors]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise UnsafeFileError(f"{path}: points at data in another file, which could be any of yours; nothing was read")


def _check_ends(path: object, model: ModelProto, info: ExportInfo) -> None:
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


def _provider(available: list[str], device: str) -> str:
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in available):
        return "CPUExecutionProvider"
    if device in ("auto", "cuda", "cuda:0") and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider"
    raise InputError(f"device {device}: this onnxruntime has {', '.join(available)}; use --device cpu")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
