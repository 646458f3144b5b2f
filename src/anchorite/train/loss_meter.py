"""`AsyncLossMeter`: the losses of an epoch, read from the device without waiting for it."""

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
class _Pending:
    """Values on their way to the host: of a batch its terms (3,), of a step its norm (1,)."""

    values: Tensor
    arrived: torch.cuda.Event | None
    fault: str | None
    batch: Batch | None


class AsyncLossMeter:
    """Sums the terms of an epoch's batches on the host, and passes each skipped step to `on_skip`.

    `lag` batches may be on their way to the host: their terms are copied without waiting, and read that many batches
    later, when the device has long passed them. On the CPU nothing has to be waited for, and lag is 0.
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
        self._pending: deque[_Pending] = deque()
        self._of_step: list[Batch] = []
        self._last_terms = (0.0, 0.0, 0.0)

    def update(self, terms: LossTerms, batch: Batch) -> None:
        """Note the terms of the next batch."""
        self._send(torch.stack(terms[1:]), None, batch)
        self._read_while_over(self.lag)

    def update_step(self, norm: Tensor, fault: str | None = None) -> None:
        """Note that a step was made of the batches since the last, or not: its norm; what was wrong, where known."""
        self._send(norm[None], fault, None)
        self._read_while_over(self.lag)

    def flush(self) -> None:
        """Read everything, waiting for it."""
        self._read_while_over(0)

    def finish(self) -> Tensor:
        """Means (3,) float64 of box, objectness and class loss over the epoch, all batches read."""
        self.flush()
        return self.means

    @property
    def means(self) -> Tensor:
        """Means over the finite ones of the batches read so far; zeros before the first."""
        return self.sums / max(1, self.num_finite)

    def _read_while_over(self, lag: int) -> None:
        while sum(one.batch is not None for one in self._pending) > lag or (lag == 0 and self._pending):
            self._read(self._pending.popleft())

    def _send(self, values: Tensor, fault: str | None, batch: Batch | None) -> None:
        self._pending.append(_Pending(*_sent_to_host(values), fault, batch))

    def _read(self, one: _Pending) -> None:
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
