"""Where the reference data lies that is not part of the repository; tests that need it skip where it is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_path(relative: str) -> Path:
    """The path under shared/, or a skipped test with the reason."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{path} is absent: reference data is kept beside the checkout")
    return path
