"""Weights of any kind behind one interface: our own files run in torch, exports in the runtime they are for."""

from __future__ import annotations

from pathlib import Path

from anchorite.choices import PrecisionName
from anchorite.errors import InputError, UnsafeFileError
from anchorite.export.exported import ExportedRuntime
from anchorite.export.onnx_file import load_onnx
from anchorite.export.openvino_file import load_openvino
from anchorite.predict import Predictor, load


def is_export(path: Path) -> bool:
    """Whether the name is that of an exported file."""
    return path.suffix.lower() in (".onnx", ".xml", ".bin", ".pt2")


def load_export(path: Path, device: str = "auto", precision: PrecisionName = "auto") -> ExportedRuntime:
    """An ONNX or OpenVINO file of ours, ready to run; raises what `load_onnx` and `load_openvino` raise.

    precision: nothing but "auto" is to be had, for the file decides; InputError otherwise.
    """
    if precision != "auto":
        raise InputError(f"--precision {precision}: {path} runs in the one it was exported in; leave it out")
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        raise UnsafeFileError(
            f"{path}: a program of torch.export, which torch may unpickle when it loads it, so it stays unread; "
            "use the weights it was made of, or an export to onnx"
        )
    if suffix == ".onnx":
        return load_onnx(path, device)
    if device not in ("auto", "cpu"):
        raise InputError(f"device {device}: OpenVINO files are run on the CPU; use --device cpu")
    return load_openvino(path.with_suffix(".xml"))


def load_predictor(path: Path, device: str = "auto", precision: PrecisionName = "auto") -> Predictor:
    """A Predictor of a weight file or of an export, by its suffix; raises what loading either raises."""
    if is_export(path):
        return Predictor.of(load_export(path, device, precision))
    return load(path, device, precision)
