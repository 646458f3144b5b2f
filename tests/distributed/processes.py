"""Starting several ranks as real processes, without torchrun, and calling a function in each of them."""

from __future__ import annotations

import importlib
import os
import socket
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
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
    machine = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {name: str(value) for name, value in {**world, **machine}.items()}


@cache
def _context() -> ForkServerContext:
    """Where ranks come from: a process that has imported what takes seconds, forked for each of them."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.programs", "torch._dynamo"])
    return context


def on_ranks(count: int, function: str, folder: Path, **arguments: Any) -> list[dict[str, Tensor]]:
    """Call "module:name" on every rank with the ranks and the arguments; the tensors that each returns.

    Runs in this process, without any rank, where count is 1.
    """
    if count == 1:
        return [_called(function, arguments)]
    port = free_port()
    started = [
        _context().Process(target=_run, args=(environment_of(number, count, port), function, arguments, folder))
        for number in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
        process.kill()
    said = "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.stderr")))
    assert [process.exitcode for process in started] == [0] * count, said
    return [load_file(folder / f"rank-{number}.safetensors") for number in range(count)]


def _run(environment: dict[str, str], function: str, arguments: dict[str, Any], folder: Path) -> None:
    """What the process of a rank does: its tensors and what it says on stderr become files of the folder."""
    os.environ.update(environment)
    file = folder / f"rank-{environment['RANK']}"
    with file.with_suffix(".stderr").open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
    torch.set_num_threads(1)
    save_file(_called(function, arguments), file.with_suffix(".safetensors"))


def _called(function: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    module, name = function.split(":")
    with init_process_group(TIMEOUT_S) as world:
        tensors: dict[str, Tensor] = getattr(importlib.import_module(module), name)(world, **arguments)
    return {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
