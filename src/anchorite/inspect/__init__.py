"""The doctor of a dataset: everything read and decoded once, what is wrong listed, and a corrected copy on request."""

from anchorite.inspect.anchor_tables import AnchorTable, anchor_table, save_anchor_plot
from anchorite.inspect.anchors import AnchorFit, training_sides
from anchorite.inspect.corrected import Change, corrected_dataset
from anchorite.inspect.doctor import Inspection, inspect_dataset
from anchorite.inspect.findings import KINDS, SEVERITIES, Finding, Kind, Severity
from anchorite.inspect.labels import SplitBalance
from anchorite.inspect.resplit import Resplit, resplit
from anchorite.inspect.text import report_text, summary_text

__all__ = [
    "KINDS",
    "SEVERITIES",
    "AnchorFit",
    "AnchorTable",
    "Change",
    "Finding",
    "Inspection",
    "Kind",
    "Resplit",
    "Severity",
    "SplitBalance",
    "anchor_table",
    "corrected_dataset",
    "inspect_dataset",
    "report_text",
    "resplit",
    "save_anchor_plot",
    "summary_text",
    "training_sides",
]
