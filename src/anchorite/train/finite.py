"""Keeping what is not finite out of whatever lasts beyond a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchorite.loss import LossTerms


class BufferSnapshot:
    """The buffers that a forward pass changes: running statistics and the balance, with a copy to go back to."""

    def __init__(self, *modules: nn.Module) -> None:
        named = [(name, buffer) for module in modules for name, buffer in module.named_buffers()]
        # Of what is changed, foreach wants one type at a time: that of the statistics, and what else there is.
        dtype = next((buffer.dtype for _, buffer in named if buffer.is_floating_point()), torch.float32)
        self._names = [name for name, buffer in named if buffer.dtype == dtype]
        self._floats = [buffer for _, buffer in named if buffer.dtype == dtype]
        self._others = [buffer for _, buffer in named if buffer.dtype != dtype]
        self._kept = [buffer.clone() for buffer in (*self._floats, *self._others)]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers as they are now."""
        self._copy([*self._floats, *self._others], self._kept)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the buffers the values that were kept."""
        self._copy(self._kept, [*self._floats, *self._others])

    @torch.no_grad()
    def put_back_unless(self, is_fine: Tensor) -> None:
        """`put_back` where is_fine (a scalar bool on the device) is false, without looking at it."""
        for buffer, kept in zip([*self._floats, *self._others], self._kept, strict=True):
            buffer.copy_(torch.where(is_fine, buffer, kept))

    @torch.no_grad()
    def are_finite(self) -> Tensor:
        """Whether every statistic is finite, a scalar bool on their device."""
        return torch.stack(torch._foreach_norm(self._floats, float("inf"))).isfinite().all()

    def first_not_finite(self) -> str | None:
        """The name of the first statistic that is not finite."""
        if bool(self.are_finite()):
            return None
        bad = (name for name, buffer in zip(self._names, self._floats, strict=True) if not buffer.isfinite().all())
        return f"the statistic {next(bad)}"

    def _copy(self, sources: list[Tensor], targets: list[Tensor]) -> None:
        num_floats = len(self._floats)
        torch._foreach_copy_(targets[:num_floats], sources[:num_floats])
        if targets[num_floats:]:
            torch._foreach_copy_(targets[num_floats:], sources[num_floats:])


def first_not_finite(terms: LossTerms) -> str:
    """The name of the first term of the loss that is not finite."""
    of_terms = (name for name, term in zip(terms._fields[1:], terms[1:], strict=True) if not term.isfinite())
    return f"the {next(of_terms, 'total')} loss"


def first_gradient_not_finite(model: nn.Module) -> str:
    """The name of the first parameter whose gradient is not finite; else it is their common norm that overflows."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name}"
    return "the norm of all gradients"
