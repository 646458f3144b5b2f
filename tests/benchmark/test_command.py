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
