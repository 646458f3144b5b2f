"""Batch normalisation over the batch of all ranks, where a rank's own part is too small for good statistics.

Legend: B images of this rank, C channels, H, W cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every normalisation of a model take its statistics over all ranks, in place; names and tensors stay.

    On CUDA by torch's own SyncBatchNorm, which has no version for the processor; there by `RankBatchNorm`.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, _over_ranks(child))
        else:
            share_batch_norm(child, device)


def _over_ranks(norm: nn.BatchNorm2d) -> RankBatchNorm:
    """A normalisation over all ranks with the parameters and buffers of one over a rank's part."""
    assert norm.momentum is not None
    shared = RankBatchNorm(norm.num_features, norm.eps, norm.momentum).train(norm.training)
    for name, parameter in norm.named_parameters():
        setattr(shared, name, parameter)
    for name, buffer in norm.named_buffers():
        setattr(shared, name, buffer)
    return shared


class RankBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d that in training takes mean and variance over all ranks; a rank may have no image at all."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        wide = x if x.dtype == torch.float64 else x.float()
        over = (0, 2, 3)
        here = wide.new_tensor([x.numel() / x.shape[1]])
        sums = SumOverRanks.apply(torch.cat([wide.sum(over), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = SumOverRanks.apply(centred.square().sum(over)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is that of every rank's loss, summed likewise."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        """The sum, a new tensor."""
        return _summed(part)

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor) -> Tensor:
        """What all ranks' losses ask of this rank's part."""
        return _summed(of_sum)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total
