"""Watching the loss without making an accelerator wait for it."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from anchorite.errors import DivergedError
from anchorite.loss import LossTerms


class LossWatch:
    """Sums the terms of an epoch's batches on the host and raises DivergedError for the first that is not finite.

    `lag` batches may be under way to the host: their terms are copied without waiting, and looked at that many batches
    later, when the device has long passed them. On the CPU nothing has to be waited for, and lag is 0.
    """

    def __init__(self, device: torch.device, remedy: str) -> None:
        self.lag = 0 if device.type == "cpu" else 2
        self.remedy = remedy
        self.start(epoch=0)

    def start(self, epoch: int) -> None:
        """Begin an epoch (0-based): forget the sums of the last."""
        self.epoch = epoch
        self.num_batches = 0
        self.sums = torch.zeros(3, dtype=torch.float64)
        self._under_way: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def take(self, terms: LossTerms) -> None:
        """Note the terms of the next batch."""
        self._under_way.append(_sent_to_host(torch.stack(terms[1:])))
        while len(self._under_way) > self.lag:
            self._look_at_next()

    def finish(self) -> Tensor:
        """Means (3,) float64 of box, objectness and class loss over the epoch, all batches looked at."""
        while self._under_way:
            self._look_at_next()
        return self.means

    @property
    def means(self) -> Tensor:
        """Means over the batches looked at so far; zeros before the first."""
        return self.sums / max(1, self.num_batches)

    def _look_at_next(self) -> None:
        values, arrived = self._under_way.popleft()
        if arrived is not None:
            arrived.synchronize()
        self.num_batches += 1
        if not bool(values.isfinite().all()):
            box, objectness, classification = values.tolist()
            raise DivergedError(
                f"training diverged: epoch {self.epoch + 1}, batch {self.num_batches}: box {box}, "
                f"objectness {objectness}, classification {classification}; {self.remedy}"
            )
        self.sums += values.double()


def _sent_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and the event after which it is whole (None: it is)."""
    if values.device.type != "cuda":
        return values.cpu(), None
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived
