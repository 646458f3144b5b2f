"""Drawing a batch, by whichever process: what it takes, what comes of it, and how failing is told.

Legend: B images, S side of the canvas in pixels, T targets of a batch.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anchorite.errors import WorkerError


class Key(Protocol):
    """What names a sample; it can be pickled."""

    @property
    def record_index(self) -> int:
        """The record that the sample is about."""
        ...


class Samples(Protocol):
    """What batches are drawn from, as `TrainSamples` is; it can be pickled where workers are spawned."""

    image_size: int

    def side(self, key: Any) -> int:
        """The canvas side S of a sample, in pixels."""
        ...

    def place(self, index: int) -> Path:
        """Where the image of a record lies, for messages."""
        ...

    def draw_batch(self, keys: Any, pixels: NDArray[np.uint8], note: Callable[[int], None]) -> NDArray[np.float32]:
        """Draw samples by their keys into `pixels` (B, S, S, 3), noting each record in hand; the targets (T, 6)."""
        ...


@dataclass(frozen=True)
class Failure:
    """What is sent in place of a batch: the error's message, its traceback and the sample's image."""

    message: str
    details: str
    path: Path

    def error(self) -> WorkerError:
        """The failure as an error for the user, the traceback in its notes."""
        error = WorkerError(f"{self.path}: no training sample can be made of it: {self.message}")
        error.add_note(self.details)
        return error


class Drawn(NamedTuple):
    """A batch without its tensors: pixels (B, S, S, 3) uint8, rows (T, 6) float32, and the keys of its samples."""

    pixels: NDArray[np.uint8]
    rows: NDArray[np.float32]
    keys: Sequence[Key]


def draw_batch(
    samples: Samples, keys: Sequence[Key], pixels: NDArray[np.uint8], note: Callable[[int], None] | None = None
) -> NDArray[np.float32] | Failure:
    """Draw each sample into its place of `pixels` (B, S, S, 3); the rows (T, 6) of their targets, or what went wrong.

    `note` is called with the index of the record in hand.
    """
    in_hand = keys[0].record_index

    def noted(index: int) -> None:
        nonlocal in_hand
        in_hand = index
        if note is not None:
            note(index)

    try:
        return samples.draw_batch(keys, pixels, noted)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), samples.place(in_hand))
