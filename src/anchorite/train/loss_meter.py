"""Reading losses without synchronising with the accelerator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorite.data import Batch
from anchorite.loss import LossTerms
from anchorite.train.checkpoint import PartialEpoch


@dataclass(frozen=True)
class Skipped:
    """A skipped step. epoch, batch: counted from 1, the last of the step; terms: that batch's losses.

    fault: what was non-finite; batches: all of the step; in_a_row: steps skipped since the last successful one.
    """

    epoch: int
    batch: int
    terms: tuple[float, float, float]
    fault: str
    batches: tuple[Batch, ...]
    in_a_row: int


@dataclass
class _UnderWay:
    """Values on their way to the host: of a batch its terms (3,), of a step its norm (1,)."""

    values: Tensor
    arrived: torch.cuda.Event | None
    fault: str | None
    batch: Batch | None


class AsyncLossMeter:
    """Sums the terms of an epoch's batches on the host, and passes each skipped step to `on_skip`.

    Up to `lag` batches may be in transit to the host: their terms are copied asynchronously and read `lag` batches
    later, when the device has finished them. On the CPU lag is 0.
    """

    def __init__(self, device: torch.device, on_skip: Callable[[Skipped], None]) -> None:
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
        self._under_way: deque[_UnderWay] = deque()
        self._of_step: list[Batch] = []
        self._last_terms = (0.0, 0.0, 0.0)

    def take(self, terms: LossTerms, batch: Batch) -> None:
        """Record the terms of the next batch."""
        self._send(torch.stack(terms[1:]), None, batch)
        self._look_while_over(self.lag)

    def take_step(self, norm: Tensor, fault: str | None = None) -> None:
        """Record the optimizer step over the batches since the last one: its gradient norm, and the fault if known."""
        self._send(norm[None], fault, None)
        self._look_while_over(self.lag)

    def flush(self) -> None:
        """Read everything, waiting for it."""
        self._look_while_over(0)

    def finish(self) -> Tensor:
        """Means (3,) float64 of box, objectness and class loss over the epoch, all batches read."""
        self.flush()
        return self.means

    @property
    def means(self) -> Tensor:
        """Means over the finite ones of the batches read so far; zeros before the first."""
        return self.sums / max(1, self.num_finite)

    def _look_while_over(self, lag: int) -> None:
        while sum(one.batch is not None for one in self._under_way) > lag or (lag == 0 and self._under_way):
            self._look_at(self._under_way.popleft())

    def _send(self, values: Tensor, fault: str | None, batch: Batch | None) -> None:
        self._under_way.append(_UnderWay(*_sent_to_host(values), fault, batch))

    def _look_at(self, one: _UnderWay) -> None:
        if one.arrived is not None:
            one.arrived.synchronize()
        is_finite = bool(one.values.isfinite().all())
        if one.batch is not None:
            self.num_batches += 1
            self._of_step.append(one.batch)
            box, objectness, classification = one.values.tolist()
            self._last_terms = (box, objectness, classification)
            if is_finite:
                self.num_finite += 1
                self.sums += one.values.double()
            return
        batches, self._of_step = tuple(self._of_step), []
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if not is_finite:
            self.num_skipped += 1
            fault = one.fault or "a loss, a gradient or a statistic"
            self.on_skip(Skipped(self.epoch + 1, self.num_batches, self._last_terms, fault, batches, self.in_a_row))


def _sent_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and the event after which it is complete (None: it is)."""
    values = values.detach()
    if values.device.type != "cuda":
        return values.cpu().clone(), None
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived
