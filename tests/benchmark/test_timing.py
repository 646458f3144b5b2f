"""What is called when, and what is made of the times; never how long anything takes."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch

from anchorite.benchmark import Sample, interleaved
from benchmarks.measure import can_measure_cpu, in_fresh_process, peak_extra_bytes, round_ratios


def test_every_round_calls_each_function_once_beginning_with_another() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    interleaved(functions, rounds=4, warm_up=2)
    assert "".join(calls[:6]) == "aabbcc"  # warm-up
    assert "".join(calls[6:]) == "abc" + "bca" + "cab" + "abc"


def test_a_sample_holds_the_ticks_of_its_own_function_alone() -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    costs = {"fast": itertools.repeat(1.0), "slow": itertools.cycle([2.0, 3.0, 10.0])}
    functions = {name: lambda cost=cost: spend(next(cost)) for name, cost in costs.items()}
    samples = interleaved(functions, rounds=3, warm_up=0, clock=lambda: now)
    assert samples["fast"].seconds == (1.0, 1.0, 1.0)
    assert samples["slow"].seconds == (2.0, 3.0, 10.0)
    assert samples["slow"].median == 3.0


def test_quartiles_and_round_by_round_ratios() -> None:
    assert Sample((1.0, 2.0, 3.0, 4.0, 5.0)).quartiles == (2.0, 4.0)
    assert Sample((7.0,)).quartiles == (7.0, 7.0)
    # Drift that touches both alike leaves the ratio alone.
    assert round_ratios(Sample((2.0, 20.0, 6.0)), Sample((1.0, 10.0, 3.0))) == (2.0, 2.0)


@pytest.mark.skipif(not can_measure_cpu(), reason="this system does not tell a process its peak memory")
def test_peak_memory_counts_what_is_freed_again_and_nothing_from_before() -> None:
    before = np.ones(200 << 20, np.uint8)

    def work() -> int:
        first = np.ones(64 << 20, np.uint8)
        return int(first[-1]) + int(before[-1])

    def twice() -> int:
        return work() + work()

    for function in (work, twice):  # one after the other, so the second needs no more than the first
        peak = peak_extra_bytes(function)
        assert peak is not None
        assert 60 <= peak / 2**20 < 72


def test_cuda_peak_and_times() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    peak = peak_extra_bytes(lambda: torch.ones(1 << 20, device="cuda").sum(), "cuda")
    assert peak is not None
    assert peak >= 4 << 20
    assert interleaved({"ones": lambda: torch.ones(10, device="cuda")}, 2, device="cuda")["ones"].median > 0


def test_a_fresh_process_answers() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    assert in_fresh_process(divmod, 7, 2) == (3, 1)
