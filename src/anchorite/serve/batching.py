"""Images of single requests, run together: whatever waits when the network becomes free is its next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """More is waiting than was agreed on."""


class Batcher(Generic[Item, Answer]):
    """Runs `run` in a thread of its own on up to `max_batch` items at a time; nothing is ever waited for to fill one.

    max_waiting: items that may wait; more raise BusyError at once, so that a crowd gets an answer and memory is
    bounded. Use it as an async context: on leaving, what still waits is cancelled.
    """

    def __init__(self, run: Callable[[list[Item]], Sequence[Answer]], max_batch: int, max_waiting: int) -> None:
        self._run, self._max_batch = run, max_batch
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue(max_waiting)
        self._thread = ThreadPoolExecutor(1, "anchorite-network")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher[Item, Answer]:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()
        self._thread.shutdown()

    async def submit(self, item: Item) -> Answer:
        """The answer for one item. Raises BusyError, or what `run` raised for the batch that it was in."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise BusyError from None
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # Whoever asked may have left meanwhile.
            batch = [(item, future) for item, future in batch if not future.done()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._thread, self._run, [item for item, _ in batch])
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
