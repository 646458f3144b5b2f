"""Items made by a thread ahead of their use."""

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
    lull: Item | None = None,
) -> Generator[Item, None, None]:
    """The items of `make(stop)`, made by a thread up to `depth` ahead of their use; exceptions surface in their turn.

    Leaving early sets `stop` and waits for the item being made. Whoever gives an event as `stop` may set it, too:
    `make` then has to end soon, and what it made until then is still handed over. lull: an item that comes wherever
    none has been made yet; None waits. OpenCV and torch release the interpreter lock, so the thread's work overlaps
    its user's.
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

    thread = threading.Thread(target=produce, name="anchorite-ahead", daemon=True)
    try:
        with HeldInterrupts():  # in the midst of a start, an interrupt would leave a thread that nobody ends
            thread.start()
        while True:
            if lull is not None and ready.empty():
                yield lull
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
