"""Runs benchmarks and prints their comparisons: `python -m benchmarks loss|step|loader|epoch|predict|growth|all`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from anchorite.benchmark import machine
from anchorite.devices import choose_device, keep_freed_memory
from benchmarks.epoch import benchmark_epoch
from benchmarks.growth import benchmark_growth
from benchmarks.loader import benchmark_loader
from benchmarks.loss import benchmark_loss
from benchmarks.measure import BusyMeter, Outcome, Report, Settings, busy_warning, to_lines
from benchmarks.predict import benchmark_predict
from benchmarks.step import benchmark_step

BENCHMARKS: Mapping[str, Callable[[Settings], Outcome]] = MappingProxyType(
    {
        "loss": benchmark_loss,
        "step": benchmark_step,
        "loader": benchmark_loader,
        "epoch": benchmark_epoch,
        "predict": benchmark_predict,
        "growth": benchmark_growth,
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks asked for, print them and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", choices=["all", *BENCHMARKS], help="all: everything but growth, takes minutes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, help="dataset with images; default: scenes drawn for the purpose")
    parser.add_argument("--json", type=Path, help="file for everything measured")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement; default: enough for each")
    parser.add_argument("--out", type=Path, help="folder for the curves of growth as PNG")
    parser.add_argument("--plain-memory", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds: shows that it runs")
    options = parser.parse_args(arguments)
    settings = Settings(
        choose_device(options.device), options.rounds, options.data, options.quick, options.out, options.plain_memory
    )
    names = [name for name in BENCHMARKS if name != "growth"] if options.which == "all" else [options.which]
    report = run_benchmarks(names, settings, shlex.join(["python", "-m", "benchmarks", *(arguments or sys.argv[1:])]))
    for outcome in report.outcomes:
        print("\n".join(to_lines(outcome)))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
        print(options.json)


def run_benchmarks(names: Sequence[str], settings: Settings, command: str) -> Report:
    """Run the named benchmarks, one after another."""
    facts = machine(settings.device)
    is_kept = settings.device.type == "cpu" and not settings.plain_memory and keep_freed_memory()
    facts["freed_memory"] = "kept, for ours and the yardsticks alike" if is_kept else "left to the allocator"
    outcomes: list[Outcome] = []
    warnings = ["quick: sizes and rounds are too small to say anything about speed"] if settings.quick else []
    for name in names:
        print(f"benchmark {name} ...")
        others = BusyMeter()
        outcomes.append(BENCHMARKS[name](settings))
        busy = others.cores()
        outcomes[-1].facts["cores_used_by_others"] = round(busy, 2)
        warning = busy_warning(busy)
        if warning is not None:
            warnings.append(f"{name}: {warning}")
    return Report(command, facts, tuple(outcomes), tuple(warnings))


if __name__ == "__main__":
    main()
