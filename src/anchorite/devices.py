"""Which device to run on and which number format its convolutions are fast in, with the reason."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from anchorite.choices import CompileName, PrecisionName
from anchorite.errors import InputError

# Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER_TRIM = 2**31 - 1

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


def choose_compile(name: CompileName, device: torch.device, one_size: bool) -> tuple[bool, str]:
    """Whether torch.compile is to fuse the step, and why. one_size: all batches have the same height and width."""
    if name != "auto":
        return name == "on", "as requested"
    if device.type == "cpu":
        return False, "on a CPU it takes minutes to compile and gains nothing over oneDNN's bf16 in channels_last"
    if not one_size:
        return False, "each size of multi-scale training would be compiled anew"
    return True, "on a GPU it fuses normalisation and activation, and the terms of the loss"


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
