"""One training step: forward, loss, backward, clipping, optimizer, EMA; non-finite values change nothing.

Legend: B images, H, W height and width in pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
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

_MAX_COMPILED_SHAPES = 8  # as many as torch compiles of one function before it refuses
Tensors = tuple[Any, ...]  # those of `Targets` or of `LabelCoverage`, None for what is not given


class BufferSnapshot:
    """The buffers that a forward pass changes (running statistics, the loss's balance), with a copy to restore.

    Those are the floating point ones in the modules' state; constants are not in it. Copies are flat tensors, one for
    each type, whose parts torch._foreach functions fill all at once: a few kernels for hundreds of buffers.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._statistics = []
        for module in modules:
            state = module.state_dict()
            named = module.named_buffers()
            self._statistics += [(name, one) for name, one in named if name in state and one.is_floating_point()]
        self._of_types = []
        for dtype in dict.fromkeys(buffer.dtype for _, buffer in self._statistics):
            buffers = [buffer for _, buffer in self._statistics if buffer.dtype == dtype]
            self._of_types.append((buffers, _FlatCopy(buffers), _FlatCopy(buffers)))

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers as they are now."""
        for buffers, saved, _ in self._of_types:
            torch._foreach_copy_(saved.parts, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the buffers to the saved values."""
        for buffers, saved, _ in self._of_types:
            torch._foreach_copy_(buffers, saved.parts)

    @torch.no_grad()
    def restore_unless(self, is_finite: Tensor) -> None:
        """`restore` where is_finite (a scalar bool on the device) is false, without synchronisation."""
        for buffers, saved, chosen in self._of_types:
            torch._foreach_copy_(chosen.parts, buffers)
            torch.where(is_finite, chosen.flat, saved.flat, out=chosen.flat)
            torch._foreach_copy_(buffers, chosen.parts)

    @torch.no_grad()
    def are_finite(self) -> Tensor:
        """Whether every statistic is finite, a scalar bool on their device."""
        of_types = [torch._foreach_norm(buffers, float("inf")) for buffers, *_ in self._of_types]
        return torch.stack([norm.float() for norms in of_types for norm in norms]).isfinite().all()

    def first_not_finite(self) -> str | None:
        """The name of the first statistic that is not finite."""
        if bool(self.are_finite()):
            return None
        return next(f"the statistic {name}" for name, buffer in self._statistics if not buffer.isfinite().all())


class _FlatCopy:
    """One flat tensor with room for tensors of one type, and the part of each, in its shape."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.flat = torch.cat([tensor.flatten() for tensor in tensors])
        parts = self.flat.split([tensor.numel() for tensor in tensors])
        self.parts = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class Objective(nn.Module):
    """A detector and its loss. dtype: what the convolutions compute in by autocast, None for the weights' own type.

    compiled_for: a compiled graph computes the batches of so many images over all ranks; None: no batch. Other batches,
    such as the last of an epoch, are computed by operators: left to itself, torch.compile would compile them anew, and
    that for shapes that vary, so that all batches to follow would be slower.
    """

    def __init__(
        self,
        detector: Detector,
        criterion: DetectionLoss,
        dtype: torch.dtype | None,
        compiled_for: int | None = None,
    ) -> None:
        super().__init__()
        self.detector, self.criterion, self.dtype = detector, criterion, dtype
        self.compiled_for, self._shapes = compiled_for, set[tuple[Any, ...]]()
        self._compiled: Callable[..., LossTerms] | None = None
        if compiled_for is not None:
            self._compiled = torch.compile(self._compute, fullgraph=True, dynamic=False)

    def forward(self, images: Tensor, targets: Tensors, coverage: Tensors, num_images: int | None) -> LossTerms:
        """The loss of images (B, 3, H, W) uint8; targets, coverage: the fields of either; num_images: over all ranks.

        As tuples, which DistributedDataParallel and torch.compile look into.
        """
        if self._compiled is not None and self.compiled_for == (len(images) if num_images is None else num_images):
            shapes = tuple(None if one is None else one.shape for one in (images, *targets, *coverage))
            if len(self._shapes) < _MAX_COMPILED_SHAPES:
                self._shapes.add(shapes)
            if shapes in self._shapes:
                return self._compiled(images, targets, coverage, num_images)
        return self._compute(images, targets, coverage, num_images)

    def _compute(self, images: Tensor, targets: Tensors, coverage: Tensors, num_images: int | None) -> LossTerms:
        with torch.autocast(images.device.type, dtype=self.dtype) if self.dtype else nullcontext():
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

    The convolutions run in `precision`, the loss in float32; images are normalised on the device. compiled_for: fuse
    forward pass and loss, and the backward pass, by torch.compile, for batches of so many images over all ranks.

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
        compiled_for: int | None = None,
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
        self._static = compiled_for is not None or device.type != "cpu"
        objective = Objective(train_state.detector, train_state.criterion, precision.dtype, compiled_for)
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
        self._snapshot.save()  # first of all: `undo` goes back to it, whatever runs out of memory
        if self._static:
            batch = batch.with_fixed_capacity()
        batch = batch.to(self.device, non_blocking=True)
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

    def undo(self) -> None:
        """Back to what was before the last batch, the first since `apply`, where `accumulate` has raised."""
        self._snapshot.restore()
        self.train_state.optimizer.zero_grad(set_to_none=True)
        self._is_finite = None

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
        # Not by scaler.step, which would look at the gradients alone.
        train_state.optimizer.found_inf = (~is_fine).float()  # type: ignore[attr-defined]
        train_state.optimizer.step()
        train_state.scaler.update()
        self._snapshot.restore_unless(is_fine)
        train_state.ema.update(is_fine)
        return torch.where(is_fine, norm, torch.nan)


def _fields(labels: Targets | LabelCoverage | None) -> Tensors:
    return () if labels is None else tuple(vars(labels).values())
