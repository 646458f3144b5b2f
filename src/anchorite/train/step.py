"""One training step: forward, loss, backward, clipping, optimizer, EMA; non-finite values change nothing.

Legend: B images, H, W height and width in pixels.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import Batch, empty_batch
from anchorite.devices import Precision
from anchorite.loss import DetectionLoss, LossTerms
from anchorite.model import Detector
from anchorite.train.optim import EMA, Settings, apply_settings, clip_gradients

_MIN_CAPACITY = 64
Tensors = tuple[Any, ...]  # those of `Targets` or of `LabelCoverage`, None for what is not given


class BufferSnapshot:
    """The buffers that a forward pass changes (running statistics, the loss's balance), with a copy to restore."""

    def __init__(self, *modules: nn.Module) -> None:
        named = [(name, buffer) for module in modules for name, buffer in module.named_buffers()]
        # torch._foreach functions take tensors of one type: that of the statistics; the other buffers are apart.
        dtype = next((buffer.dtype for _, buffer in named if buffer.is_floating_point()), torch.float32)
        self._statistics = [(name, buffer) for name, buffer in named if buffer.dtype == dtype]
        self._floats = [buffer for _, buffer in self._statistics]
        others = [buffer for _, buffer in named if buffer.dtype != dtype]
        self._copies = [(group, [one.clone() for one in group]) for group in (self._floats, others) if group]

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers as they are now."""
        for buffers, saved in self._copies:
            torch._foreach_copy_(saved, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the buffers to the saved values."""
        for buffers, saved in self._copies:
            torch._foreach_copy_(buffers, saved)

    @torch.no_grad()
    def restore_unless(self, is_finite: Tensor) -> None:
        """`restore` where is_finite (a scalar bool on the device) is false, without synchronisation."""
        for buffers, saved in self._copies:
            for buffer, before in zip(buffers, saved, strict=True):
                buffer.copy_(torch.where(is_finite, buffer, before))

    @torch.no_grad()
    def are_finite(self) -> Tensor:
        """Whether every statistic is finite, a scalar bool on their device."""
        return torch.stack(torch._foreach_norm(self._floats, float("inf"))).isfinite().all()

    def first_not_finite(self) -> str | None:
        """The name of the first statistic that is not finite."""
        if bool(self.are_finite()):
            return None
        return next(f"the statistic {name}" for name, buffer in self._statistics if not buffer.isfinite().all())


class Objective(nn.Module):
    """A detector and its loss. dtype: what the convolutions compute in by autocast, None for the weights' own type."""

    def __init__(self, detector: Detector, criterion: DetectionLoss, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.detector, self.criterion, self.dtype = detector, criterion, dtype

    def forward(self, images: Tensor, targets: Tensors, coverage: Tensors, num_images: int | None) -> LossTerms:
        """The loss of images (B, 3, H, W) uint8; targets, coverage: the fields of either; num_images: over all ranks.

        As tuples, which DistributedDataParallel and torch.compile look into.
        """
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            pixels = images.to(self.dtype or next(self.detector.parameters()).dtype) / 255
            logits = self.detector.head.matched(self.detector.features(pixels))
            known = LabelCoverage(*coverage) if coverage else None
            terms: LossTerms = self.criterion(logits, Targets(*targets), known, num_images)
        return terms


@dataclass
class TrainState:
    """Everything that training changes: network, the loss's balance, optimizer, EMA and gradient scaler."""

    detector: Detector
    criterion: DetectionLoss
    optimizer: Optimizer
    ema: EMA[Detector]
    scaler: torch.amp.GradScaler


class TrainingStep:
    """Runs batches through a train_state; gradients add up until `apply`.

    The convolutions run in `precision`, the loss in float32; images are normalised on the device. compiled: fuse
    forward pass and loss, and the backward pass, by torch.compile.

    A batch or step that is not finite changes neither weights, EMA, running statistics nor balance. on_host: the host
    decides that, which waits for the device (the default on a CPU); else the device decides, without synchronisation.
    fault: after a batch or step that was skipped, the first thing that was not finite, where that is known.

    In distributed training (the criterion's world) each rank runs its part of every batch; a batch or step that is not
    finite on one rank is skipped by all. Gradients are reduced once a step.
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
            # Gradients are averaged in the backward pass; all start from the weights of rank 0. Buffers are not shared:
            # each rank has its own statistics of batch normalisation, and those of rank 0 are saved.
            devices = [device] if device.type == "cuda" else None
            with warnings.catch_warnings():
                # The name that replaces `broadcast_buffers` is not in all releases of torch that are supported.
                warnings.simplefilter("ignore", FutureWarning)
                self._forward = self._shared = DistributedDataParallel(
                    objective, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            # A backward pass, after which DistributedDataParallel chooses its order of reduction for good: that decides
            # how sums over three ranks or more round, and a resumed run would round its first step otherwise. Labels of
            # boxes alone will do: other parts of them change values, not which parameters have gradients.
            self.accumulate(empty_batch(train_state.detector.strides[-1]), num_images=1)
            self._snapshot.restore()
            train_state.optimizer.zero_grad(set_to_none=True)
            self._is_finite = None

    def accumulate(self, batch: Batch, num_images: int | None = None, is_last: bool = True) -> LossTerms:
        """Add the gradients of one batch, unless its loss is not finite; its loss, detached.

        num_images: of the batch over all ranks, None: this rank's are all; is_last: the optimizer step
        comes after this batch.
        """
        if self._static:
            batch = with_fixed_capacity(batch)
        batch = batch.to(self.device, non_blocking=True)
        self._snapshot.save()
        waits = self.world.is_distributed and not is_last
        with self._shared.no_sync() if waits else nullcontext():
            terms = self._forward(batch.images, _fields(batch.targets), _fields(batch.coverage), num_images)
            finite = self.world.all(torch.stack(terms).isfinite().all()).detach()
            if self.on_host and not bool(finite):
                of_terms = (
                    name for name, term in zip(terms._fields[1:], terms[1:], strict=True) if not term.isfinite()
                )
                self.fault = f"the {next(of_terms, 'total')} loss"
                self._snapshot.restore()
            else:
                self.train_state.scaler.scale(terms.total).backward()
        if not self.on_host:
            self._is_finite = finite if self._is_finite is None else self._is_finite & finite
        elif is_last and not bool(finite) and self.world.is_distributed:
            # Average the gradients of earlier batches, as the backward pass of the skipped one would have done.
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(self.world.all_reduce(parameter.grad) / self.world.world_size)
        return LossTerms(*(term.detach() for term in terms))

    def apply(self, settings: Settings) -> Tensor:
        """Update the weights by the accumulated gradients, with the given settings; the gradient norm (scalar).

        A non-finite norm means that every batch was skipped or a value was non-finite, and that there was no step.
        """
        train_state = self.train_state
        apply_settings(train_state.optimizer, settings.lr, settings.bias_lr, settings.momentum)
        train_state.scaler.unscale_(train_state.optimizer)
        norm = clip_gradients(self._parameters, self.clip_norm)
        norm = self._step_on_host(norm) if self.on_host else self._step_on_device(norm)
        train_state.optimizer.zero_grad(set_to_none=True)
        return norm

    def _step_on_host(self, norm: Tensor) -> Tensor:
        train_state = self.train_state
        if all(parameter.grad is None for parameter in self._parameters):
            return norm.new_full((), torch.nan)  # every batch was skipped; `fault` has the reason
        fault = self._snapshot.first_not_finite()
        if not bool(norm.isfinite()):
            gradients = ((name, parameter.grad) for name, parameter in train_state.detector.named_parameters())
            bad = (name for name, gradient in gradients if gradient is not None and not bool(gradient.isfinite().all()))
            name = next(bad, None)
            fault = f"the gradient of {name}" if name else "the norm of all gradients"
        if self.world.any(fault is not None):
            self.fault = next(one for one in self.world.all_gather(fault) if one is not None)
            self._snapshot.restore()
            return norm.new_full((), torch.nan)
        train_state.scaler.step(train_state.optimizer)
        train_state.scaler.update()
        train_state.ema.update()
        return norm

    def _step_on_device(self, norm: Tensor) -> Tensor:
        train_state = self.train_state
        assert self._is_finite is not None, "accumulate a batch before applying"
        is_fine = self.world.all(norm.isfinite() & self._is_finite & self._snapshot.are_finite())
        self._is_finite = None
        if not train_state.scaler.is_enabled():  # which does the same
            train_state.optimizer.found_inf = (~is_fine).float()  # type: ignore[attr-defined]
        train_state.scaler.step(train_state.optimizer)
        train_state.scaler.update()
        self._snapshot.restore_unless(is_fine)
        train_state.ema.update(is_fine)
        return torch.where(is_fine, norm, torch.nan)


def with_fixed_capacity(batch: Batch) -> Batch:
    """The batch with padded labels: of compact ones, targets and ignore regions each to the next power of two (64 at
    least), so that few shapes occur in a run.
    """
    targets, coverage = batch.targets, batch.coverage
    if targets.is_padded:
        return batch
    if coverage is not None and coverage.ignore_regions is not None:
        coverage = coverage.padded(_capacity(len(coverage.ignore_regions)))
    return replace(batch, targets=targets.padded(_capacity(len(targets))), coverage=coverage)


def _capacity(count: int) -> int:
    return max(_MIN_CAPACITY, 1 << (count - 1).bit_length())


def _fields(labels: Targets | LabelCoverage | None) -> Tensors:
    return () if labels is None else tuple(vars(labels).values())
