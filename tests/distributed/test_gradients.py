"""World that share batches, against one process that has them whole: float64, to rounding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import on_ranks

FULL = [(8, 8)]
FEW_TARGETS = [(8, 2)]  # most ranks have none
FEW_IMAGES = [(2, 2)]  # some ranks have nothing at all
IN_TWO = [(8, 8), (5, 3)]  # gathered for one step
SETTINGS = {"automatic_balance": True, "label_smoothing": 0.1}
CASES: list[dict[str, Any]] = [
    *({"batches": batches, **SETTINGS} for batches in (FULL, FEW_TARGETS, FEW_IMAGES)),
    {"batches": IN_TWO, "unknown": True, **SETTINGS},
    {"batches": FEW_IMAGES, "padded": True, **SETTINGS},
]
BAD_CASES: list[dict[str, Any]] = [{"batches": IN_TWO, "bad": bad, "focal_gamma": 1.5} for bad in ([0], [1])]


OF_FOUR = (0, 2, 3, 4)  # of the cases, which four ranks take too


@cache
def found(count: int) -> dict[int, list[dict[str, Tensor]]]:
    """By the number of the case, what each of so many ranks found."""
    cases = [*CASES, *BAD_CASES]
    numbers = OF_FOUR if count == 4 else range(len(cases))
    chosen = [cases[number] for number in numbers]
    of_ranks = on_ranks(count, "tests.distributed.programs:all_gradients", Path(mkdtemp()), cases=chosen)
    return {number: [_of_case(one, place) for one in of_ranks] for place, number in enumerate(numbers)}


def _of_case(tensors: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    return {name.partition("/")[2]: one for name, one in tensors.items() if name.startswith(f"{place}/")}


def compare(whole: dict[str, Tensor], world: list[dict[str, Tensor]]) -> None:
    """Every rank has the gradients, the losses and the balance of the whole batch, to rounding."""
    names = [name for name in whole if not name.startswith("buffer.")]
    assert sum(name.startswith("grad.") for name in names) > 100
    for number, of_rank in enumerate(world):
        assert of_rank.keys() == whole.keys()
        for name in names:
            scale = whole[name].abs().max().clamp(min=1e-9)
            difference = ((of_rank[name] - whole[name]).abs().max() / scale).item()
            assert difference < 1e-10, (number, name, difference)
        for name in names:
            assert torch.equal(of_rank[name], world[0][name]), "and all have the same bits"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "number"), [*((2, one) for one in range(len(CASES))), *((4, one) for one in OF_FOUR)]
)
def test_gradients_are_those_of_a_single_process(count: int, number: int) -> None:
    (whole,), world = found(1)[number], found(count)[number]
    compare(whole, world)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BAD_CASES)))
def test_a_batch_that_is_not_finite_on_one_rank_is_left_out_by_all(number: int) -> None:
    (whole,), world = (found(count)[len(CASES) + number] for count in (1, 2))
    finite = [{name: one for name, one in of_rank.items() if bool(one.isfinite().all())} for of_rank in (whole, *world)]
    assert {name.split(".")[1] for name in whole.keys() - finite[0].keys()} == {str(number)}
    compare(finite[0], finite[1:])


def test_ranks_talk(tmp_path: Path) -> None:
    count = 3
    for number, said in enumerate(on_ranks(count, "tests.distributed.programs:talk", tmp_path)):
        assert said["sum"].item() == 3
        assert said["own"].item() == number, "what is summed is left as it was"
        assert said["any"].tolist() == [True, False]
        assert said["all"].tolist() == [True, False]
        assert said["first"].tolist() == [0, 5]
        assert said["everyone"].tolist() == [[0] * 3, [1] * 3, [2] * 3]
        assert said["tensors"].item() == 7
        assert said["gathered"].tolist() == ([0, 1, 2] if number == 0 else [-1])
        assert said["lengths"].tolist() == ([0, 1000, 2000] if number == 0 else [])


def test_no_rank_leaves_before_all_are_done(tmp_path: Path) -> None:
    found = on_ranks(2, "tests.distributed.programs:linger", tmp_path, out=str(tmp_path))
    assert [of_rank["has_left"].item() for of_rank in found] == [False, False]
    assert (tmp_path / "left").exists()
