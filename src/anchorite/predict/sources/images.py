"""What images may be given as in Python: arrays, Pillow images, paths, frames.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.data.images import decode_image
from anchorite.errors import InputError
from anchorite.predict.sources.frames import Frame

_WANTED = "give numpy arrays (H, W, 3) of uint8 in RGB order, Pillow images or paths"


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


def source_name(source: Any) -> str:
    """Where an image came from, as far as it is known: its path, the name of a frame, or nothing."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Frame):
        return source.name
    return str(getattr(source, "filename", "") or "")


def read_image(source: Any) -> UInt8[NDArray[np.uint8], "H W 3"]:
    """The image (H, W, 3) uint8 RGB behind a path, a frame, an array or a Pillow image.

    A file is turned as its EXIF orientation says; a Pillow image is taken as its pixels lie, so that boxes fit what the
    caller holds. Raises InputError (StorageError, if the disk refuses) naming the file, or shape and type and remedy.
    """
    if isinstance(source, str | Path):
        return decode_image(source)
    if isinstance(source, Frame):
        return source.image
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise InputError(f"an image array of shape {source.shape} and type {source.dtype} was given; {_WANTED}")
        return source
    if _is_pillow(source):
        if source.mode[0] in "IF":
            raise InputError(
                f"a Pillow image of mode {source.mode} was given, whose brightness has no fixed range; "
                "scale it to 8 bits first"
            )
        return np.asarray(source.convert("RGB"))
    raise InputError(f"an image cannot be taken from {type(source).__name__}; {_WANTED}")


def _is_pillow(source: Any) -> bool:
    """Whether it behaves like a Pillow image; Pillow itself is never imported."""
    return all(hasattr(source, name) for name in ("mode", "size", "convert", "getbands"))
