"""Batches form of what waits, and answers come to whom they belong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from anchorite.serve.app import batched


def test_what_waits_is_run_together_and_each_gets_its_own() -> None:
    batches: list[Sequence[int]] = []
    go_on = threading.Event()

    def run(items: Sequence[int]) -> list[int]:
        batches.append(items)
        go_on.wait(10)
        return [item * 10 for item in items]

    async def crowd() -> list[int]:
        async with batched(run, max_batch=4) as answer_of:
            tasks = [asyncio.create_task(answer_of(0))]
            while not batches:  # the first is under way, alone
                await asyncio.sleep(0.001)
            tasks += [asyncio.create_task(answer_of(item)) for item in range(1, 7)]
            await asyncio.sleep(0.01)
            go_on.set()
            return await asyncio.gather(*tasks)

    assert asyncio.run(crowd()) == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_error_reaches_its_batch_and_the_next_one_is_run() -> None:
    def run(items: Sequence[int]) -> Sequence[int]:
        if items == [1]:
            raise ValueError("one")
        return items

    async def two() -> int:
        async with batched(run, max_batch=1) as answer_of:
            with pytest.raises(ValueError, match="one"):
                await answer_of(1)
            return await answer_of(2)

    assert asyncio.run(two()) == 2


def test_who_has_left_is_not_computed_for() -> None:
    batches: list[Sequence[int]] = []
    go_on = threading.Event()

    def run(items: Sequence[int]) -> Sequence[int]:
        batches.append(items)
        go_on.wait(10)
        return items

    async def leave() -> int:
        async with batched(run, max_batch=4) as answer_of:
            first = asyncio.create_task(answer_of(0))
            while not batches:
                await asyncio.sleep(0.001)
            left, stays = asyncio.create_task(answer_of(1)), asyncio.create_task(answer_of(2))
            await asyncio.sleep(0.01)
            left.cancel()
            go_on.set()
            await first
            return await stays

    assert asyncio.run(leave()) == 2
    assert batches == [[0], [2]]
