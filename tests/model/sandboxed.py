"""The process that reads checkpoints, forked from one that has imported torch, which takes seconds."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from anchorite.model import torch_checkpoint
from tests.processes import ForkedProcess


def read_in_a_fork(monkeypatch: pytest.MonkeyPatch, **limits: int) -> list[float]:
    """Fork the processes that read; the megabytes that each of them takes beside what it begins with are added here."""
    taken: list[float] = []

    def run(words: Sequence[str], **_: Any) -> CompletedProcess[bytes]:
        process = ForkedProcess("tests.model.sandboxed:reader", words[words.index(torch_checkpoint._START) + 1], limits)
        output, errors = process.communicate(timeout=120)
        code, megabytes = json.loads(errors)
        taken.append(megabytes)
        return CompletedProcess(words, code, output.encode())

    monkeypatch.setattr(torch_checkpoint.subprocess, "run", run)
    return taken


def reader(path: str, limits: dict[str, int]) -> None:
    """Read in a child; say on stderr how that ended, and how much memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        for name, value in limits.items():
            setattr(torch_checkpoint, name, value)
        torch_checkpoint.main(path)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), (usage.ru_maxrss - before) / 1024]), file=sys.stderr)


def limited() -> None:
    """The limits that the process puts on itself for a file of 1000 bytes, and its addresses before."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    torch_checkpoint._limit_resources(1000)
    names = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_CORE")
    print(json.dumps([in_use, *(resource.getrlimit(getattr(resource, name)) for name in names)]))
