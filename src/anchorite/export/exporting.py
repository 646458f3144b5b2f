"""Exporting: build, run at once in the runtime it is for, compare, and only then write; and loading what was exported.

Legend: B images, H, W of the input in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from anchorite.choices import ExportFormat, PrecisionName
from anchorite.errors import InputError, UnsafeFileError, import_extra
from anchorite.export.exported import ExportedRuntime, ExportInfo
from anchorite.export.nms_graph import refuse_unbuildable, with_suppression
from anchorite.export.onnx_format import (
    MAX_XML_BYTES,
    onnx_model,
    onnx_runtime,
    openvino,
    openvino_pair,
    openvino_runtime,
    quantised,
    read_bounded,
    with_metadata,
)
from anchorite.export.parity import Parity, compare, compare_found
from anchorite.export.torch_export import DecodedNetwork, program_bytes, program_runtime, traced
from anchorite.files import StrPath, write_bytes_atomically
from anchorite.keywords import checks_keywords
from anchorite.model import Detector, WeightsInfo
from anchorite.model.hf_backbone import WINDOWED
from anchorite.predict import PredictConfig, Predictor, load

_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript"), "torch-export": ()}
SUFFIXES: Mapping[ExportFormat, str] = MappingProxyType({"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"})


@dataclass(frozen=True)
class ExportRequest:
    """What is wanted.

    image_size: that of the weights when None; half: float16 convolutions; takes_bytes: uint8 (B, H, W, 3) goes in;
    suppression: limits to be built in, or None for boxes and scores of every anchor cell; fixed_batch: B where the
    shape is to be fixed, H = W = image_size; int8: convolutions quantised.
    """

    format: ExportFormat = "onnx"
    image_size: int | None = None
    half: bool = False
    takes_bytes: bool = False
    suppression: PredictConfig | None = None
    fixed_batch: int | None = None
    int8: bool = False


@dataclass(frozen=True)
class Built:
    """An export in memory, compared already.

    files: bytes by suffix, in the order of writing; export: what it says of itself; dense: what runs the same network
    without suppression, to be measured; parity: how far it is from PyTorch.
    """

    files: Mapping[str, bytes]
    export: ExportInfo
    dense: ExportedRuntime
    parity: Parity

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(map(len, self.files.values()))


def export_info(weights: WeightsInfo, request: ExportRequest) -> ExportInfo:
    """What the file will say of itself; InputError for wishes that exclude each other or the network."""
    if request.half and request.int8:
        raise InputError("--half and --int8 exclude each other; leave one of them out")
    if request.format == "torch-export" and (request.suppression is not None or request.int8):
        raise InputError("--nms and --int8 are for onnx and openvino; leave them out for torch-export")
    if request.suppression is not None:
        refuse_unbuildable(request.suppression)
    side, stride = request.image_size or weights.image_size, weights.anchors.strides[-1]
    if side % stride:
        raise InputError(
            f"--image-size {side}: must be a multiple of {stride}, the coarsest stride of these weights; "
            f"take {-(-side // stride) * stride}"
        )
    backbone = weights.backbone_config
    if backbone is not None and backbone.model_type in WINDOWED and request.fixed_batch is None:
        raise InputError(
            f"a backbone {backbone.model_type} is another program for each size of image, so it can be "
            "exported for one alone: add --static 1"
        )
    if request.fixed_batch is not None and request.fixed_batch < 1:
        raise InputError(f"a fixed batch has at least one image, not {request.fixed_batch}")
    return ExportInfo(
        replace(weights, image_size=side),
        "uint8 NHWC RGB" if request.takes_bytes else "float32 NCHW RGB 0..1",
        "int8" if request.int8 else "fp16" if request.half else "fp32",
        None if request.fixed_batch is None else (request.fixed_batch, side, side),
        request.suppression,
    )


def need_packages(format_name: ExportFormat) -> None:
    """Raise InputError, with the remedy, when a package that the format needs is not installed."""
    for package in _PACKAGES[format_name]:
        import_extra(package, "export")
    if format_name == "openvino":
        openvino()


def build(
    detector: Detector,
    weights: WeightsInfo,
    request: ExportRequest,
    batches: Sequence[Tensor],
    calibration: Iterable[Tensor] = (),
    what: object = "export",
) -> Built:
    """The export, built, run at once in its runtime, and compared with PyTorch on uint8 images (B, 3, H, W).

    calibration: images for int8; what: the file's name, for messages. Raises ExportDiffersError when its answers are
    not those of the detector, InputError when the request makes no sense or a package is missing.
    """
    need_packages(request.format)
    info = export_info(weights, request)
    dense_info = replace(info, suppression=None)
    reference = DecodedNetwork(detector).eval()
    model: Any = (traced if request.format == "torch-export" else onnx_model)(detector, dense_info)
    if request.int8:
        model = quantised(model, calibration, info.takes_bytes)
    files, dense = _made(model, dense_info, request.format, what)
    parity = compare(reference, dense, batches)
    if request.suppression is not None:
        model = with_suppression(model, request.suppression, detector.num_classes)
        files, suppressed = _made(model, info, request.format, what)
        parity = replace(parity, found=compare_found(dense, suppressed, request.suppression, batches))
    return Built(files, info, dense, parity)


def _made(
    model: Any, info: ExportInfo, format_name: ExportFormat, what: object
) -> tuple[Mapping[str, bytes], ExportedRuntime]:
    """The files of a program or an ONNX model, and their very bytes loaded by the runtime they are for."""
    if format_name == "torch-export":
        content = program_bytes(model, info)
        return {".pt2": content}, program_runtime(what, content, info)
    if format_name == "openvino":
        xml, binary = openvino_pair(model, info)
        return {".bin": binary, ".xml": xml}, openvino_runtime(what, xml, binary)
    content = with_metadata(model, info)
    return {".onnx": content}, onnx_runtime(what, content, "cpu")


def write(path: StrPath, built: Built) -> list[Path]:
    """Write the files, PATH's own last, each atomically; their paths. Raises StorageError."""
    path = Path(path)
    for suffix, content in built.files.items():
        write_bytes_atomically(path.with_suffix(suffix), content)
    return [path.with_suffix(suffix) for suffix in built.files]


