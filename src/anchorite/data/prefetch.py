"""Items that a thread makes before they are needed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TypeVar

from anchorite.interrupts import HeldInterrupts

Item = TypeVar("Item")


def prefetch(
    make: Callable[[threading.Event], Generator[Item, None, None]],
    depth: int,
    stop: threading.Event | None = None,
    flush: Item | None = None,
) -> Generator[Item, None, None]:
    """The items of `make(stop)`, of which a thread makes up to `depth` before they are needed.

    Exceptions surface in their turn. Leaving early sets `stop` and waits for the item being made. Whoever passes an
    event as `stop` may set it, too: `make` then has to end soon, and the items made until then are still delivered.
    flush: an item to yield whenever no other is ready, so that the user can finish what it has; None waits. OpenCV and
    torch release the interpreter lock, so the thread's work overlaps its user's.
    """
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(maxsize=depth)  # last: why there are no more
    left = threading.Event()
    stop = left if stop is None else stop

    def hand_over(entry: tuple[Item] | BaseException | None) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                return

    def produce() -> None:
        end: BaseException | None = None
        try:
            with closing(make(stop)) as items:
                for item in items:
                    hand_over((item,))
                    if left.is_set():
                        break
        except BaseException as error:
            end = error
        hand_over(end)

    thread = threading.Thread(target=produce, name="anchorite-prefetch", daemon=True)
    try:
        with HeldInterrupts():  # in the midst of a start, an interrupt would leave a thread that nobody ends
            thread.start()
        while True:
            if flush is not None and ready.empty():
                yield flush
            entry = ready.get()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        left.set()
        stop.set()
        with HeldInterrupts():
            if thread.is_alive():
                thread.join()
