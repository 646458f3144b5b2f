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
        return json.loads(self._broadcast_bytes(json.dumps(value).encode())) if self.is_distributed else value

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
        content = json.dumps(value).encode()
        return [json.loads(self._broadcast_bytes(content, rank)) for rank in range(self.world_size)]

    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of all ranks in order, on rank 0; nothing on the others."""
        if not self.is_distributed:
            return [tensors]
        content = torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)
        lengths = self.all_gather(len(content))
        if not self.is_main:
            for part in content.split(_BYTES_AT_A_TIME):
                dist.send(part, 0)
            return []
        gathered = [tensors]
        for rank in range(1, self.world_size):
            received = torch.empty(lengths[rank], dtype=torch.uint8)
            for part in received.split(_BYTES_AT_A_TIME):
                dist.recv(part, rank)
            gathered.append(load(bytes(received.numpy())))
        return gathered

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.any(False)

    def _broadcast_bytes(self, content: bytes, source: int = 0) -> bytes:
        """The content of the rank `source`; that of the others is ignored."""
        length = torch.tensor([len(content)])
        dist.broadcast(length, source)
        buffer = bytearray(content if self.rank == source else int(length))
        travelling = torch.frombuffer(buffer, dtype=torch.uint8)
        for part in travelling.split(_BYTES_AT_A_TIME):
            dist.broadcast(part, source)
        return bytes(buffer)


SINGLE_PROCESS = World()
"""A run of one process."""
