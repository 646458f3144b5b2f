"""Export: ONNX, OpenVINO and torch.export, each run at once and compared with PyTorch; and running such files."""

from anchorite.export.exported import ExportedRuntime
from anchorite.export.exporting import SUFFIXES, Built, ExportRequest, build, export_info, need_packages, write
from anchorite.export.images import batches_of, drawn_batches, spread
from anchorite.export.loading import is_export, load_export, load_predictor
from anchorite.export.measuring import Measured, measure
from anchorite.export.metadata import ExportInfo
from anchorite.export.parity import ExportDiffersError, Parity

__all__ = [
    "SUFFIXES",
    "Built",
    "ExportDiffersError",
    "ExportInfo",
    "ExportRequest",
    "ExportedRuntime",
    "Measured",
    "Parity",
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
