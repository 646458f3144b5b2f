"""Which device to run on and which number format its convolutions are fast in, with the reason."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anchorite.choices import CompileName, PrecisionName
from anchorite.errors import InputError

# Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER_TRIM = 2**31 - 1

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A number format for autocast (None: no autocast) and why it was chosen; scaled: gradients need a scaler."""

    name: str
    dtype: torch.dtype | None
    scaled: bool
    reason: str


def choose_device(name: str) -> torch.device:
    """The device of "auto", "cpu", "cuda" or "cuda:N"; InputError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name}: no such device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name}: not supported; use auto, cpu, cuda or cuda:N")
    return device


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """The precision that `name` asks for on this device; "auto" decides by what the hardware is fast at.

    bf16 where it is fast (CPUs with AVX512-BF16 or AMX, GPUs of compute capability 8 and up), fp16 with a gradient
    scaler on GPUs of capability 7, else fp32. Raises InputError for fp16 on a CPU.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise InputError(f"precision {name}: no such precision; use auto, fp32, bf16 or fp16")
        if name == "fp16" and device.type == "cpu":
            raise InputError("precision fp16: half precision is not trained on a CPU; use bf16 or fp32")
        return Precision(name, _DTYPES[name], name == "fp16", "as requested")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        where = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        if major >= 8:
            return Precision("bf16", torch.bfloat16, False, f"{where}, is fast at it")
        if major >= 7:
            return Precision("fp16", torch.float16, True, f"{where}, has fp16 but no bf16 arithmetic")
        return Precision("fp32", None, False, f"{where}, has no fast half precision")
    if torch.cpu._is_amx_tile_supported():
        return Precision("bf16", torch.bfloat16, False, "this CPU has AMX tiles")
    if torch.cpu._is_avx512_bf16_supported():
        return Precision("bf16", torch.bfloat16, False, "this CPU has AVX512-BF16")
    return Precision("fp32", None, False, "this CPU has neither AVX512-BF16 nor AMX")


def choose_compile(
    name: CompileName, device: torch.device, one_size: bool, synchronised_norm: bool = False
) -> tuple[bool, str]:
    """Whether torch.compile is to fuse the step, and why.

    one_size: all batches have the same height and width; synchronised_norm: batch normalisation is over all ranks.
    """
    if synchronised_norm and name != "off":
        return False, "SyncBatchNorm (sync_batch_norm) cannot be compiled as part of a whole (pytorch issue 156680)"
    if name != "auto":
        return name == "on", "as requested"
    if device.type == "cpu":
        return False, "on a CPU it takes minutes to compile and gains nothing over oneDNN's bf16 in channels_last"
    if not one_size:
        return False, "each size of multi-scale training would be compiled anew"
    return True, "on a GPU it fuses normalisation and activation, and the terms of the loss"


def use_full_float32() -> None:
    """Let convolutions of float32 on CUDA devices be of float32: torch's default there, TF32, keeps 10 bits of 23."""
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within the block, where wanted, torch takes algorithms that give the same bits every time, and warns where it has
    none. Slower on CUDA; a CPU needs none of it.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    benchmark, fill = torch.backends.cudnn.benchmark, memory.fill_uninitialized_memory
    workspace = os.environ.get(_CUBLAS_WORKSPACE)
    os.environ[_CUBLAS_WORKSPACE] = workspace or ":4096:8"  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # which takes the fastest of a trial, another one every time
    memory.fill_uninitialized_memory = False  # a help in debugging: nothing here reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, memory.fill_uninitialized_memory = benchmark, fill
        if workspace is None:
            del os.environ[_CUBLAS_WORKSPACE]


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees for its next allocations; whether the C library can (glibc).

    A training step frees and takes the same blocks again. Left alone, glibc hands the large ones back to the system,
    which clears every page of them anew: 12 600 page faults in a step of size n (320 px, batch 16), 7 % of its time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))


def processor_facts() -> dict[str, str]:
    """What Linux tells of a processor in /proc/cpuinfo, by its names there; elsewhere "model name" alone."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return facts | {"model name": facts.get("model name") or platform.processor() or platform.machine()}
