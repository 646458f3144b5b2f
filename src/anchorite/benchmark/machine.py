"""The machine a benchmark ran on: what it is, how busy others keep it, and how fast it can move and multiply.

Rates are measured in the run itself; floors are computed from them, so that no data sheet has to be believed.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch

from anchorite import __version__
from anchorite.benchmark.timing import interleaved

BUSY_CORES = 0.3  # of other programs, from which on a run is no longer called quiet
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
_MATMUL_SIDE, _RATE_ROUNDS = 2048, 12


@dataclass(frozen=True)
class Rates:
    """Bytes a second through memory (reads and writes counted) and floating point operations a second, both best of
    several; bf16 is NaN where the device has none worth measuring.
    """

    bytes_per_second: float
    fp32_per_second: float
    bf16_per_second: float


class BusyMeter:
    """How many cores other programs used since it was made; NaN where the system does not tell."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Clock, seconds used by all programs, seconds used by this one and its ended children."""
        own = os.times()
        return time.perf_counter(), _busy_seconds(), own.user + own.system + own.children_user + own.children_system

    def cores(self) -> float:
        clock, everything, own = (after - before for after, before in zip(self._now(), self._start, strict=True))
        return max(0.0, (everything - own) / max(clock, 1e-9)) if everything == everything else float("nan")


def machine(device: torch.device) -> dict[str, object]:
    """The facts about machine and software that a figure means nothing without, ready for JSON."""
    flags = set(_cpu_info("flags").split())
    facts: dict[str, object] = {
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cpu_model": f"family {_cpu_info('cpu family')}, model {_cpu_info('model')}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "versions": {
            "anchorite": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "date": date.today().isoformat(),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }
    return facts


def busy_warning(cores: float) -> str | None:
    """What to say when others used the processor during a run, or None."""
    if not cores > BUSY_CORES:
        return None
    return f"other programs used {cores:.1f} cores during the run: figures are less firm, ratios hold better"


def memory_rate(num_bytes: int, device: torch.device, rounds: int = _RATE_ROUNDS) -> float:
    """Bytes a second, reads and writes counted, of the faster of a copy and an addition, in the best round.

    num_bytes: how much moves in all. Best, not median: a floor has to hold on the machine's best moment, and for the
    same number of bytes as the work it is a floor of, since caches serve small amounts faster.
    """
    source, target = (torch.ones(max(1, num_bytes // 8), device=device) for _ in range(2))
    left, right, total = (torch.ones(max(1, num_bytes // 12), device=device) for _ in range(3))
    functions: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "add": lambda: torch.add(left, right, out=total),
    }
    taken = interleaved(functions, rounds, device=device)
    moved = {"copy": 8 * source.numel(), "add": 12 * total.numel()}
    return max(moved[name] / min(sample.seconds) for name, sample in taken.items())


def matmul_rate(
    dtype: torch.dtype, device: torch.device, side: int = _MATMUL_SIDE, rounds: int = _RATE_ROUNDS
) -> float:
    """Floating point operations a second of a square matrix product in the best round."""
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    taken = interleaved({"matmul": lambda: left @ right}, rounds, device=device)
    return 2 * side**3 / min(taken["matmul"].seconds)


def rates(device: torch.device, num_bytes: int, quick: bool = False) -> Rates:
    """All rates of a device; num_bytes: what the work in question moves."""
    side, rounds = (256, 3) if quick else (_MATMUL_SIDE, _RATE_ROUNDS)
    return Rates(
        memory_rate(num_bytes, device, rounds),
        matmul_rate(torch.float32, device, side, rounds),
        matmul_rate(torch.bfloat16, device, side, rounds),
    )


def _busy_seconds() -> float:
    """Seconds of all cores spent working since the system started."""
    try:
        values = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return float("nan")
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, *_ = values
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def _cpu_info(name: str) -> str:
    try:
        found = re.search(rf"^{name}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return "" if found is None else found[1].strip()


def _memory_bytes() -> int:
    if sys.platform == "win32":
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
