"""`AnchorSet`: the reference sizes of every level, in pixels, with the level's stride.

Legend: L levels, A anchors per level.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchorite.errors import InputError


@dataclass(frozen=True)
class AnchorSet:
    """Anchor sizes and strides of L levels, fine to coarse; immutable and hashable.

    sizes_px: L rows of A (width, height) pairs in pixels of the network input; strides: L strides in pixels.
    Source: docs/objective.md, section 1.
    """

    sizes_px: tuple[tuple[tuple[float, float], ...], ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes_px or len(self.sizes_px) != len(self.strides):
            raise InputError(
                f"anchors: {len(self.sizes_px)} rows for {len(self.strides)} strides; give one row of pairs per level"
            )
        counts = {len(row) for row in self.sizes_px}
        if len(counts) != 1 or 0 in counts:
            raise InputError(f"anchors: every level needs the same number of (w, h) pairs, at least one; got {counts}")
        for row in self.sizes_px:
            for side in (side for pair in row for side in pair):
                if not (math.isfinite(side) and side > 0):
                    raise InputError(f"anchors: sides must be positive pixels, got {side}")
        rising = all(fine < coarse for fine, coarse in zip(self.strides, self.strides[1:], strict=False))
        if self.strides[0] <= 0 or not rising:
            raise InputError(f"anchors: strides must be positive and rise from fine to coarse, got {self.strides}")

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]], strides: Sequence[int]) -> AnchorSet:
        """The anchor set of a table of L rows of 2A pixel numbers: w, h, w, h, ...

        Rows given from coarse to fine (the mean area falls as the stride grows) are reversed, with a warning.
        """
        for number, row in enumerate(rows):
            if len(row) == 0 or len(row) % 2:
                raise InputError(f"anchors: row {number} has {len(row)} numbers; give (w, h) pairs: {list(row)}")
        sizes_px = tuple(tuple((float(w), float(h)) for w, h in zip(row[::2], row[1::2], strict=True)) for row in rows)
        if len(sizes_px) > 1 and _mean_area(sizes_px[0]) > _mean_area(sizes_px[-1]):
            warnings.warn("anchors were given from coarse to fine; the rows are reversed", stacklevel=2)
            sizes_px = sizes_px[::-1]
        return cls(sizes_px, tuple(int(stride) for stride in strides))

    @classmethod
    def coco_p5(cls) -> AnchorSet:
        """The default 3 x 6 table for P3-P5, fitted to COCO at 640 px."""
        rows = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
        return cls.from_rows(rows, (8, 16, 32))

    @classmethod
    def coco_p6(cls) -> AnchorSet:
        """The default 4 x 6 table for P3-P6 (docs/objective.md, section 1)."""
        rows = [
            [19, 27, 44, 40, 38, 94],
            [96, 68, 86, 152, 180, 137],
            [140, 301, 303, 264, 238, 542],
            [436, 615, 739, 380, 925, 792],
        ]
        return cls.from_rows(rows, (8, 16, 32, 64))

    @property
    def num_levels(self) -> int:
        return len(self.sizes_px)

    @property
    def num_anchors(self) -> int:
        return len(self.sizes_px[0])

    def to_rows(self) -> list[list[float]]:
        """L rows of 2A pixel numbers: the table that `from_rows` reads."""
        return [[side for pair in row for side in pair] for row in self.sizes_px]

    def pixels(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Float[Tensor, "L A 2"]:
        """(L, A, 2) widths and heights in pixels of the network input."""
        return torch.tensor(self.sizes_px, dtype=dtype, device=device)

    def cells(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Float[Tensor, "L A 2"]:
        """(L, A, 2) widths and heights in cells of their own level: pixels / stride."""
        strides = torch.tensor(self.strides, dtype=torch.float64).view(-1, 1, 1)
        # Divided in float64, so that every dtype gets the correctly rounded quotient.
        return (self.pixels(torch.float64) / strides).to(dtype=dtype, device=device)


def _mean_area(sizes: Sequence[tuple[float, float]]) -> float:
    return sum(width * height for width, height in sizes) / len(sizes)
