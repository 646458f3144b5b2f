"""`Ranks`: this process among those that train together, and what they tell each other.

Nothing that travels is ever unpickled: tensors go as safetensors, everything else as JSON. Each method but `sum` is for
small or rare things and goes through the processor's memory; all ranks must call it, in the same order.
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
class Ranks:
    """Processes that share a run. number: this one's, from 0, of count; local_number, local_count: on this machine."""

    number: int = 0
    count: int = 1
    local_number: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.number == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, without gradient, on the tensor's device; a new tensor unless alone."""
        if not self.are_several:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def all(self, here: Tensor) -> Tensor:
        """Whether `here`, a scalar bool, is true on every rank; stays on its device."""
        return self.sum((~here).float()) == 0 if self.are_several else here

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.sum(torch.tensor([float(here)]))) if self.are_several else here

    def from_first(self, value: Any) -> Any:
        """The first rank's value, which JSON must be able to hold; what the others give does not count."""
        if not self.are_several:
            return value
        return json.loads(self._bytes_from_first(json.dumps(value).encode() if self.is_first else b""))

    def tensors_from_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's tensors, on the processor."""
        if not self.are_several:
            return tensors
        content = self._bytes_from_first(save(tensors) if self.is_first else b"")
        return tensors if self.is_first else load(content)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, which JSON must be able to hold, by number, on all ranks."""
        if not self.are_several:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self._lengths(len(content))
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        everyone = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(everyone, padded)
        return [json.loads(bytes(one[:length].numpy())) for one, length in zip(everyone, lengths, strict=True)]

    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Every rank's tensors, by number, on the first rank; nothing on the others."""
        if not self.are_several:
            return [tensors]
        content = torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)
        lengths = self._lengths(len(content))
        if not self.is_first:
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

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def _lengths(self, here: int) -> list[int]:
        everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(everyone, torch.tensor([here]))
        return [int(length) for length in everyone]

    def _bytes_from_first(self, content: bytes) -> bytes:
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        travelling = torch.empty(int(length), dtype=torch.uint8)
        if self.is_first:
            travelling = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for part in travelling.split(_BYTES_AT_A_TIME):
            dist.broadcast(part, 0)
        return bytes(travelling.numpy())


ALONE = Ranks()
"""The only process of its run."""
