"""Peak memory of a function, beyond what was there before it ran."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what the kernel takes for "forget the high-water mark", man 5 proc


def peak_extra_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Most bytes in use at once while `function` runs, less those in use before; None where nothing can tell.

    CUDA: what torch allocates. CPU: the process's resident memory, by the kernel's own high-water mark, so that
    scratch memory of libraries counts as well; Linux alone has it. The function runs once before, untold, for caches
    that are filled only once.
    """
    device = torch.device(device)
    function()
    gc.collect()
    if device.type == "cuda":
        return _cuda_peak(function, device)
    if not can_measure_cpu():
        return None
    return _resident_peak(function)


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module returns when a new process calls it, whose memory nothing has been done to yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        return process.submit(function, *arguments).result()


def can_measure_cpu() -> bool:
    """Whether the kernel tells a process its peak, and lets it start anew."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return _status_bytes("VmHWM") is not None


def _cuda_peak(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak(function: Callable[[], object]) -> int:
    _give_back_freed_pages()
    _CLEAR.write_text(_RESET_PEAK)
    before = _status_bytes("VmRSS")
    result = function()
    peak = _status_bytes("VmHWM")
    del result
    assert before is not None
    assert peak is not None
    return max(0, peak - before)


def _give_back_freed_pages() -> None:
    """Pages that the C library keeps for later would hide as many new ones; musl and others keep none."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _status_bytes(name: str) -> int | None:
    """A value of the process's status, which is in kB."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
