"""Ctrl-C and SIGTERM at moments when they do no harm."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class HeldInterrupts:
    """Inside the block the first Ctrl-C or SIGTERM waits until its end, or until `take_effect`; the next one acts at
    once, unless it comes within `repeat_s` seconds of the first.

    To act is to call the handler that the signal had before. on_first: called as soon as the first one comes. Does
    nothing outside the main thread, where signals do not arrive, for signals that no Python function handles, and where
    it is `off`.
    """

    def __init__(self, off: bool = False, repeat_s: float = 0.0, on_first: Callable[[], Any] = lambda: None) -> None:
        self.pending: int | None = None
        self._off, self._repeat_s, self._on_first = off, repeat_s, on_first
        self._pending_since = 0.0
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> HeldInterrupts:
        if not self._off and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.pending is None:
            self.pending, self._pending_since = number, time.monotonic()
            self._on_first()
        elif time.monotonic() - self._pending_since >= self._repeat_s:
            self._handlers[number](number, frame)

    def take_effect(self) -> None:
        """Call the handler of the signal that waits; nothing without one."""
        if self.pending is not None:
            number, self.pending = self.pending, None
            self._handlers[number](number, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is None:
            self.take_effect()
