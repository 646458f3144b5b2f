"""HTML pages: how a run went and what the loss sees. Each is one file that works from disk, offline."""

from anchorite.report.conclusion import conclude_run, is_concluded
from anchorite.report.run_report import write_run_report

__all__ = ["conclude_run", "is_concluded", "write_run_report"]
