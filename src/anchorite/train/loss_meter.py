"""`AsyncLossMeter`: the losses of an epoch, read from the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anchorite.data import Batch
from anchorite.loss import LossTerms
from anchorite.train.checkpoint import PartialEpoch


class AsyncLossMeter:
    """Sums the terms of an epoch's batches on the host, and passes each skipped step to `on_skip`.

    on_skip gets the facts for the log (epoch and batch, from 1, the last of the step; what was not finite; that batch's
    losses; how many steps in a row were skipped) and all batches of the step.

    `lag` batches may be on their way to the host: their terms are copied without waiting, and read that many batches
    later, when the device has long passed them. On the CPU nothing has to be waited for, and lag is 0.
    """

    def __init__(self, device: torch.device, on_skip: Callable[[dict[str, Any], tuple[Batch, ...]], None]) -> None:
        self.lag = 0 if device.type == "cpu" else 2
        self.on_skip = on_skip
        self.in_a_row = 0
        self.start(epoch=0)

    def start(self, epoch: int, partial: PartialEpoch | None = None) -> None:
        """Begin an epoch (0-based), or continue within it."""
        partial = partial or PartialEpoch()
        self.epoch = epoch
        self.num_batches, self.num_finite, self.num_skipped = partial.batches, partial.finite_batches, partial.skipped
        self.sums = torch.tensor(partial.loss_sums, dtype=torch.float64)
        # Values on their way, their arrival (None: they are there), and a fault of the step or the batch of the terms.
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, str | None, Batch | None]] = deque()
        self._of_step: list[Batch] = []
        self._last_terms: tuple[float, ...] = ()

    def update(self, terms: LossTerms, batch: Batch) -> None:
        """Note the terms of the next batch."""
        self._send(torch.stack(terms[1:]), None, batch)

    def update_step(self, norm: Tensor, fault: str | None = None) -> None:
        """Note that a step was made of the batches since the last, or not: its norm; what was wrong, where known."""
        self._send(norm[None], fault, None)

    def flush(self) -> None:
        """Read everything, waiting for it."""
        while self._pending:
            self._read(*self._pending.popleft())

    def finish(self) -> Tensor:
        """Means (3,) float64 of box, objectness and class loss over the epoch, all batches read."""
        self.flush()
        return self.means

    @property
    def means(self) -> Tensor:
        """Means over the finite ones of the batches read so far; zeros before the first."""
        return self.sums / max(1, self.num_finite)

    def _send(self, values: Tensor, fault: str | None, batch: Batch | None) -> None:
        values, arrived = values.detach(), None
        if values.device.type == "cuda":
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            values = values.cpu().clone()
        self._pending.append((values, arrived, fault, batch))
        if self.lag == 0:
            self.flush()
        while sum(batch is not None for *_, batch in self._pending) > self.lag:
            self._read(*self._pending.popleft())

    def _read(self, values: Tensor, arrived: torch.cuda.Event | None, fault: str | None, batch: Batch | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        is_finite = bool(values.isfinite().all())
        if batch is not None:
            self.num_batches += 1
            self._of_step.append(batch)
            self._last_terms = tuple(values.tolist())
            if is_finite:
                self.num_finite += 1
                self.sums += values.double()
            return
        batches, self._of_step = tuple(self._of_step), []
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if not is_finite:
            self.num_skipped += 1
            facts = {
                "epoch": self.epoch + 1,
                "batch": self.num_batches,
                "not_finite": fault or "a loss, a gradient or a statistic",
                "losses": dict(zip(LossTerms._fields[1:], map(str, self._last_terms), strict=True)),
                "in_a_row": self.in_a_row,
            }
            self.on_skip(facts, batches)
