"""What a benchmark is told: how many rounds, where, on which data, and whether only to go through the motions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """rounds: None for each benchmark's own number. data: a dataset, or None for drawn scenes. quick: small sizes and
    few rounds, which prove that everything runs and nothing about speed. out: a folder for pictures, or None for none.
    plain_memory: leave the C library's allocator as it is. Otherwise freed memory is kept, as every training process of
    ours does it, for ours and the yardsticks alike.
    """

    device: torch.device
    rounds: int | None = None
    data: Path | None = None
    quick: bool = False
    out: Path | None = None
    plain_memory: bool = False

    def rounds_or(self, usual: int) -> int:
        """The number asked for, else 2 when quick, else the usual one."""
        return self.rounds or (2 if self.quick else usual)
