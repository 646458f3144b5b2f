"""`anchorite benchmark`, and each benchmark of the source tree, from end to end at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchorite.cli import run
from benchmarks.__main__ import BENCHMARKS, main


def test_the_command_measures_steps_and_predictions(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert run(["benchmark", "--quick", "--device", "cpu", "--rounds", "1", "--json", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [outcome["name"] for outcome in report["outcomes"]] == ["step", "predict"]
    figures = [figure for outcome in report["outcomes"] for figure in outcome["figures"]]
    assert {figure["unit"] for figure in figures} == {"s", "img/s"}
    assert all(figure["value"] > 0 for figure in figures)
    assert report["machine"]["versions"].keys() == {"anchorite", "python", "torch", "numpy", "opencv"}
    assert report["warnings"]


@pytest.mark.parametrize("name", ["loss", "loader", "epoch", "growth", "all", "speed"])
def test_comparisons_are_refused_with_the_command_that_runs_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", name]) == 2
    assert (f"python -m benchmarks {name}" in capsys.readouterr().err) == (name != "speed")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_quick_benchmark_from_end_to_end(name: str, tmp_path: Path) -> None:
    result, curves = tmp_path / "result.json", tmp_path / "curves"
    main([name, "--quick", "--device", "cpu", "--rounds", "1", "--json", str(result), "--out", str(curves)])
    (outcome,) = json.loads(result.read_text(encoding="utf-8"))["outcomes"]
    assert outcome["name"] == name
    assert outcome["comparisons"]
    for one in outcome["comparisons"]:
        assert one["ours"]["value"] > 0
        assert one["yardstick"]["value"] > 0
    assert {path.suffix for path in curves.glob("*")} == ({".png"} if name == "growth" else set())
