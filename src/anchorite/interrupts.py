"""Ctrl-C and SIGTERM at moments when they do no harm."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)
_ONE_AND_THE_SAME_S = 1.0


class HeldInterrupts:
    """Inside the block the first Ctrl-C or SIGTERM waits until its end; a second one takes effect at once.

    What they do then is what they would have done without: their handlers are called. Does nothing outside the main
    thread, where signals do not arrive, and for signals that no Python function handles.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: int | None = None

    def __enter__(self) -> HeldInterrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _HELD:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._waiting is None:
            self._waiting = number
        else:
            self._handlers[number](number, frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._waiting is not None and error is None:
            self._handlers[self._waiting](self._waiting, None)


class DeferredInterrupts:
    """Inside the block Ctrl-C and SIGTERM are deferred until `take_effect` calls their handlers.

    A second one a moment later takes effect at once. A deferred signal takes effect at the block's end at the latest.
    Does nothing outside the main thread, and for signals that no Python function handles. off: do nothing at all.
    """

    def __init__(self, off: bool = False) -> None:
        self.pending: int | None = None
        self._off = off
        self._pending_since = 0.0
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> DeferredInterrupts:
        if not self._off and threading.current_thread() is threading.main_thread():
            for number in _HELD:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._defer)
        return self

    def _defer(self, number: int, frame: FrameType | None) -> None:
        # torchrun may pass on a Ctrl-C that has reached this process already: the same one, not a second.
        if self.pending is not None and time.monotonic() - self._pending_since > _ONE_AND_THE_SAME_S:
            self._handlers[number](number, frame)
        if self.pending is None:
            self.pending, self._pending_since = number, time.monotonic()

    def take_effect(self) -> None:
        """Call the handler of the deferred signal; nothing without one."""
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
