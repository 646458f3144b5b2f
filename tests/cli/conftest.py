"""Settings of the tests that run commands."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="


@pytest.fixture(autouse=True)
def plots_of_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots, which take a third of a small run, are white here, but for those of processes; tests/metrics has them."""

    def white(path: Path, *_: object) -> None:
        path.write_bytes(base64.b64decode(PIXEL))

    for name in ("save_pr_curve", "save_f1_curve", "save_confusion_matrix"):
        monkeypatch.setattr(f"anchorite.evaluate.result.{name}", white)
