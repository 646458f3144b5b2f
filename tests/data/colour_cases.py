"""Jitters that every way of changing colours is tested with: each dial alone, up and down, and all at once."""

from __future__ import annotations

from anchorite.data.augment import Jitter

JITTERS = [
    Jitter(0.1, 1.0, 1.0),
    Jitter(-0.25, 1.0, 1.0),
    Jitter(0.0, 0.4, 1.0),
    Jitter(0.0, 1.6, 1.0),
    Jitter(0.0, 1.0, 0.6),
    Jitter(0.0, 1.0, 1.4),
    Jitter(0.5, 1.3, 0.7),
    Jitter(0.5, 1.3, 1.4),
]
