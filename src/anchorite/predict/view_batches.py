"""Views of many images through the networks that are to see them, in batches that do not stop at an image's end.

Legend: B views of a batch, H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.predict.postprocess import RawDetections
from anchorite.predict.views import View

Detect = Callable[[int, NDArray[np.uint8]], list[RawDetections]]
"""What the network of a number finds in inputs (B, H, W, 3)."""


class Answer(NamedTuple):
    """What was found in one view, in pixels of the network input."""

    view: View
    raw: RawDetections


@dataclass
class Picture:
    """An image in hand. answers: by channel, in the order in which they came; num_open: views not answered yet."""

    image: UInt8[NDArray[np.uint8], "H W 3"]
    source: str
    answers: list[list[Answer]]
    num_open: int = field(default=0)


class Sight(NamedTuple):
    """A view of a picture, the network that is to see it, and the channel that its answer belongs to."""

    picture: Picture
    network: int
    channel: int
    view: View


class ViewBatches:
    """Collects views by network and input size; full batches are drawn by a thread while the one before is looked at.

    Inputs are made only when their batch is full: what waits before that is no more than coordinates.
    """

    def __init__(self, detect: Detect, batch_size: int, drawers: ThreadPoolExecutor) -> None:
        self._detect, self._batch_size, self._drawers = detect, batch_size, drawers
        self._waiting: dict[tuple[int, tuple[int, int]], list[Sight]] = {}
        self._drawn: tuple[list[Sight], Future[NDArray[np.uint8]]] | None = None

    def add(self, sight: Sight) -> None:
        """Let a view wait for its batch, which is looked at once it is full."""
        sight.picture.num_open += 1
        key = (sight.network, sight.view.size_hw)
        self._waiting.setdefault(key, []).append(sight)
        if len(self._waiting[key]) == self._batch_size:
            self._start(self._waiting.pop(key))

    def settle(self, picture: Picture) -> None:
        """Look at whatever of a picture still waits, full batch or not."""
        if picture.num_open:
            shows = (key for key, sights in self._waiting.items() if any(one.picture is picture for one in sights))
            for key in list(shows):
                self._start(self._waiting.pop(key))
        if picture.num_open:
            self._look()

    def _start(self, sights: list[Sight]) -> None:
        drawn = self._drawers.submit(_drawn, sights)
        self._look()
        self._drawn = (sights, drawn)

    def _look(self) -> None:
        """Have the network see the batch that was drawn last, if there is one."""
        if self._drawn is None:
            return
        (sights, drawn), self._drawn = self._drawn, None
        for sight, raw in zip(sights, self._detect(sights[0].network, drawn.result()), strict=True):
            sight.picture.answers[sight.channel].append(Answer(sight.view, raw))
            sight.picture.num_open -= 1


def _drawn(sights: Sequence[Sight]) -> NDArray[np.uint8]:
    batch = np.empty((len(sights), *sights[0].view.size_hw, 3), np.uint8)
    for canvas, sight in zip(batch, sights, strict=True):
        canvas[:] = sight.view.drawn(sight.picture.image)
    return batch
