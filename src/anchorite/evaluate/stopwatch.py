"""Where the time of a validation goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class ValidationSpeed(NamedTuple):
    """Seconds spent on each part of a validation, and images a second from pixels to boxes (data, forward and NMS)."""

    images_per_second: float
    seconds_data: float
    seconds_forward: float
    seconds_nms: float
    seconds_loss: float
    seconds_metrics: float


class Stopwatch:
    """Adds up wall-clock seconds by name; the caller sees to it that the device has finished."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` block to `name`."""
        start = perf_counter()
        yield
        self._seconds[name] += perf_counter() - start

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items, the time spent waiting for each added to `name`."""
        start = perf_counter()
        for item in items:
            self._seconds[name] += perf_counter() - start
            yield item
            start = perf_counter()

    def speed(self, num_images: int) -> ValidationSpeed:
        """What was measured so far, for so many images."""
        data, forward, nms, loss, metrics = (
            self._seconds[name] for name in ("data", "forward", "nms", "loss", "metrics")
        )
        return ValidationSpeed(num_images / max(data + forward + nms, 1e-9), data, forward, nms, loss, metrics)
