"""`Frame`: a picture that is already read, and what it is a picture of; `LULL`: nothing more is there at present.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections


@dataclass(frozen=True)
class Video:
    """What frames belong to: its name as given, frames a second, if it goes on for ever, each how many-th is used."""

    name: str
    fps: float
    is_live: bool = False
    every: int = 1


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture (H, W, 3) uint8 RGB. Of a video: its number, counted from 0 before any is left out, and its time."""

    image: UInt8[NDArray[np.uint8], "H W 3"]
    name: str
    video: Video | None = None
    number: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, image: UInt8[NDArray[np.uint8], "H W 3"], video: Video, number: int, seconds: float) -> Frame:
        """A frame of a video, named after both."""
        return cls(image, f"{video.name} frame {number}", video, number, seconds)


class Lull:
    """What a source yields between its images when there is none for now and waiting for one may take long.

    `Predictor.stream` then answers what it has, instead of filling a batch first.
    """


LULL = Lull()


class Underway:
    """The frames that are being looked at, so that detections, which know but a name, find theirs again."""

    def __init__(self) -> None:
        self._frames: dict[str, Frame] = {}

    def noting(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same items, frames noted in passing."""
        for item in items:
            if isinstance(item, Frame):
                self._frames[item.name] = item
            yield item

    def frame_of(self, detections: Detections) -> Frame | None:
        """The frame of a result, forgotten with that; None for images that were given otherwise."""
        return self._frames.pop(detections.source, None)


def entry_of(detections: Detections, frame: Frame | None = None) -> dict[str, Any]:
    """`Detections.to_dict`, and for a frame of a video that as source, with the frame's number and its time."""
    entry = detections.to_dict()
    if frame is None or frame.video is None:
        return entry
    place = {"source": frame.video.name, "frame": frame.number, "seconds": round(frame.seconds, 3)}
    return {**place, **{name: value for name, value in entry.items() if name != "source"}}
