"""The golden vectors, and the program that replays them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import golden
from tests.shared import SHARED, shared_path
from tests.unchecked import unchecked_shapes

CASES = sorted(
    path.relative_to(SHARED / "golden").with_suffix("").as_posix() for path in (SHARED / "golden").rglob("*.npz")
)


def copy_with(source: Path, destination: Path, **changed: np.ndarray) -> None:
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert changed.keys() <= arrays.keys()
    np.savez(destination, **{**arrays, **changed})


@pytest.mark.parametrize("name", CASES or ["basic_nc3"])
def test_case_is_replayed_within_tolerance(name: str) -> None:
    report = golden.replay(shared_path(f"golden/{name}.npz"))
    assert report.passed, report.line()
    expected = {"boxes", "loss", "gradient", "balance"} | ({"float32"} if "/" not in name else set())
    assert expected <= report.errors.keys()


def test_only_the_cases_on_decision_borders_are_not_judged_in_float32() -> None:
    paths = sorted(shared_path("golden").glob("*.npz"))
    excluded = [path.stem for path in paths if not golden.GoldenCase(path).same_assignment_in_float32()]
    assert excluded == ["borders", "edges_nonsquare"]


def test_program_passes_over_true_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_with(shared_path("golden/single_match.npz"), tmp_path / "one.npz")
    assert golden.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("ok   one ")


@pytest.mark.parametrize(
    "name", ["total", "terms", "grad1", "balance_after", "total_float32", "row0", "class1", "box_cells0"]
)
def test_program_notices_a_changed_number(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared_path("golden/basic_nc3.npz")
    array = golden.GoldenCase(source).array(0, name).copy()
    assert array.size
    if array.dtype.kind == "i":
        array.flat[0] += 1
    else:
        array.flat[np.abs(array).argmax()] *= 1.0001 if array.dtype == np.float32 else 1 + 1e-11
    copy_with(source, tmp_path / "one.npz", **{f"call0_{name}": array})
    with unchecked_shapes():
        assert golden.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("FAIL one ")


def test_program_notices_another_order_of_candidates(tmp_path: Path) -> None:
    source = shared_path("golden/basic_nc3.npz")
    case = golden.GoldenCase(source)
    names = [f"{name}0" for name in (*golden.PLACE_NAMES, "box_cells")]
    copy_with(source, tmp_path / "one.npz", **{f"call0_{name}": case.array(0, name)[::-1] for name in names})
    assert golden.main([str(tmp_path)]) == 1


def test_program_says_that_a_folder_has_no_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main([str(tmp_path)]) == 2
    assert "no golden case" in capsys.readouterr().err
    assert golden.main([str(tmp_path / "absent")]) == 2
    assert golden.main([]) == 2


def test_program_reports_an_unreadable_case_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    copy_with(shared_path("golden/single_match.npz"), tmp_path / "good.npz")
    assert golden.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL bad")
    assert lines[1].startswith("ok   good")


def test_errors_of_nan_and_of_missing_values_are_failures() -> None:
    report = golden.Report("x")
    report.note("loss", float("nan"))
    report.note("loss", 0.0)
    assert not report.passed
    assert golden.relative_error(np.array([np.nan]), np.array([1.0])) != 0
    assert golden.relative_error(np.zeros(2), np.zeros(3)) == float("inf")
    assert golden.relative_error(np.full(2, 1e-9), np.zeros(2)) == float("inf")
