"""Many texts in two flat arrays, where a Python string each would take several times the room."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class StringArray:
    """Strings one behind the other: data, their bytes (uint8), and starts, where each begins and the last one ends."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.starts[index] : self.starts[index + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


class StringArrayBuilder:
    """Gathers strings, any that Python can hold: half characters stand for the bytes of file names that are no text."""

    def __init__(self) -> None:
        self._data, self._starts = bytearray(), array("q", [0])

    def append(self, text: str) -> int:
        """Add a text; its index."""
        self._data += text.encode("utf-8", "surrogatepass")
        self._starts.append(len(self._data))
        return len(self._starts) - 2

    def texts(self) -> StringArray:
        """All of them; nothing may be added afterwards."""
        return StringArray(as_array(self._data, np.uint8), as_array(self._starts, np.int64))

    @classmethod
    def of(cls, texts: Iterable[str]) -> StringArray:
        """These texts."""
        builder = cls()
        for text in texts:
            builder.append(text)
        return builder.texts()


def as_array(buffer: bytearray | array[int] | array[float], kind: type[Scalar]) -> NDArray[Scalar]:
    """A read-only array over a buffer, which can no longer grow then."""
    flat = np.frombuffer(buffer, kind)
    flat.flags.writeable = False
    return flat
