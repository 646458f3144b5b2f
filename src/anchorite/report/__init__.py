"""HTML pages: how a run went and what the loss sees. Each is one file that works from disk, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anchorite.report.run_page import write_run_report

if TYPE_CHECKING:
    from anchorite.report.conclusion import conclude_run, is_concluded

__all__ = ["conclude_run", "is_concluded", "write_run_report"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a page is written without it.
    if name in ("conclude_run", "is_concluded"):
        from anchorite.report import conclusion

        return getattr(conclusion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
