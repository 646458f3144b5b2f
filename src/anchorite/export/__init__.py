"""Export: ONNX, OpenVINO and torch.export, each run at once and compared with PyTorch; and running such files."""

from anchorite.export.exported import ExportInfo
from anchorite.export.exporting import (
    SUFFIXES,
    Built,
    ExportRequest,
    build,
    export_info,
    is_export,
    load_export,
    load_predictor,
    need_packages,
    write,
)
from anchorite.export.parity import ExportDiffersError, batches_of, drawn_batches, measure, spread

__all__ = [
    "SUFFIXES",
    "Built",
    "ExportDiffersError",
    "ExportInfo",
    "ExportRequest",
    "batches_of",
    "build",
    "drawn_batches",
    "export_info",
    "is_export",
    "load_export",
    "load_predictor",
    "measure",
    "need_packages",
    "spread",
    "write",
]
