"""Evaluation: a detector measured on a labelled split."""

from anchorite.evaluate.result import Stopwatch, ValidationLosses, ValidationResult, ValidationSpeed, aligned_table
from anchorite.evaluate.validator import (
    Shared,
    ValidationConfig,
    Validator,
    batch_targets,
    require_classes,
    require_images,
    require_side,
)

__all__ = [
    "Shared",
    "Stopwatch",
    "ValidationConfig",
    "ValidationLosses",
    "ValidationResult",
    "ValidationSpeed",
    "Validator",
    "aligned_table",
    "batch_targets",
    "require_classes",
    "require_images",
    "require_side",
]
