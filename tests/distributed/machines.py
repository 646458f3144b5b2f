"""Two machines, as far as one has them: two network namespaces with a cable between, or else twice the loopback."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Machine(NamedTuple):
    """Its network namespace, empty for that of this process, its address, and the name of its network device."""

    namespace: str
    address: str
    device: str


LOOPBACK = (Machine("", "127.0.0.1", "lo"), Machine("", "127.0.0.1", "lo"))


def inside(namespace: str, function: str, *arguments: Any) -> Any:
    """Move this process into a network namespace and call "module:function" there."""
    if namespace:
        with Path("/var/run/netns", namespace).open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)(*arguments)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Namespaces where this process may make them, which it ends again."""
    names = [f"anchorite{os.getpid()}{which}" for which in "ab"]
    cables = [f"an{os.getpid() % 100_000}{which}" for which in "ab"]
    addresses = ["10.77.3.1", "10.77.3.2"]
    commands = [
        *(f"netns add {name}" for name in names),
        f"link add {cables[0]} type veth peer name {cables[1]}",
        *(f"link set {cable} netns {name}" for cable, name in zip(cables, names, strict=True)),
    ]
    for name, cable, address in zip(names, cables, addresses, strict=True):
        commands += [f"-n {name} addr add {address}/24 dev {cable}"]
        commands += [f"-n {name} link set {device} up" for device in (cable, "lo")]
    try:
        if all(_ip(command) for command in commands):
            first, second = (Machine(*one) for one in zip(names, addresses, cables, strict=True))
            yield first, second
        else:
            yield LOOPBACK
    finally:
        for name in names:
            _ip(f"netns del {name}")


def _ip(command: str) -> bool:
    if shutil.which("ip") is None:
        return False
    return subprocess.run(["ip", *command.split()], capture_output=True, check=False).returncode == 0
