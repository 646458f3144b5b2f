"""Evaluation: a detector measured on a labelled split."""

from anchorite.evaluate.result import ValidationLosses, ValidationResult, ValidationSpeed
from anchorite.evaluate.validator import (
    ReadConfig,
    ValidationConfig,
    Validator,
    batch_coverage,
    batch_targets,
    predictions_in_images,
    require_classes,
    require_images,
    require_side,
)

__all__ = [
    "ReadConfig",
    "ValidationConfig",
    "ValidationLosses",
    "ValidationResult",
    "ValidationSpeed",
    "Validator",
    "batch_coverage",
    "batch_targets",
    "predictions_in_images",
    "require_classes",
    "require_images",
    "require_side",
]
