"""Working memory that lasts from one sample of a batch to the next."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LINE = 64  # bytes of a cache line, and of the widest vector


class Scratch:
    """Byte arrays by name, kept for the next who asks: the first touch of fresh memory costs as much as work on it.

    For one thread at a time; an array is the asker's until the same name is asked for again.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, *shape: int, skew: int = 8) -> NDArray[np.uint8]:
        """A uint8 array of this shape, whatever it holds, that begins `skew` bytes after a cache line does.

        OpenCV's split and merge write past the cache, several times slower for whoever reads next, when all they write
        to is aligned alike: give their outputs different skews, none a multiple of 3.
        """
        size = math.prod(shape)
        kept = self._arrays.get(name)
        if kept is None or kept.size < size:
            kept = np.empty(size + _LINE + skew, np.uint8)
            kept = self._arrays[name] = kept[-kept.ctypes.data % _LINE + skew :]
        return kept[:size].reshape(shape)
