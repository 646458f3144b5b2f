"""Evaluation: a detector measured on a labelled split."""

from anchorite.evaluate.result import Stopwatch, ValidationLosses, ValidationResult, ValidationSpeed, aligned_table
from anchorite.evaluate.validator import (
    ReadConfig,
    ValidationConfig,
    Validator,
    batch_targets,
    gather_predictions,
    require_classes,
    require_images,
    require_side,
)

__all__ = [
    "ReadConfig",
    "Stopwatch",
    "ValidationConfig",
    "ValidationLosses",
    "ValidationResult",
    "ValidationSpeed",
    "Validator",
    "aligned_table",
    "batch_targets",
    "gather_predictions",
    "require_classes",
    "require_images",
    "require_side",
]
