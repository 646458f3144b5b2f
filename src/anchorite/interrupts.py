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


class NotedInterrupts:
    """Inside the block Ctrl-C and SIGTERM are only noted, for `take_effect` to do what they would have done.

    A second one a moment later takes effect at once. What was noted and not taken takes effect at the block's end.
    Does nothing outside the main thread, and for signals that no Python function handles. off: do nothing at all.
    """

    def __init__(self, off: bool = False) -> None:
        self.noted: int | None = None
        self._off = off
        self._noted_at = 0.0
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> NotedInterrupts:
        if not self._off and threading.current_thread() is threading.main_thread():
            for number in _HELD:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun may pass on a Ctrl-C that has reached this process already: the same one, not a second.
        if self.noted is not None and time.monotonic() - self._noted_at > _ONE_AND_THE_SAME_S:
            self._handlers[number](number, frame)
        if self.noted is None:
            self.noted, self._noted_at = number, time.monotonic()

    def take_effect(self) -> None:
        """What the noted one would have done; nothing where none was noted."""
        if self.noted is not None:
            number, self.noted = self.noted, None
            self._handlers[number](number, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is None:
            self.take_effect()
