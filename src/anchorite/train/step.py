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
from anchorite.train.average import WeightAverage
from anchorite.train.finite import Lasting, first_gradient_not_finite, first_not_finite
from anchorite.train.objective import Objective, shared
from anchorite.train.optimizer import apply_settings, clip_gradients
from anchorite.train.schedule import Settings

_LEAST_CAPACITY = 64


@dataclass
class Trainee:
    """What a run changes: the network, the loss's balance, the optimizer, the average and the gradient scaler."""

    detector: Detector
    criterion: DetectionLoss
    optimizer: Optimizer
    average: WeightAverage[Detector]
    scaler: torch.amp.GradScaler


class TrainingStep:
    """Runs batches through a trainee; gradients add up until `apply`.

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
        trainee: Trainee,
        precision: Precision,
        clip_norm: float,
        device: torch.device,
        compiled: bool = False,
        on_host: bool | None = None,
    ) -> None:
        self.trainee = trainee
        self.clip_norm = clip_norm
        self.device = device
        self.on_host = device.type == "cpu" if on_host is None else on_host
        self.fault: str | None = None
        self.ranks = trainee.criterion.ranks
        self._parameters = [one for one in trainee.detector.parameters() if one.requires_grad]
        self._lasting = Lasting(trainee.detector, trainee.criterion)
        self._static = compiled or device.type == "cuda"
        objective: nn.Module = Objective(trainee.detector, trainee.criterion, precision.dtype)
        if compiled:
            objective = torch.compile(objective, fullgraph=True)  # type: ignore[assignment]
        self._forward: nn.Module = objective
        self._is_finite: Tensor | None = None  # of all losses since the last apply, on the device
        if self.ranks.are_several:
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
        self._lasting.keep()
        waits = self.ranks.are_several and not is_last
        with self._shared.no_sync() if waits else nullcontext():
            terms = self._forward(batch.images, batch.targets.rows, batch.targets.valid, num_images)
            finite = self.ranks.all(torch.stack(terms).isfinite().all()).detach()
            if self.on_host and not bool(finite):
                self.fault = first_not_finite(terms)
                self._lasting.put_back()
            else:
                self.trainee.scaler.scale(terms.total).backward()
        if not self.on_host:
            self._is_finite = finite if self._is_finite is None else self._is_finite & finite
        elif is_last and not bool(finite):
            self._average_gradients()
        return LossTerms(*(term.detach() for term in terms))

    def _settle_order(self) -> None:
        """Let the order in which gradients travel settle, which is chosen anew after the first backward pass.

        The sum over three ranks or more may round by it, and a resumed run would round its first step otherwise.
        """
        self.accumulate(empty_batch(self.trainee.detector.strides[-1]), num_images=1)
        self._lasting.put_back()
        self.trainee.optimizer.zero_grad(set_to_none=True)
        self._is_finite = None

    def _average_gradients(self) -> None:
        """What a backward pass would have done with those of the batches before, had there been one."""
        if self.ranks.are_several:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(self.ranks.sum(parameter.grad) / self.ranks.count)

    def apply(self, settings: Settings) -> Tensor:
        """Move the weights by the gradients gathered so far, at the given settings; the gradient norm (scalar).

        A norm that is not finite says that there was nothing to be gathered or something not finite, and no step.
        """
        trainee = self.trainee
        apply_settings(trainee.optimizer, settings.rate, settings.bias_rate, settings.momentum)
        trainee.scaler.unscale_(trainee.optimizer)
        norm = clip_gradients(self._parameters, self.clip_norm)
        norm = self._step_by_looking(norm) if self.on_host else self._step_without_looking(norm)
        trainee.optimizer.zero_grad(set_to_none=True)
        return norm

    def _step_by_looking(self, norm: Tensor) -> Tensor:
        trainee = self.trainee
        if all(parameter.grad is None for parameter in self._parameters):
            return norm.new_full((), torch.nan)  # every batch was left out, and `fault` tells why
        fault = None if bool(norm.isfinite()) else first_gradient_not_finite(trainee.detector)
        fault = fault or self._lasting.first_not_finite()
        if self.ranks.any(fault is not None):
            self.fault = next(one for one in self.ranks.gather(fault) if one is not None)
            self._lasting.put_back()
            return norm.new_full((), torch.nan)
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        trainee.average.update()
        return norm

    def _step_without_looking(self, norm: Tensor) -> Tensor:
        trainee = self.trainee
        assert self._is_finite is not None, "accumulate a batch before applying"
        is_fine = self.ranks.all(norm.isfinite() & self._is_finite & self._lasting.are_finite())
        self._is_finite = None
        if not trainee.scaler.is_enabled():  # which does the same by itself
            trainee.optimizer.found_inf = (~is_fine).float()  # type: ignore[attr-defined]
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        self._lasting.put_back_unless(is_fine)
        trainee.average.update(is_fine)
        return torch.where(is_fine, norm, torch.nan)


def with_fixed_capacity(targets: Targets) -> Targets:
    """Padded targets: of compact ones, to the next power of two (64 at least), so that few shapes occur in a run."""
    if targets.is_padded:
        return targets
    return targets.padded(max(_LEAST_CAPACITY, 1 << (len(targets) - 1).bit_length()))
