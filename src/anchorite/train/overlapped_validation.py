"""An epoch whose metrics are computed while the next one trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from anchorite.evaluate import ValidationResult
from anchorite.model import Detector
from anchorite.train.progress import Progress


class OverlappedValidation:
    """An epoch that is validated but not concluded. row: its metrics so far; progress: the run's, at its end.

    finish: computes the metrics, in a thread; None on ranks other than the first, which have no metrics and no copy of
    the averaged weights.
    """

    def __init__(
        self,
        row: dict[str, float],
        progress: Progress,
        averaged: Detector,
        finish: Callable[[], ValidationResult] | None,
    ) -> None:
        self.row, self.progress = row, progress
        self.averaged: Detector | None = None
        self._future: Future[ValidationResult] | None = None
        if finish is not None:
            self.averaged = copy.deepcopy(averaged)
            pool = ThreadPoolExecutor(1, thread_name_prefix="anchorite-metrics")
            self._future = pool.submit(finish)
            pool.shutdown(wait=False)

    @property
    def are_ready(self) -> bool:
        """Whether they are there; never on ranks other than the first."""
        return self._future is not None and self._future.done()

    def result(self) -> ValidationResult | None:
        """The metrics, waited for; None on ranks other than the first."""
        return None if self._future is None else self._future.result()
