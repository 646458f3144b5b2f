"""Networks of few layers, for what takes its time by their number.

They have every sort of layer; a bottleneck without a shortcut, of which they have none, is two blocks in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from anchorite.model import detector
from anchorite.model.sizes import plan

_REPEATS = {2: 0, 3: 0, 4: 0, 5: 1}


@contextmanager
def short_networks() -> Iterator[None]:
    """While detectors of three levels have one bottleneck, in the last stage of their backbone."""
    with patch.object(detector, "plan", lambda size: replace(plan(size), repeats=_REPEATS, neck_repeats=0)):
        yield
