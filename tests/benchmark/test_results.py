"""Ratios, targets and the shape of a report."""

from __future__ import annotations

import json

import torch

from anchorite.benchmark import Figure, Sample, machine
from benchmarks.measure import (
    Comparison,
    Floor,
    Outcome,
    Report,
    Target,
    busy_warning,
    cost,
    faster,
    matmul_rate,
    memory_rate,
)

SAMPLES = {"ours": Sample((1.0, 2.0, 3.0)), "plain": Sample((4.0, 8.0, 30.0))}


def test_faster_is_the_yardsticks_time_over_ours() -> None:
    one = faster("ours", "plain", SAMPLES, "time", 5.0)
    assert one.ratio == 4.0
    assert one.met is False
    assert one.spread == (4.0, 7.0)
    assert faster("ours", "plain", SAMPLES, "time", 4.0).met is True
    assert faster("ours", "plain", SAMPLES, "time", None).met is None


def test_cost_is_our_time_over_the_yardsticks() -> None:
    assert cost("ours", "plain", SAMPLES, "time", 0.3).ratio == 0.25
    assert cost("ours", "plain", SAMPLES, "time", 0.3).met is True
    assert cost("ours", "plain", SAMPLES, "time", 0.2).met is False


def test_images_a_second_have_their_quartiles_the_right_way_round() -> None:
    figure = Figure.per_second("loader", Sample((1.0, 2.0, 4.0)), 8)
    assert figure.value == 4.0
    assert figure.quartiles == (8 / 3.0, 8 / 1.5)


def outcome() -> Outcome:
    peak = Comparison(
        "peak", Figure("ours", 2.0**20, "B"), Figure("plain", 2.0**23, "B"), "cost", None, Target("at most", 0.15)
    )
    timed = faster("ours", "plain", SAMPLES, "time", 5.0)
    timed = Comparison(timed.name, timed.ours, timed.yardstick, "faster", timed.spread, timed.target, Floor(0.1, "air"))
    return Outcome("loss", (timed, peak), (Figure("share", float("nan"), "share"),), {"batch": 16})


def test_a_report_is_plain_json_with_ratios_and_verdicts() -> None:
    report = Report("anchorite benchmark", machine(torch.device("cpu")), (outcome(),), ("busy",))
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read["command"] == "anchorite benchmark"
    assert read["warnings"] == ["busy"]
    assert {"cpu", "cores", "threads", "versions", "date", "cpu_flags", "load_average"} <= read["machine"].keys()
    assert {"python", "torch", "numpy", "opencv", "anchorite"} == read["machine"]["versions"].keys()
    timed, peak = read["outcomes"][0]["comparisons"]
    assert (timed["ratio"], timed["met"], timed["spread"]) == (4.0, False, [4.0, 7.0])
    assert timed["target"] == {"bound": "at least", "value": 5.0}
    assert timed["floor"] == {"value": 0.1, "what": "air"}
    assert (peak["ratio"], peak["met"], peak["floor"]) == (0.125, True, None)
    assert read["outcomes"][0]["figures"][0]["value"] is None


def test_only_a_busy_machine_is_warned_of() -> None:
    assert busy_warning(0.1) is None
    assert busy_warning(float("nan")) is None
    assert "1.5 cores" in str(busy_warning(1.5))


def test_rates_are_positive_and_take_any_size() -> None:
    device = torch.device("cpu")
    assert memory_rate(1, device, rounds=1) > 0
    assert memory_rate(1 << 20, device, rounds=1) > 0
    assert matmul_rate(torch.bfloat16, device, side=16, rounds=1) > 0
