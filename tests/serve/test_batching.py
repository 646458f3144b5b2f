"""Batches form of what waits, answers come to whom they belong, and a crowd is refused at once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from anchorite.serve import Batcher, BusyError


def test_what_waits_is_run_together_and_each_gets_its_own() -> None:
    batches: list[list[int]] = []
    go_on = threading.Event()

    def run(items: list[int]) -> list[int]:
        batches.append(items)
        go_on.wait(10)
        return [item * 10 for item in items]

    async def crowd() -> list[int]:
        async with Batcher(run, max_batch=4, max_waiting=10) as batcher:
            tasks = [asyncio.create_task(batcher.submit(0))]
            while not batches:  # the first is under way, alone
                await asyncio.sleep(0.001)
            tasks += [asyncio.create_task(batcher.submit(item)) for item in range(1, 7)]
            await asyncio.sleep(0.01)
            go_on.set()
            return await asyncio.gather(*tasks)

    assert asyncio.run(crowd()) == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_more_than_may_wait_is_refused_at_once_and_the_others_are_answered() -> None:
    go_on = threading.Event()
    started = threading.Event()

    def run(items: list[int]) -> list[int]:
        started.set()
        go_on.wait(10)
        return items

    async def crowd() -> tuple[int, list[int]]:
        async with Batcher(run, max_batch=1, max_waiting=2) as batcher:
            tasks = [asyncio.create_task(batcher.submit(0))]
            while not started.is_set():
                await asyncio.sleep(0.001)
            tasks += [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
            await asyncio.sleep(0)
            refused = 0
            for _ in range(3):
                try:
                    await batcher.submit(9)
                except BusyError:
                    refused += 1
            go_on.set()
            return refused, list(await asyncio.gather(*tasks))

    assert asyncio.run(crowd()) == (3, [0, 1, 2])


def test_an_error_reaches_its_batch_and_the_next_one_is_run() -> None:
    def run(items: list[int]) -> list[int]:
        if items == [1]:
            raise ValueError("one")
        return items

    async def two() -> int:
        async with Batcher(run, max_batch=1, max_waiting=2) as batcher:
            with pytest.raises(ValueError, match="one"):
                await batcher.submit(1)
            return await batcher.submit(2)

    assert asyncio.run(two()) == 2


def test_who_has_left_is_not_computed_for() -> None:
    batches: list[list[int]] = []
    go_on = threading.Event()

    def run(items: list[int]) -> list[int]:
        batches.append(items)
        go_on.wait(10)
        return items

    async def leave() -> int:
        async with Batcher(run, max_batch=4, max_waiting=4) as batcher:
            first = asyncio.create_task(batcher.submit(0))
            while not batches:
                await asyncio.sleep(0.001)
            left, stays = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
            await asyncio.sleep(0.01)
            left.cancel()
            go_on.set()
            await first
            return await stays

    assert asyncio.run(leave()) == 2
    assert batches == [[0], [2]]
