"""Evaluation: a detector measured on a labelled split."""

from anchorite.evaluate.config import ValidationConfig
from anchorite.evaluate.requirements import require_classes, require_images, require_side
from anchorite.evaluate.result import ValidationLosses, ValidationResult
from anchorite.evaluate.sharing import Shared
from anchorite.evaluate.stopwatch import ValidationSpeed
from anchorite.evaluate.validator import Validator

__all__ = [
    "Shared",
    "ValidationConfig",
    "ValidationLosses",
    "ValidationResult",
    "ValidationSpeed",
    "Validator",
    "require_classes",
    "require_images",
    "require_side",
]
