"""A batch as it leaves the data path.

Legend: B images, H, W height and width of the network input in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anchorite.boxes import Targets


@dataclass(frozen=True)
class Batch:
    """Augmented images and their targets.

    images: (B, 3, H, W) uint8, RGB (divided by 255 on the device, by the step); targets: their boxes, image numbers
    0..B-1; indices: (B,) int64, the record each image (its first tile) came from.
    """

    images: Tensor
    targets: Targets
    indices: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            self.indices,
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices)


def empty_batch(side: int, capacity: int | None = None) -> Batch:
    """The part of a rank for which there is no image; side: of the canvas in pixels, capacity: of the targets."""
    images = torch.empty((0, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return Batch(images, Targets.from_rows(torch.zeros(0, 6), capacity), torch.zeros(0, dtype=torch.int64))
