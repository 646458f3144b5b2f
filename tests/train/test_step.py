"""What a step does for an accelerator: shapes that stay, losses looked at late, one graph for the compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import Batch
from anchorite.devices import choose_compile
from anchorite.loss import LossTerms
from anchorite.train import Event, RunFolder, RunStarted, train
from anchorite.train.checkpoint import PartialEpoch
from anchorite.train.events import ignore
from anchorite.train.loop import AsyncLossMeter, Run
from anchorite.train.setup import prepare
from anchorite.train.step import Objective
from tests.processes import ForkedProcess
from tests.train.runs import scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def terms(box: float) -> LossTerms:
    return LossTerms(*(torch.tensor(value) for value in (99.0, box, 2.0, 3.0)))


@pytest.mark.parametrize(("count", "capacity"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 256)])
def test_capacity_is_a_power_of_two_that_holds_every_target_and_region(count: int, capacity: int) -> None:
    rows, regions = torch.rand(count, 6), torch.rand(count, 5)
    for targets, of_regions in ((count, 0), (0, count)):
        coverage = LabelCoverage(regions[:of_regions], torch.ones(1, 3, dtype=torch.bool))
        batch = replace(BATCH, targets=Targets.from_rows(rows[:targets]), coverage=coverage)
        padded = batch.with_fixed_capacity()
        assert torch.equal(padded.targets.compact().rows, rows[:targets])
        assert padded.coverage is not None
        found = padded.coverage.ignore_regions
        assert found is not None
        assert torch.equal(found[:of_regions], regions[:of_regions])
        assert not found[of_regions:].any()
        assert (len(padded.targets), len(found)) == ((capacity, 64) if targets else (64, capacity))
        assert padded.with_fixed_capacity() is padded


def watch_with(lag: int) -> tuple[AsyncLossMeter, list[tuple[dict[str, Any], tuple[Batch, ...]]]]:
    skipped: list[tuple[dict[str, Any], tuple[Batch, ...]]] = []
    watch = AsyncLossMeter(CPU, lambda *step: skipped.append(step))
    watch.lag = lag
    return watch, skipped


BATCH = Batch(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), Targets.from_rows(torch.zeros(0, 6)), torch.tensor([7]))
FINE, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


@pytest.mark.parametrize("lag", [0, 2])
def test_the_watch_takes_means_over_all_batches_however_late_it_looks(lag: int) -> None:
    watch, skipped = watch_with(lag)
    for box in (1.0, 2.0, 6.0):
        watch.update(terms(box), BATCH)
        watch.update_step(FINE)
    assert watch.means.tolist() == ([3.0, 2.0, 3.0] if lag == 0 else [1.0, 2.0, 3.0])
    assert watch.flush().tolist() == [3.0, 2.0, 3.0]
    watch.start(epoch=1)
    assert watch.flush().tolist() == [0.0, 0.0, 0.0]
    assert skipped == []


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_watch_names_the_step_that_was_skipped_and_leaves_its_batch_out(lag: int, bad: float) -> None:
    watch, skipped = watch_with(lag)
    watch.start(epoch=4)
    for box, norm, fault in ((1.0, FINE, None), (bad, BAD, "the box loss"), (3.0, BAD, None), (2.0, FINE, None)):
        watch.update(terms(box), BATCH)
        watch.update_step(norm, fault)
    watch.update(terms(6.0), BATCH)
    watch.update_step(BAD)
    assert watch.flush().tolist() == [3.0, 2.0, 3.0]
    assert [(one["epoch"], one["batch"], one["in_a_row"]) for one, _ in skipped] == [(5, 2, 1), (5, 3, 2), (5, 5, 1)]
    facts, batches = skipped[0]
    assert facts["not_finite"] == "the box loss"
    assert (facts["losses"]["objectness"], facts["losses"]["classification"]) == ("2.0", "3.0")
    assert batches == (BATCH,)
    assert watch.num_skipped == 3


def test_a_step_of_several_batches_is_skipped_with_all_of_them() -> None:
    watch, skipped = watch_with(0)
    watch.update(terms(1.0), BATCH)
    watch.update(terms(2.0), BATCH)
    watch.update_step(BAD)
    assert [len(batches) for _, batches in skipped] == [2]


def test_a_step_that_is_still_under_way_at_the_end_is_looked_at() -> None:
    watch, skipped = watch_with(2)
    watch.update(terms(float("nan")), BATCH)
    watch.update_step(BAD)
    assert skipped == []
    watch.flush()
    assert [one["batch"] for one, _ in skipped] == [1]


def test_a_watch_goes_on_within_an_epoch() -> None:
    watch, _ = watch_with(0)
    watch.start(2, PartialEpoch(batches=3, images=9, loss_sums=(2.0, 4.0, 6.0), finite_batches=2, skipped=1))
    watch.update(terms(4.0), BATCH)
    assert watch.flush().tolist() == [2.0, 2.0, 3.0]
    assert (watch.num_batches, watch.num_skipped) == (4, 1)


def test_compiling_is_for_gpus_with_one_size() -> None:
    assert not choose_compile("auto", CPU, one_size=True)[0]
    assert choose_compile("auto", CUDA, one_size=True)[0]
    assert not choose_compile("auto", CUDA, one_size=False)[0]
    assert choose_compile("on", CPU, one_size=False) == (True, "as requested")
    assert choose_compile("off", CUDA, one_size=True) == (False, "as requested")
    for name in ("auto", "on"):
        compiled, why = choose_compile(name, CUDA, one_size=True, synchronised_norm=True)  # type: ignore[arg-type]
        assert not compiled
        assert "SyncBatchNorm" in why


def test_only_full_batches_go_through_the_compiled_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def only_watch(function: Callable[..., LossTerms], **options: object) -> Callable[..., LossTerms]:
        assert options == {"fullgraph": True, "dynamic": False}

        def call(images: torch.Tensor, *others: Any) -> LossTerms:
            shapes.append(len(images))
            return function(images, *others)

        return call

    monkeypatch.setattr(torch, "compile", only_watch)
    recipe = small_recipe(compile="on")
    run = Run(recipe, RunFolder(tmp_path), prepare(recipe, scenes()), ignore)
    run.first_batch = 0
    run.train_epoch()
    assert run.progress.partial.batches == 3
    assert shapes == [4, 4], "of 10 images, 4 a batch"


def test_a_deterministic_run_says_so_and_ends_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_run: Run) -> None:
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError

    monkeypatch.setattr(Run, "train_epoch", look)
    events: list[Event] = []
    with pytest.raises(KeyError):
        train(small_recipe(deterministic=True), scenes(), tmp_path / "run", events.append)
    assert not torch.are_deterministic_algorithms_enabled()
    decisions = [line for event in events if isinstance(event, RunStarted) for line in event.decisions]
    assert any(line.startswith("deterministic on") for line in decisions)


def test_of_many_shapes_only_the_first_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    state = prepare(small_recipe(), scenes()).train_state
    monkeypatch.setattr(torch, "compile", lambda _function, **_: lambda *given: compiled.append(given[1][0]))
    monkeypatch.setattr(Objective, "_compute", lambda self, *given: eager.append(given[1][0]))
    compiled: list[torch.Tensor] = []
    eager: list[torch.Tensor] = []
    objective = Objective(state.detector, state.criterion, None, compiled_for=2)
    for capacity in (*range(1, 12), 1, 11):
        objective(torch.zeros(2, 3, 32, 32), (torch.zeros(capacity, 6), None), (), None)
    assert [len(rows) for rows in compiled] == [*range(1, 9), 1]
    assert [len(rows) for rows in eager] == [9, 10, 11, 11]


@pytest.mark.slow
def test_the_whole_step_compiles_without_a_break() -> None:
    # In a process of its own: the checks of shapes that tests put around functions cannot be compiled.
    process = ForkedProcess("tests.train.compiled:compare", "aot_eager")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
