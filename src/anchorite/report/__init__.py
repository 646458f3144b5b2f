"""HTML pages: how a run went and what the loss sees. Each is one file that works from disk, offline."""

from anchorite.report.run_page import write_run_report

__all__ = ["write_run_report"]
