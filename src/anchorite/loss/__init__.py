"""Loss: assignment of objects to cells and anchors, the terms, and the criterion over all levels."""

from anchorite.loss.assign import Assignment, assign
from anchorite.loss.config import LossConfig
from anchorite.loss.criterion import DetectionLoss, LevelBreakdown, LossTerms, break_down, initial_balance
from anchorite.loss.logits import DenseLogits, LevelLogits

__all__ = [
    "Assignment",
    "DenseLogits",
    "DetectionLoss",
    "LevelBreakdown",
    "LevelLogits",
    "LossConfig",
    "LossTerms",
    "assign",
    "break_down",
    "initial_balance",
]
