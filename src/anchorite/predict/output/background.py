"""Work that another thread does behind this one's back: drawing, encoding, writing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from anchorite.interrupts import HeldInterrupts

_Job = Callable[[], Any]


class BackgroundWriter:
    """Does jobs one after another in a thread; at most `depth` wait, then whoever brings more has to wait, too.

    What a job raises is raised by the next `do`, or at the end of the `with` block; jobs after it are not done. The end
    waits for all jobs, an interrupt or not: what was brought is done.
    """

    def __init__(self, depth: int) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="anchorite-writer", daemon=True)

    def do(self, job: _Job) -> None:
        """Bring a job; raises what an earlier one raised."""
        if self._error is not None:
            raise self._error
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error

    def __enter__(self) -> BackgroundWriter:
        with HeldInterrupts():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with HeldInterrupts():
            self._jobs.put(None)
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error
