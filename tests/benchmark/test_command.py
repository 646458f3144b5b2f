"""Each benchmark runs from end to end, at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchorite.benchmark.suite import benchmarks
from anchorite.cli import run


@pytest.mark.slow
@pytest.mark.parametrize("name", list(benchmarks()))
def test_quick_benchmark_from_end_to_end(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert run(["benchmark", name, "--quick", "--device", "cpu", "--json", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [outcome["name"] for outcome in report["outcomes"]] == [name]
    comparisons = report["outcomes"][0]["comparisons"]
    assert comparisons
    for one in comparisons:
        assert one["ours"]["value"] > 0
        assert one["yardstick"]["value"] > 0
    assert any("quick" in warning for warning in report["warnings"])


@pytest.mark.slow
def test_growth_is_plotted(tmp_path: Path) -> None:
    assert run(["benchmark", "growth", "--quick", "--device", "cpu", "--rounds", "1", "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"growth-{name}.png" for name in ("batch", "classes", "dataset", "objects", "size")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_a_taken_folder_and_an_unknown_benchmark_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["benchmark", "growth", "--quick", "--out", str(tmp_path)]) == 2
    assert run(["benchmark", "speed"]) == 2
    said = capsys.readouterr().err
    assert "nothing is ever overwritten" in said
    assert "speed" in said
