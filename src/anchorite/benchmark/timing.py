"""Timing functions side by side: in turn within every round, so that drift and other programs touch all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

WARM_UP_CALLS = 2


@dataclass(frozen=True)
class Sample:
    """The seconds of one function, a number a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile; both the only value where there was one round."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = WARM_UP_CALLS,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Sample]:
    """Seconds of each function, by its name, over `rounds` rounds.

    Every round calls each function once; the order rotates by one from round to round, so that none always runs in the
    wake of the same other. Before, each is called `warm_up` times untimed. The device has finished when a clock is
    read. What a function returns is dropped outside the time taken. clock: such as `time.thread_time` for one core.
    """
    assert rounds >= 1
    device = torch.device(device)
    names = list(functions)
    for name in names:
        for _ in range(warm_up):
            functions[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in rotated(names, number):
            synchronise(device)
            start = clock()
            result = functions[name]()
            synchronise(device)
            seconds[name].append(clock() - start)
            del result
    return {name: Sample(tuple(taken)) for name, taken in seconds.items()}


def rotated(names: list[str], number: int) -> list[str]:
    """The names, begun at another one in each round."""
    start = number % len(names)
    return names[start:] + names[:start]


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has done all it was given; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def round_ratios(above: Sample, below: Sample) -> tuple[float, float]:
    """Quartiles of the ratios above / below, round by round: how firm the ratio of the medians is."""
    pairs = zip(above.seconds, below.seconds, strict=True)
    return Sample(tuple(one / other for one, other in pairs)).quartiles
