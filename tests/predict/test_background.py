from __future__ import annotations

import threading

import pytest

from anchorite.errors import StorageError
from anchorite.predict import BackgroundWriter


def test_jobs_are_done_in_order_and_a_slow_one_holds_up_who_brings_more() -> None:
    done: list[int] = []
    go_on = threading.Event()
    brought = 0

    def job(number: int):
        def do() -> None:
            go_on.wait(5)
            done.append(number)

        return do

    def bring(behind: BackgroundWriter) -> None:
        nonlocal brought
        for number in range(10):
            behind.do(job(number))
            brought += 1

    with BackgroundWriter(3) as behind:
        bringer = threading.Thread(target=bring, args=(behind,))
        bringer.start()
        bringer.join(0.3)
        assert brought == 4  # one under way, three that wait
        go_on.set()
        bringer.join(5)
    assert done == list(range(10))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("anchorite")]


def test_what_a_job_raises_comes_to_who_brings_the_next_one() -> None:
    def fail() -> None:
        raise StorageError("disk full")

    done: list[int] = []
    with pytest.raises(StorageError, match="disk full"), BackgroundWriter(2) as behind:  # noqa: PT012
        behind.do(fail)
        for _ in range(1000):
            behind.do(lambda: done.append(1))
            threading.Event().wait(0.001)
    assert done == []
    with pytest.raises(StorageError, match="disk full"), BackgroundWriter(2) as behind:
        behind.do(fail)


def test_an_interrupt_leaves_nothing_undone() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), BackgroundWriter(8) as behind:  # noqa: PT012
        for number in range(5):
            behind.do(lambda number=number: (threading.Event().wait(0.02), done.append(number)))
        raise KeyboardInterrupt
    assert done == list(range(5))
