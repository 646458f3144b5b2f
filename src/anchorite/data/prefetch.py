"""Items that a thread makes before they are needed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from anchorite.interrupts import HeldInterrupts

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Ended:
    """What comes last out of the queue: why."""

    error: BaseException | None


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
    ready: queue.Queue[Item | _Ended] = queue.Queue(maxsize=depth)
    left = threading.Event()
    stop = left if stop is None else stop

    def hand_over(item: Item | _Ended) -> None:
        while not left.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        """What the thread does: hand over each item, then why there are no more."""
        error: BaseException | None = None
        items = make(stop)
        try:
            for item in items:
                hand_over(item)
                if left.is_set():
                    break
        except BaseException as raised:
            error = raised
        finally:
            items.close()
        hand_over(_Ended(error))

    thread = threading.Thread(target=produce, name="anchorite-prefetch", daemon=True)
    try:
        with HeldInterrupts():  # in the midst of a start, an interrupt would leave a thread that nobody ends
            thread.start()
        while True:
            if flush is not None and ready.empty():
                yield flush
            item = ready.get()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        left.set()
        stop.set()
        with HeldInterrupts():
            if thread.is_alive():
                thread.join()
