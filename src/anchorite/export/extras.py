"""The packages that export and its runtimes need and nothing else does."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from anchorite.errors import InputError


def needed(package: str, extra: str) -> Any:
    """The package, imported; InputError with the remedy when it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this needs the package {package} ({error}); install it: pip install 'anchorite[{extra}]'"
        ) from error


def openvino() -> Any:
    """OpenVINO, imported without the package by which its import reports itself over the network.

    With that package out of the way it falls back on a stand-in of its own that sends nothing and leaves no file.
    """
    reporting = "openvino_telemetry"
    if "openvino" in sys.modules or reporting in sys.modules:
        return needed("openvino", "openvino")
    sys.modules[reporting] = None  # type: ignore[assignment]  # as Python documents it: importing it is an ImportError
    try:
        return needed("openvino", "openvino")
    finally:
        del sys.modules[reporting]
