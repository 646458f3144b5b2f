"""Ending what would go on for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM)


class EndsWhenInterrupted:
    """Inside the block the first Ctrl-C or SIGTERM sets `stop` and no more; a second one takes effect as ever.

    Does nothing outside the main thread, where signals do not arrive, and for signals that no Python function handles.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> EndsWhenInterrupted:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._end)
        return self

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            self._handlers[number](number, frame)
        self._stop.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
