"""What reading a dataset found wrong and what it did about it, gathered over all files and raised once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anchorite.data.dataset import Adjustment, AdjustmentKind
from anchorite.data.index_cache import Dependencies
from anchorite.errors import InputError
from anchorite.reading import printable

MAX_LISTED = 20
_LONGEST_ORIGIN = 5000  # a path has up to 4096 letters


class ReadingLog:
    """Collects the bad rows and the adjustments of one dataset.

    With `skip_bad`, whatever is bad is left out and becomes an Adjustment("skipped-bad"); otherwise it is counted, and
    `raise_if_bad` ends the reading. `split` is the one being read, as the readers set it. `dependencies`: the
    files and folders that were read.
    """

    def __init__(self, skip_bad: bool) -> None:
        self.skip_bad = skip_bad
        self.split: str | None = None
        self.num_bad = 0
        self.dependencies = Dependencies()
        self._listed: list[str] = []
        self._adjustments: list[Adjustment] = []

    @property
    def adjustments(self) -> tuple[Adjustment, ...]:
        """The adjustments so far, in reading order."""
        return tuple(self._adjustments)

    def adjusted(self, kind: AdjustmentKind, origin: str, detail: str, **known: Any) -> None:
        """Record what was done to a label that is well-formed but not usable; `known`: more fields of Adjustment."""
        origin, detail = printable(origin, _LONGEST_ORIGIN), printable(detail)
        self._adjustments.append(Adjustment(kind, origin, detail, split=self.split, **known))

    def bad(self, origin: str, reason: str, image: Path | None = None) -> None:
        """Record a malformed row, annotation or image, which the caller then leaves out."""
        if self.skip_bad:
            self.adjusted("skipped-bad", origin, reason, image=image)
            return
        self.num_bad += 1
        if len(self._listed) < MAX_LISTED:
            self._listed.append(f"{printable(origin, _LONGEST_ORIGIN)}: {printable(reason)}")

    def raise_if_bad(self, root: Path) -> None:
        """Raise one InputError with the first 20 bad rows and their total count, if there is any."""
        if not self.num_bad:
            return
        shown = f", the first {MAX_LISTED}" if self.num_bad > MAX_LISTED else ""
        noun = "error" if self.num_bad == 1 else "errors"
        raise InputError(
            f"{root}: {self.num_bad} {noun} in the labels{shown}:\n"
            + "\n".join(f"  {line}" for line in self._listed)
            + "\nCorrect them, or pass --skip-bad (skip_bad=True) to leave these out and count them"
        )
