"""Yardstick (b): the least a training step of the same network can be, with nothing of detection in it.

The same backbone, neck and dense head; the loss is the sum of the maps' mean squares, the optimizer plain SGD. The
images are ready on the device as floating point numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anchorite.model import Detector

_RATE = 1e-4


def bare_step(detector: Detector, images: Tensor, dtype: torch.dtype | None) -> Callable[[], Tensor]:
    """A function that trains `detector` by one step on `images` (B, 3, H, W) in 0..1 and returns the loss, detached.

    dtype: of autocast, None for none. Memory formats are those that detector and images come in.
    """
    optimizer = torch.optim.SGD(detector.parameters(), lr=_RATE)
    detector.train()

    def step() -> Tensor:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits = detector(images)
            loss = torch.stack([level.float().square().mean() for level in logits]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def to_contiguous(detector: Detector) -> Detector:
    """The detector with its weights laid out row by row, as modules are made; in place."""
    for parameter in detector.parameters():
        parameter.data = parameter.data.contiguous()
    return detector
