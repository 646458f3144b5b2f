"""Starting several ranks as real processes, without torchrun, and calling a function in each of them."""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anchorite.distributed import init_process_group
from tests.processes import ForkedProcess

TIMEOUT_S = 30.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(count: int, function: str, folder: Path, **arguments: Any) -> list[dict[str, Tensor]]:
    """Call "module:name" on every rank with its `World` and JSON arguments; the tensors that each returns.

    Runs in this process, without any rank, where count is 1.
    """
    if count == 1:
        return [_called(function, arguments)]
    port, started = free_port(), []
    for rank in range(count):
        world = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        told = world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # what torchrun would tell it
        environment = os.environ | {name: str(value) for name, value in told.items()}
        file = folder / f"rank-{rank}.safetensors"
        started.append(ForkedProcess("tests.distributed.ranks:run", str(file), function, arguments, env=environment))
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(count)]


def run(file: str, function: str, arguments: dict[str, Any]) -> None:
    """What the process of a rank does: its tensors become a file."""
    torch.set_num_threads(1)
    save_file(_called(function, arguments), file)


def _called(function: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    module, name = function.split(":")
    with init_process_group(TIMEOUT_S) as world:
        tensors: dict[str, Tensor] = getattr(importlib.import_module(module), name)(world, **arguments)
    return {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
