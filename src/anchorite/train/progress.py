"""How far a run is: what a checkpoint says beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PartialEpoch:
    """What the epoch under way has gathered so far.

    batches, images: done of it; loss_sums: of box, objectness and class loss over the `finite_batches`; skipped:
    steps that were not taken because something was not finite; seconds: of the epoch, waited: of them for data.
    """

    batches: int = 0
    images: int = 0
    loss_sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    finite_batches: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Epochs and optimizer steps done, what early stopping knows, and the epoch under way.

    optimizer_steps: of all the epochs, skipped ones included; skipped_in_a_row: the last ones of them.
    """

    epoch: int = 0
    optimizer_steps: int = 0
    best_map: float = -1.0
    best_epoch: int | None = None
    skipped_in_a_row: int = 0
    partial: PartialEpoch = PartialEpoch()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Progress as `dataclasses.asdict` and JSON left it; ValueError when fields are missing or unknown."""
        partial = values.get("partial")
        if not isinstance(partial, dict) or values.keys() != {one.name for one in fields(cls)}:
            raise ValueError("its progress has other fields than this release writes")
        if partial.keys() != {one.name for one in fields(PartialEpoch)}:
            raise ValueError("its partial epoch has other fields than this release writes")
        sums = tuple(float(one) for one in partial["loss_sums"])
        assert len(sums) == 3
        return cls(**{**values, "partial": PartialEpoch(**{**partial, "loss_sums": sums})})

    @property
    def stem(self) -> str:
        """How the files of a checkpoint at this point are called; their order is that of `key_of`."""
        within = f"-batch-{self.partial.batches:05d}" if self.partial.batches else ""
        return f"epoch-{self.epoch:04d}{within}"

    def describe(self, num_batches: int | None = None) -> str:
        """Where this is, in words."""
        if not self.partial.batches:
            return f"epoch {self.epoch}"
        of = "" if num_batches is None else f" of {num_batches}"
        return f"batch {self.partial.batches}{of} of epoch {self.epoch + 1}"
