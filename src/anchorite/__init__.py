"""anchorite trains, checks, explains and ships anchor-based YOLO detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchorite.predict import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `anchorite --help` must not wait for it.
    if name == "load":
        from anchorite.predict import load

        return load
    raise AttributeError(f"module 'anchorite' has no attribute '{name}'")
