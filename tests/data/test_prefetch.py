"""Items made ahead: in order, errors in their turn, and no thread left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator

import pytest

from anchorite.data.prefetch import prefetch


def test_items_come_ahead_in_order_and_errors_in_their_turn() -> None:
    made = []

    def make(_stop: threading.Event) -> Generator[int, None, None]:
        for number in range(5):
            made.append(number)
            yield number
        raise KeyError("after five")

    items = prefetch(make, depth=2)
    for expected in range(5):
        assert next(items) == expected
        time.sleep(0.02)
        assert len(made) <= expected + 4
    with pytest.raises(KeyError, match="after five"):
        next(items)


def test_leaving_early_stops_the_thread() -> None:
    ended = threading.Event()

    def make(_stop: threading.Event) -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    items = prefetch(make, depth=2)
    next(items)
    items.close()
    assert ended.is_set()
    assert not any(thread.name == "anchorite-prefetch" for thread in threading.enumerate())


def test_an_interrupt_while_the_thread_starts_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    items = prefetch(lambda _stop: (number for number in range(1000)), 1)
    with pytest.raises(KeyboardInterrupt):
        next(items)
    assert "anchorite-prefetch" not in [thread.name for thread in threading.enumerate()]


def test_what_is_not_there_yet_is_told_and_a_stop_hands_over_what_was_made() -> None:
    stop, go_on = threading.Event(), threading.Event()

    def make(end: threading.Event) -> Generator[int, None, None]:
        go_on.wait()
        yield 1
        end.wait()
        yield 2

    items = prefetch(make, 4, stop, flush=-1)
    assert next(items) == -1
    go_on.set()
    assert next(items) == 1
    stop.set()
    assert [item for item in items if item != -1] == [2]
    assert not any(thread.name == "anchorite-prefetch" for thread in threading.enumerate())


def test_an_error_comes_after_what_came_before_it_also_with_flush_items() -> None:
    def make(_stop: threading.Event) -> Generator[int, None, None]:
        yield 1
        raise OSError("gone")

    items, seen = prefetch(make, 4, threading.Event(), flush=-1), []
    with pytest.raises(OSError, match="gone"):
        seen.extend(item for item in items if item != -1)
    assert seen == [1]
    assert not any(thread.name == "anchorite-prefetch" for thread in threading.enumerate())
