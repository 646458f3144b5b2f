"""Smaller networks, for what holds whatever the network and takes its time by their size.

They have every sort of layer; a bottleneck without a shortcut, of which they have none, is two blocks in a row. A file
made meanwhile has a network that no size has otherwise: what tests of several modules share is made without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from anchorite.model import detector, sizes
from tests.processes import SMALL_VARIABLE

_plan = sizes.plan


def _short_plan(size: str) -> sizes.Plan:
    whole = _plan(size)
    return replace(whole, repeats={level: int(level == 5) for level in whole.repeats}, neck_repeats=0)


@contextmanager
def short_networks() -> Iterator[None]:
    """While detectors have one bottleneck, in the stage of P5."""
    with patch.object(detector, "plan", _short_plan):
        yield


@contextmanager
def small_networks() -> Iterator[None]:
    """While those of size n have a quarter of their channels besides, also in forked processes."""
    narrow = patch.dict(sizes._FACTORS, n=(1 / 3, 1 / 16))
    with short_networks(), narrow, patch.dict(os.environ, {SMALL_VARIABLE: "1"}):
        yield
