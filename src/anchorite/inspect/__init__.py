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
    SourceBalance,
    SplitBalance,
    kind_of,
    report_text,
    summary_text,
)
from anchorite.inspect.overview import Overview, Told, look_over, require_boxes, sources_of
from anchorite.inspect.resplit import resplit, take_val

__all__ = [
    "KINDS",
    "SEVERITIES",
    "AnchorFit",
    "AnchorTable",
    "Finding",
    "FindingKind",
    "Inspection",
    "Overview",
    "Severity",
    "SourceBalance",
    "SplitBalance",
    "Told",
    "anchor_table",
    "corrected_dataset",
    "inspect_dataset",
    "kind_of",
    "look_over",
    "report_text",
    "require_boxes",
    "resplit",
    "save_anchor_plot",
    "sources_of",
    "summary_text",
    "take_val",
]
