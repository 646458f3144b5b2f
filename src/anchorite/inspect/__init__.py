"""The doctor of a dataset: everything read and decoded once, what is wrong listed, and a corrected copy on request."""

from anchorite.inspect.anchors import AnchorFit
from anchorite.inspect.corrected import Change, corrected_dataset
from anchorite.inspect.doctor import Inspection, inspect_dataset
from anchorite.inspect.findings import KINDS, SEVERITIES, Finding, Kind, Severity
from anchorite.inspect.labels import SplitBalance
from anchorite.inspect.text import printable, report_text, summary_text

__all__ = [
    "KINDS",
    "SEVERITIES",
    "AnchorFit",
    "Change",
    "Finding",
    "Inspection",
    "Kind",
    "Severity",
    "SplitBalance",
    "corrected_dataset",
    "inspect_dataset",
    "printable",
    "report_text",
    "summary_text",
]
