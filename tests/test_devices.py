"""Devices and precisions: what is chosen for which hardware, and what is refused."""

from __future__ import annotations

import os
import platform
import resource
from contextlib import suppress

import pytest
import torch

from anchorite import devices
from anchorite.devices import (
    choose_device,
    choose_precision,
    deterministic_algorithms,
    keep_freed_memory,
    use_full_float32,
)
from anchorite.errors import InputError
from tests.processes import ForkedProcess

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("amx", "avx512", "name", "word"),
    [(True, True, "bf16", "AMX"), (False, True, "bf16", "AVX512-BF16"), (False, False, "fp32", "neither")],
)
def test_a_cpu_gets_bf16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, name: str, word: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    chosen = choose_precision("auto", CPU)
    assert (chosen.name, chosen.scaled) == (name, False)
    assert word in chosen.reason
    assert chosen.dtype == (torch.bfloat16 if name == "bf16" else None)


@pytest.mark.parametrize(
    ("capability", "name", "scaled"),
    [((9, 0), "bf16", False), ((8, 0), "bf16", False), ((7, 5), "fp16", True), ((6, 1), "fp32", False)],
)
def test_a_gpu_gets_what_its_generation_is_fast_at(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, scaled: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    chosen = choose_precision("auto", CUDA)
    assert (chosen.name, chosen.scaled) == (name, scaled)
    assert "Test GPU" in chosen.reason


def test_what_was_asked_for_is_given() -> None:
    assert choose_precision("bf16", CPU).dtype == torch.bfloat16
    assert choose_precision("fp32", CPU).dtype is None
    assert choose_precision("fp16", CUDA) == devices.Precision("fp16", torch.float16, True, "as requested")


def test_float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    use_full_float32()
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_algorithms_are_on_for_a_block_alone(
    monkeypatch: pytest.MonkeyPatch, workspace: str | None
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    if workspace is not None:
        monkeypatch.setenv(name, workspace)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with suppress(KeyError), deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ[name] == (workspace or ":4096:8")
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ.get(name) == workspace


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="not trained on a CPU"):
        choose_precision("fp16", CPU)
    with pytest.raises(InputError, match="no such precision"):
        choose_precision("int8", CPU)  # type: ignore[arg-type]
    for name in ("cdua", "cuda:99", "meta"):
        with pytest.raises(InputError, match=f"device {name}"):
            choose_device(name)
    assert choose_device("cpu") == CPU


def print_page_faults(is_kept: bool) -> None:
    """The fewest page faults of filling memory that was freed before."""
    if is_kept:
        assert keep_freed_memory()
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        # Larger than what glibc keeps of its own accord, which is 32 MiB.
        blocks = [torch.empty(40 * 2**20, dtype=torch.uint8).fill_(number) for number in range(4)]
        while blocks:
            blocks.pop()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(faults))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_comes_back_without_page_faults() -> None:
    processes = [ForkedProcess("tests.test_devices:print_page_faults", is_kept) for is_kept in (True, False)]
    kept, left = (int(process.communicate(timeout=60)[0]) for process in processes)
    assert kept < 100 < left
