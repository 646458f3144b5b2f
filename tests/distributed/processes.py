"""Starting several ranks as real processes, without torchrun, and calling a function in each of them."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anchorite.distributed import init_process_group

TIMEOUT_S = 30.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(number: int, count: int, port: int) -> dict[str, str]:
    """What torchrun would tell a rank of this machine."""
    world = {"RANK": number, "WORLD_SIZE": count, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": count}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {**os.environ, **{name: str(value) for name, value in {**world, **place}.items()}}


def on_ranks(count: int, function: str, folder: Path, **arguments: Any) -> list[dict[str, Tensor]]:
    """Call "module:name" on every rank with the ranks and the arguments; the tensors that each returns.

    Runs in this process, without any rank, where count is 1.
    """
    if count == 1:
        return [_called(function, arguments)]
    port = free_port()
    words = [sys.executable, "-m", "tests.distributed.processes", function, json.dumps(arguments), str(folder)]
    started = [
        subprocess.Popen(words, env=environment_of(number, count, port), stderr=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, "\n".join(errors)
    return [load_file(folder / f"rank-{number}.safetensors") for number in range(count)]


def _called(function: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    module, name = function.split(":")
    with init_process_group(TIMEOUT_S) as world:
        tensors: dict[str, Tensor] = getattr(importlib.import_module(module), name)(world, **arguments)
    return {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file(_called(sys.argv[1], json.loads(sys.argv[2])), f"{sys.argv[3]}/rank-{os.environ['RANK']}.safetensors")
