"""Checks of a dataset: everything read and decoded once, what is wrong listed, and a corrected copy on request."""

from anchorite.inspect.anchors import AnchorTable, anchor_table, save_anchor_plot
from anchorite.inspect.checks import corrected_dataset, inspect_dataset
from anchorite.inspect.findings import (
    KINDS,
    SEVERITIES,
    AnchorFit,
    Finding,
    FindingKind,
    Inspection,
    Severity,
    SplitBalance,
    report_text,
    summary_text,
)
from anchorite.inspect.resplit import resplit

__all__ = [
    "KINDS",
    "SEVERITIES",
    "AnchorFit",
    "AnchorTable",
    "Finding",
    "FindingKind",
    "Inspection",
    "Severity",
    "SplitBalance",
    "anchor_table",
    "corrected_dataset",
    "inspect_dataset",
    "report_text",
    "resplit",
    "save_anchor_plot",
    "summary_text",
]
