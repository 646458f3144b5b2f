"""One training step: forward, loss, backward, clipping, optimizer, average."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anchorite.boxes import Targets
from anchorite.data import Batch, empty_batch
from anchorite.devices import Precision
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.model import Detector
from anchorite.train.ema import EMA
from anchorite.train.finite import BufferSnapshot, first_gradient_not_finite, first_not_finite
from anchorite.train.objective import Objective, shared
from anchorite.train.optimizer import apply_settings, clip_gradients
from anchorite.train.schedule import Settings

_LEAST_CAPACITY = 64


@dataclass
class TrainState:
    """What a run changes: the network, the loss's balance, the optimizer, the average and the gradient scaler."""

    detector: Detector
    criterion: DetectionLoss
    optimizer: Optimizer
    ema: EMA[Detector]
    scaler: torch.amp.GradScaler


class TrainingStep:
    """Runs batches through a train_state; gradients add up until `apply`.

    The convolutions run in `precision`, the loss in float32; images are normalised on the device. compiled: fuse
    forward pass and loss, and the backward pass, by torch.compile.

    What is not finite changes nothing that lasts: neither weights nor the average, the running statistics or the
    balance. on_host: decide that by looking (the default on a CPU); else the device decides, and is not waited for.
    fault: after a batch or step that was left out, what was the first thing that was not finite, where that is known.

    With several ranks (those of the criterion) each runs its part of every batch, and all decide alike: a batch or step
    is left out by all when it is not finite on one. Gradients travel once a step.
    """

    def __init__(
        self,
        train_state: TrainState,
        precision: Precision,
        clip_norm: float,
        device: torch.device,
        compiled: bool = False,
        on_host: bool | None = None,
    ) -> None:
        self.train_state = train_state
        self.clip_norm = clip_norm
        self.device = device
        self.on_host = device.type == "cpu" if on_host is None else on_host
        self.fault: str | None = None
        self.world = train_state.criterion.world
        self._parameters = [one for one in train_state.detector.parameters() if one.requires_grad]
        self._snapshot = BufferSnapshot(train_state.detector, train_state.criterion)
        self._static = compiled or device.type == "cuda"
        objective: nn.Module = Objective(train_state.detector, train_state.criterion, precision.dtype)
        if compiled:
            objective = torch.compile(objective, fullgraph=True)  # type: ignore[assignment]
        self._forward: nn.Module = objective
        self._is_finite: Tensor | None = None  # of all losses since the last apply, on the device
        if self.world.is_distributed:
            self._forward = self._shared = shared(self._forward, device)
            self._settle_order()

    def accumulate(self, batch: Batch, num_images: int | None = None, is_last: bool = True) -> LossTerms:
        """Add the gradients of one batch, unless its loss is not finite; its loss, detached.

        num_images: of the batch on all ranks together, None for as many as there are here; is_last: the optimizer step
        comes after this batch.
        """
        if self._static:
            batch = replace(batch, targets=with_fixed_capacity(batch.targets))
        batch = batch.to(self.device, non_blocking=True)
        self._snapshot.keep()
        waits = self.world.is_distributed and not is_last
        with self._shared.no_sync() if waits else nullcontext():
            terms = self._forward(batch.images, batch.targets.rows, batch.targets.valid, num_images)
            finite = self.world.all(torch.stack(terms).isfinite().all()).detach()
            if self.on_host and not bool(finite):
                self.fault = first_not_finite(terms)
                self._snapshot.put_back()
            else:
                self.train_state.scaler.scale(terms.total).backward()
        if not self.on_host:
            self._is_finite = finite if self._is_finite is None else self._is_finite & finite
        elif is_last and not bool(finite):
            self._average_gradients()
        return LossTerms(*(term.detach() for term in terms))

    def _settle_order(self) -> None:
        """Let the order in which gradients travel settle, which is chosen anew after the first backward pass.

        The sum over three ranks or more may round by it, and a resumed run would round its first step otherwise.
        """
        self.accumulate(empty_batch(self.train_state.detector.strides[-1]), num_images=1)
        self._snapshot.put_back()
        self.train_state.optimizer.zero_grad(set_to_none=True)
        self._is_finite = None

    def _average_gradients(self) -> None:
        """What a backward pass would have done with those of the batches before, had there been one."""
        if self.world.is_distributed:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(self.world.all_reduce(parameter.grad) / self.world.world_size)

    def apply(self, settings: Settings) -> Tensor:
        """Move the weights by the gradients gathered so far, at the given settings; the gradient norm (scalar).

        A norm that is not finite says that there was nothing to be gathered or something not finite, and no step.
        """
        train_state = self.train_state
        apply_settings(train_state.optimizer, settings.lr, settings.bias_lr, settings.momentum)
        train_state.scaler.unscale_(train_state.optimizer)
        norm = clip_gradients(self._parameters, self.clip_norm)
        norm = self._step_by_looking(norm) if self.on_host else self._step_without_looking(norm)
        train_state.optimizer.zero_grad(set_to_none=True)
        return norm

    def _step_by_looking(self, norm: Tensor) -> Tensor:
        train_state = self.train_state
        if all(parameter.grad is None for parameter in self._parameters):
            return norm.new_full((), torch.nan)  # every batch was left out, and `fault` tells why
        fault = None if bool(norm.isfinite()) else first_gradient_not_finite(train_state.detector)
        fault = fault or self._snapshot.first_not_finite()
        if self.world.any(fault is not None):
            self.fault = next(one for one in self.world.all_gather(fault) if one is not None)
            self._snapshot.put_back()
            return norm.new_full((), torch.nan)
        train_state.scaler.step(train_state.optimizer)
        train_state.scaler.update()
        train_state.ema.update()
        return norm

    def _step_without_looking(self, norm: Tensor) -> Tensor:
        train_state = self.train_state
        assert self._is_finite is not None, "accumulate a batch before applying"
        is_fine = self.world.all(norm.isfinite() & self._is_finite & self._snapshot.are_finite())
        self._is_finite = None
        if not train_state.scaler.is_enabled():  # which does the same by itself
            train_state.optimizer.found_inf = (~is_fine).float()  # type: ignore[attr-defined]
        train_state.scaler.step(train_state.optimizer)
        train_state.scaler.update()
        self._snapshot.put_back_unless(is_fine)
        train_state.ema.update(is_fine)
        return torch.where(is_fine, norm, torch.nan)


def with_fixed_capacity(targets: Targets) -> Targets:
    """Padded targets: of compact ones, to the next power of two (64 at least), so that few shapes occur in a run."""
    if targets.is_padded:
        return targets
    return targets.padded(max(_LEAST_CAPACITY, 1 << (len(targets) - 1).bit_length()))
