"""`Targets`: the labelled boxes of one batch, compact or padded to a fixed capacity.

Legend: T targets (rows), B images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchorite.errors import InputError


@dataclass(frozen=True)
class Targets:
    """Labelled boxes of a batch.

    rows: (T, 6) floating point: image, class, cx, cy, w, h; boxes normalised to 0..1 of the network input.
    valid: (T,) bool, or None when every row counts (compact). A padded batch has a fixed T (its capacity) and masks
    the unused rows, so that no shape depends on the data.
    """

    rows: Float[Tensor, "T 6"]
    valid: Bool[Tensor, " T"] | None = None

    @classmethod
    def from_rows(cls, rows: Tensor, capacity: int | None = None) -> Targets:
        """Targets from (T, 6) rows; with `capacity`, padded to that many rows.

        Raises InputError when the shape is wrong or there are more rows than the capacity holds.
        """
        if rows.ndim != 2 or rows.shape[1] != 6 or not rows.is_floating_point():
            raise InputError(
                f"targets need floating point rows of shape (T, 6): image, class, cx, cy, w, h; "
                f"got {tuple(rows.shape)} of {rows.dtype}"
            )
        targets = cls(rows)
        return targets if capacity is None else targets.padded(capacity)

    @property
    def is_padded(self) -> bool:
        return self.valid is not None

    def padded(self, capacity: int) -> Targets:
        """The same targets in exactly `capacity` rows, the rest masked out."""
        compact = self.compact()
        count = compact.rows.shape[0]
        if count > capacity:
            raise InputError(f"{count} targets do not fit a capacity of {capacity} rows; raise the capacity")
        rows = torch.cat([compact.rows, compact.rows.new_zeros((capacity - count, 6))])
        valid = torch.arange(capacity, device=rows.device) < count
        return Targets(rows, valid)

    def compact(self) -> Targets:
        """The valid rows alone, in their order (reads the mask, so it synchronises with the device)."""
        return self if self.valid is None else Targets(self.rows[self.valid])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on another device."""
        rows = self.rows.to(device, non_blocking=non_blocking)
        valid = None if self.valid is None else self.valid.to(device, non_blocking=non_blocking)
        return Targets(rows, valid)

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory, for asynchronous copies (the data loader calls this)."""
        return Targets(self.rows.pin_memory(), None if self.valid is None else self.valid.pin_memory())

    def __len__(self) -> int:
        """Number of rows: labelled boxes when compact, the capacity when padded."""
        return self.rows.shape[0]
