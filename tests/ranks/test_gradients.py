"""Ranks that share batches, against one process that has them whole: float64, to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ranks.processes import on_ranks

FULL = [(8, 8)]
FEW_TARGETS = [(8, 2)]  # most ranks have none
FEW_IMAGES = [(2, 2)]  # some ranks have nothing at all
IN_TWO = [(8, 8), (5, 3)]  # gathered for one step


def compare(whole: dict[str, Tensor], ranks: list[dict[str, Tensor]]) -> None:
    """Every rank has the gradients, the losses and the balance of the whole batch, to rounding."""
    names = [name for name in whole if not name.startswith("buffer.")]
    assert sum(name.startswith("grad.") for name in names) > 100
    for number, found in enumerate(ranks):
        assert found.keys() == whole.keys()
        for name in names:
            scale = whole[name].abs().max().clamp(min=1e-9)
            difference = ((found[name] - whole[name]).abs().max() / scale).item()
            assert difference < 1e-10, (number, name, difference)
        for name in names:
            assert torch.equal(found[name], ranks[0][name]), "and all have the same bits"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("batches", [FULL, FEW_TARGETS, FEW_IMAGES, IN_TWO], ids=["full", "targets", "images", "two"])
@pytest.mark.parametrize("norm", ["shared", "fixed"])
def test_gradients_are_those_of_a_single_process(
    count: int, batches: list[tuple[int, int]], norm: str, tmp_path: Path
) -> None:
    arguments = {"norm": norm, "batches": batches, "automatic_balance": True, "label_smoothing": 0.1}
    (whole,) = on_ranks(1, "tests.ranks.programs:gradients", tmp_path, **arguments)
    ranks = on_ranks(count, "tests.ranks.programs:gradients", tmp_path, **arguments)
    compare(whole, ranks)
    if norm == "shared":
        for name in (name for name in whole if name.startswith("buffer.")):
            torch.testing.assert_close(ranks[-1][name], whole[name], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [[0], [1]], ids=["first", "last"])
def test_a_batch_that_is_not_finite_on_one_rank_is_left_out_by_all(bad: list[int], tmp_path: Path) -> None:
    arguments = {"norm": "fixed", "batches": IN_TWO, "bad": bad, "focal_gamma": 1.5}
    (whole,) = on_ranks(1, "tests.ranks.programs:gradients", tmp_path, **arguments)
    ranks = on_ranks(2, "tests.ranks.programs:gradients", tmp_path, **arguments)
    finite = [{name: one for name, one in found.items() if bool(one.isfinite().all())} for found in (whole, *ranks)]
    assert {name.split(".")[1] for name in whole.keys() - finite[0].keys()} == {str(bad[0])}
    compare(finite[0], finite[1:])


def test_ranks_talk(tmp_path: Path) -> None:
    count = 3
    for number, found in enumerate(on_ranks(count, "tests.ranks.programs:talk", tmp_path)):
        assert found["sum"].item() == 3
        assert found["own"].item() == number, "what is summed is left as it was"
        assert found["any"].tolist() == [True, False]
        assert found["all"].tolist() == [True, False]
        assert found["first"].tolist() == [0, 5]
        assert found["everyone"].tolist() == [[0] * 3, [1] * 3, [2] * 3]
        assert found["tensors"].item() == 7
        assert found["gathered"].tolist() == ([0, 1, 2] if number == 0 else [-1])
        assert found["lengths"].tolist() == ([0, 1000, 2000] if number == 0 else [])
