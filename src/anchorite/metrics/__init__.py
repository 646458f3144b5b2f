"""Metrics: the twelve COCO numbers, precision and recall over confidence, the confusion matrix, and their plots."""

from anchorite.metrics.coco import ClassMetrics, CocoMetrics, coco_metrics
from anchorite.metrics.curves import Confusion, Curves, confusion_matrix, detection_curves, most_confused, outcomes
from anchorite.metrics.matching import Predictions, Truth
from anchorite.metrics.plots import save_confusion_matrix, save_f1_curve, save_pr_curve

__all__ = [
    "ClassMetrics",
    "CocoMetrics",
    "Confusion",
    "Curves",
    "Predictions",
    "Truth",
    "coco_metrics",
    "confusion_matrix",
    "detection_curves",
    "most_confused",
    "outcomes",
    "save_confusion_matrix",
    "save_f1_curve",
    "save_pr_curve",
]
