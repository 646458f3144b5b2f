"""The sizes of the detector family and the widths and depths that follow from them.

P3, P4, ... name levels by the power of two of their stride: P3 has stride 8, P6 has stride 64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError

FIRST_LEVEL = 3
"""The finest level with an output; the stem and the stages below it only lead there."""

_FACTORS = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.00, 1.00), "x": (1.33, 1.25)}
_STAGE_WIDTHS = {5: (128, 256, 512, 1024), 6: (128, 256, 512, 768, 1024)}
_STAGE_REPEATS = (3, 6, 9, 3, 3)
_NECK_REPEATS = 3
_STEM_WIDTH = 64

SIZES: tuple[str, ...] = (*_FACTORS, *(f"{letter}6" for letter in _FACTORS))
"""All sizes: n, s, m, l, x with levels P3 to P5, and n6, s6, m6, l6, x6 with levels P3 to P6."""


@dataclass(frozen=True)
class Plan:
    """What one size is built of, already multiplied by its width and depth.

    widths: output channels of each stage by its level, from 2 (stride 4) up to `last_level`; the neck's outputs have
    the same. repeats: bottlenecks in the cross-stage block of each stage, by level; neck_repeats: in each of the neck.
    """

    last_level: int
    stem_width: int
    widths: Mapping[int, int]
    repeats: Mapping[int, int]
    neck_repeats: int

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels with an output, fine to coarse."""
        return tuple(range(FIRST_LEVEL, self.last_level + 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level with an output."""
        return tuple(2**level for level in self.levels)

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Channels of each output."""
        return tuple(self.widths[level] for level in self.levels)


def plan(size: str) -> Plan:
    """The plan of a size; raises InputError, naming the sizes there are, for any other."""
    if size not in SIZES:
        raise InputError(f"no model size {size!r}; choose one of {', '.join(SIZES)}")
    depth, width = _FACTORS[size.removesuffix("6")]
    last_level = 6 if size.endswith("6") else 5
    stem_width, *widths = (math.ceil(base * width / 8) * 8 for base in (_STEM_WIDTH, *_STAGE_WIDTHS[last_level]))
    neck_repeats, *repeats = (max(round(base * depth), 1) for base in (_NECK_REPEATS, *_STAGE_REPEATS))
    levels = range(2, last_level + 1)
    by_level = dict(zip(levels, widths, strict=True)), dict(zip(levels, repeats, strict=False))
    return Plan(last_level, stem_width, *by_level, neck_repeats)


def default_anchors(size: str) -> AnchorSet:
    """The anchors fitted to COCO for a size's levels: `AnchorSet.coco_p5()` or `AnchorSet.coco_p6()`."""
    return AnchorSet.coco_p6() if plan(size).last_level == 6 else AnchorSet.coco_p5()
