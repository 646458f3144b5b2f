"""anchorite trains, checks, explains and ships anchor-based YOLO detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from anchorite.choices import PrecisionName
    from anchorite.predict import Predictor, pseudo_label

__version__ = "0.1.0"
__all__ = ["__version__", "load", "pseudo_label"]


def load(path: str | os.PathLike[str], device: str = "auto", precision: PrecisionName = "auto") -> Predictor:
    """A Predictor of a weight file, or of an export of one (.onnx, .xml), by the suffix.

    device: auto, cpu, cuda or cuda:N; precision: auto, fp32, bf16 or fp16 (auto alone for an export, which decides for
    itself). Raises InputError for what cannot be read, and UnsafeFileError for what would have to be run to be read, as
    .pt2 files would.
    """
    # torch takes seconds to import; `anchorite --help` must not wait for it.
    from anchorite.export import load_predictor

    return load_predictor(path, device, precision)


def __getattr__(name: str) -> Any:
    if name == "pseudo_label":
        from anchorite.predict import pseudo_label

        return pseudo_label
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
