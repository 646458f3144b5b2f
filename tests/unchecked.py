"""Code without the checks of signatures that conftest.py puts on every call in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import config


@contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Without the checks: they take half the time of a small loss, and tracers take what they compare for constant."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)
