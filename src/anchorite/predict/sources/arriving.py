"""Sources whose next item may take long to come: read by a thread, with a `LULL` wherever none is there yet."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from anchorite.interrupts import HeldInterrupts
from anchorite.predict.sources.frames import LULL


@dataclass(frozen=True)
class _Ended:
    """What comes last out of the queue: why."""

    error: BaseException | None


def arriving(
    make: Callable[[threading.Event], Generator[Any, None, None]], stop: threading.Event, depth: int
) -> Generator[Any, None, None]:
    """The items of `make(stop)`, made by a thread up to `depth` ahead of their use; exceptions surface in their turn.

    Once `stop` is set, `make` has to end soon; what it made until then is still handed over. Leaving early sets `stop`.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def hand_over(item: Any) -> None:
        while not left.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
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

    thread = threading.Thread(target=produce, name="anchorite-source", daemon=True)
    try:
        with HeldInterrupts():  # in the midst of a start, an interrupt would leave a thread that nobody ends
            thread.start()
        while True:
            try:
                item = ready.get_nowait()
            except queue.Empty:
                yield LULL
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