def is_export(path: StrPath) -> bool:
    """Whether the name is that of an exported file."""
    return Path(path).suffix.lower() in (*SUFFIXES.values(), ".bin")


@checks_keywords()
def load_export(path: StrPath, device: str = "auto", precision: PrecisionName = "auto") -> ExportedRuntime:
    """An ONNX or OpenVINO file of ours, ready to run; of an OpenVINO pair, either file may be named.

    precision: "auto" alone, because the file decides; InputError otherwise. Raises UnsafeFileError or
    InputError for a file that is not ours, StorageError when it cannot be read.
    """
    path = Path(path)
    if precision != "auto":
        raise InputError(f"--precision {precision}: {path} runs in the one it was exported in; leave it out")
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        raise UnsafeFileError(
            f"{path}: a program of torch.export, which torch may unpickle when it loads it, so it is not read; "
            "use the weights it was made of, or an export to onnx"
        )
    if suffix == ".onnx":
        return onnx_runtime(path, read_bounded(path), device)
    if device not in ("auto", "cpu"):
        raise InputError(f"device {device}: OpenVINO files are run on the CPU; use --device cpu")
    path = path.with_suffix(".xml")
    return openvino_runtime(path, read_bounded(path, MAX_XML_BYTES), read_bounded(path.with_suffix(".bin")))


@checks_keywords()
def load_predictor(path: StrPath, device: str = "auto", precision: PrecisionName = "auto") -> Predictor:
    """A Predictor of a weight file or of an export, by its suffix; raises what loading either raises."""
    if is_export(path):
        return Predictor.of(load_export(path, device, precision))
    return load(path, device, precision)
