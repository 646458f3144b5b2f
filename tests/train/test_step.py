"""What a step does for an accelerator: shapes that stay, losses looked at late, one graph for the compiler."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from anchorite.boxes import Targets
from anchorite.devices import choose_compile
from anchorite.errors import DivergedError
from anchorite.loss import LossTerms
from anchorite.train.loss_watch import LossWatch
from anchorite.train.step import with_fixed_capacity

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def terms(box: float) -> LossTerms:
    return LossTerms(*(torch.tensor(value) for value in (99.0, box, 2.0, 3.0)))


@pytest.mark.parametrize(("count", "capacity"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 256)])
def test_capacity_is_a_power_of_two_that_holds_every_target(count: int, capacity: int) -> None:
    rows = torch.rand(count, 6)
    padded = with_fixed_capacity(Targets.from_rows(rows))
    assert len(padded) == capacity
    assert torch.equal(padded.compact().rows, rows)
    assert with_fixed_capacity(padded) is padded


@pytest.mark.parametrize("lag", [0, 2])
def test_the_watch_takes_means_over_all_batches_however_late_it_looks(lag: int) -> None:
    watch = LossWatch(CPU, "")
    watch.lag = lag
    for box in (1.0, 2.0, 6.0):
        watch.take(terms(box))
    assert watch.means.tolist() == ([3.0, 2.0, 3.0] if lag == 0 else [1.0, 2.0, 3.0])
    assert watch.finish().tolist() == [3.0, 2.0, 3.0]
    watch.start(epoch=1)
    assert watch.finish().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_watch_names_the_batch_that_diverged(lag: int, bad: float) -> None:
    watch = LossWatch(CPU, "rest a while")
    watch.lag = lag
    watch.start(epoch=4)
    watch.take(terms(1.0))
    found = None
    for box in (bad, 1.0, 1.0):
        try:
            watch.take(terms(box))
        except DivergedError as error:
            found = str(error)
            break
    assert found is not None
    assert re.fullmatch(f"training diverged: epoch 5, batch 2: box {bad}, .*; rest a while", found)


def test_a_batch_that_is_still_under_way_at_the_end_is_looked_at() -> None:
    watch = LossWatch(CPU, "")
    watch.lag = 2
    watch.take(terms(float("nan")))
    with pytest.raises(DivergedError, match="batch 1"):
        watch.finish()


def test_compiling_is_for_gpus_with_one_size() -> None:
    assert not choose_compile("auto", CPU, one_size=True)[0]
    assert choose_compile("auto", CUDA, one_size=True)[0]
    assert not choose_compile("auto", CUDA, one_size=False)[0]
    assert choose_compile("on", CPU, one_size=False) == (True, "as asked for")
    assert choose_compile("off", CUDA, one_size=True) == (False, "as asked for")


@pytest.mark.slow
def test_the_whole_step_compiles_without_a_break() -> None:
    # In a process of its own: the checks of shapes that tests put around functions cannot be compiled.
    command = [sys.executable, "-m", "tests.train.compiled", "aot_eager"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["aot_eager:", "equal"]
