"""`Frame`: an image that is read, and where it came from; `FLUSH`: no more sources are there at present.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.data.images import decode_image
from anchorite.errors import InputError

_WANTED = "give numpy arrays (H, W, 3) of uint8 in RGB order, Pillow images or paths"


@dataclass(frozen=True)
class Video:
    """A video, camera or stream: its name as given, frames a second, whether it is endless; each `every`-th is used."""

    name: str
    fps: float
    is_live: bool = False
    every: int = 1


@dataclass(frozen=True, eq=False)
class Frame:
    """An image (H, W, 3) uint8 RGB and its name; of a video, its number (from 0, counting unused ones) and its time."""

    image: UInt8[NDArray[np.uint8], "H W 3"]
    name: str
    video: Video | None = None
    number: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, image: UInt8[NDArray[np.uint8], "H W 3"], video: Video, number: int, seconds: float) -> Frame:
        """A frame of a video, named after both."""
        return cls(image, f"{video.name} frame {number}", video, number, seconds)


FLUSH: Any = object()
"""What a source yields between its images when there is none for now and waiting for one may take long:
`Predictor.stream` then yields all results that are due instead of filling a batch first."""


def each_source(sources: Any) -> Iterator[Any]:
    """The images of `sources` one by one: a single image or path stands for itself, anything iterable for its items.

    An array of four axes is a batch of images. Raises InputError when it is none of these.
    """
    is_batch = isinstance(sources, np.ndarray) and sources.ndim == 4
    if not is_batch and (isinstance(sources, str | Path | np.ndarray | Frame) or _is_pillow(sources)):
        yield sources
    elif isinstance(sources, Iterable):
        yield from sources
    else:
        raise InputError(f"images cannot be taken from {type(sources).__name__}; {_WANTED}")


def read_frame(source: Any) -> Frame:
    """The frame of a path, an array or a Pillow image, named by its path where that is known; a Frame as it is.

    A file is turned as its EXIF orientation says; a Pillow image is taken as its pixels lie, so that boxes fit what the
    caller holds. Raises InputError (StorageError, if the disk refuses) naming the file, or shape and type and remedy.
    """
    if isinstance(source, Frame):
        return source
    if isinstance(source, str | Path):
        return Frame(decode_image(source), str(source))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise InputError(f"an image array of shape {source.shape} and type {source.dtype} was given; {_WANTED}")
        return Frame(source, "")
    if _is_pillow(source):
        if source.mode[0] in "IF":
            raise InputError(
                f"a Pillow image of mode {source.mode} was given, whose brightness has no fixed range; "
                "scale it to 8 bits first"
            )
        return Frame(np.asarray(source.convert("RGB")), str(getattr(source, "filename", "") or ""))
    raise InputError(f"an image cannot be taken from {type(source).__name__}; {_WANTED}")


def _is_pillow(source: Any) -> bool:
    """Whether it behaves like a Pillow image; Pillow itself is never imported."""
    return all(hasattr(source, name) for name in ("mode", "size", "convert", "getbands"))
