"""`World`: rank and world size of this process, and exchange of tensors and values between ranks.

Nothing received is ever unpickled: tensors are sent as safetensors, everything else as JSON. Each method but
`all_reduce` is for small or rare data and goes through host memory; all ranks must call it, in the same order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

_BYTES_AT_A_TIME = 1 << 28


@dataclass(frozen=True)
class World:
    """The world as seen by this process.

    rank: of this process, 0..world_size-1; local_rank, local_world_size: the same on this machine. Without torchrun
    there is one process, rank 0 of 1.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are several ranks."""
        return self.world_size > 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, without gradient, on the tensor's device; a new tensor unless alone."""
        if not self.is_distributed:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def all(self, here: Tensor) -> Tensor:
        """Whether `here`, a scalar bool, is true on every rank; stays on its device."""
        return self.all_reduce((~here).float()) == 0 if self.is_distributed else here

    def any(self, here: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.all_reduce(torch.tensor([float(here)]))) if self.is_distributed else here

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, which must be JSON; the values of the others are ignored."""
        if not self.is_distributed:
            return value
        return json.loads(self._broadcast_bytes(json.dumps(value).encode() if self.is_main else b""))

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors, on the CPU."""
        if not self.is_distributed:
            return tensors
        content = self._broadcast_bytes(save(tensors) if self.is_main else b"")
        return tensors if self.is_main else load(content)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks in order, which must be JSON, on all ranks."""
        if not self.is_distributed:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self._lengths(len(content))
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        everyone = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(everyone, padded)
        return [json.loads(bytes(one[:length].numpy())) for one, length in zip(everyone, lengths, strict=True)]

    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of all ranks in order, on rank 0; nothing on the others."""
        if not self.is_distributed:
            return [tensors]
        content = torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)
        lengths = self._lengths(len(content))
        if not self.is_main:
            for part in content.split(_BYTES_AT_A_TIME):
                dist.send(part, 0)
            return []
        gathered = [tensors]
        for number, length in enumerate(lengths[1:], 1):
            received = torch.empty(length, dtype=torch.uint8)
            for part in received.split(_BYTES_AT_A_TIME):
                dist.recv(part, number)
            gathered.append(load(bytes(received.numpy())))
        return gathered

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.any(False)

    def _lengths(self, here: int) -> list[int]:
        everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(everyone, torch.tensor([here]))
        return [int(length) for length in everyone]

    def _broadcast_bytes(self, content: bytes) -> bytes:
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        travelling = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main:
            travelling = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for part in travelling.split(_BYTES_AT_A_TIME):
            dist.broadcast(part, 0)
        return bytes(travelling.numpy())


SINGLE_PROCESS = World()
"""A run of one process."""
