"""`anchorite benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE


def benchmark(
    which: Annotated[
        Literal["all", "loss", "step", "loader", "epoch", "predict", "growth"],
        Parameter(help="Which benchmark; all of them, but for growth, take minutes."),
    ] = "all",
    *,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data: Annotated[Path | None, Parameter(help="Dataset with images; default: scenes drawn for the purpose.")] = None,
    json: Annotated[Path | None, Parameter(help="File for everything measured, as JSON.")] = None,
    rounds: Annotated[
        int | None, Parameter(validator=AT_LEAST_ONE, help="Rounds of each measurement; default: enough for each.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="New or empty folder for the curves of growth as PNG.")] = None,
    plain_memory: Annotated[
        bool, Parameter(negative="", help="Leave the C library's allocator as it is, which training does not.")
    ] = False,
    quick: Annotated[
        bool, Parameter(negative="", help="Small sizes, two rounds: shows that it runs, not how fast.")
    ] = False,
) -> None:
    """Measure speed and memory against plain yardsticks and physical floors of this machine."""
    import json as json_format
    import shlex
    import sys

    from anchorite.benchmark.results import to_lines
    from anchorite.benchmark.settings import Settings
    from anchorite.benchmark.suite import benchmarks, run_benchmarks
    from anchorite.cli.folders import refuse_taken
    from anchorite.devices import choose_device
    from anchorite.files import write_text_atomically

    if out is not None:
        refuse_taken(out)
    names = [name for name in benchmarks() if name != "growth"] if which == "all" else [which]
    settings = Settings(choose_device(device), rounds, data, quick, out, plain_memory)
    command = shlex.join(["anchorite", *sys.argv[1:]])
    report = run_benchmarks(names, settings, command)
    for outcome in report.outcomes:
        print("\n".join(to_lines(outcome)))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if json is not None:
        write_text_atomically(json, json_format.dumps(report.to_json(), indent=1) + "\n")
        print(json)
