"""`anchorite benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import DEVICE, PositiveInt
from anchorite.errors import InputError


def benchmark(
    which: Annotated[
        Literal["step", "predict", "all", "loss", "loader", "epoch", "growth"] | None,
        Parameter(show_choices=False, help="step (training) or predict; without it, both."),
    ] = None,
    *,
    device: Annotated[str, DEVICE] = "auto",
    data: Annotated[Path | None, Parameter(help="Dataset whose first image is predicted; default: noise.")] = None,
    json: Annotated[Path | None, Parameter(help="File for everything measured, as JSON.")] = None,
    rounds: Annotated[PositiveInt | None, Parameter(help="Rounds of each measurement; default: 25.")] = None,
    out: Annotated[Path | None, Parameter(show=False)] = None,
    plain_memory: Annotated[
        bool, Parameter(help="Leave the C library's allocator as it is; training tunes it.")
    ] = False,
    quick: Annotated[bool, Parameter(help="Small sizes, two rounds: shows that it runs, not how fast.")] = False,
) -> None:
    """Measure how fast this machine trains and predicts.

    Comparisons with yardsticks (loss, loader, epoch, growth) run from a checkout: python -m benchmarks --help.
    """
    import json as json_format
    import shlex
    import sys
    from dataclasses import asdict

    from anchorite.benchmark import Figure, machine, predict_figures, step_figures
    from anchorite.devices import choose_device, keep_freed_memory
    from anchorite.files import write_text_atomically

    if which not in (None, "step", "predict") or out is not None:
        raise InputError(
            f"benchmark {which or '--out'}: comparisons and curves run from a checkout of the source: "
            f"python -m benchmarks {which or 'growth --out FOLDER'}"
        )
    chosen = choose_device(device)
    is_kept = chosen.type == "cpu" and not plain_memory and keep_freed_memory()
    facts = {**machine(chosen), "freed_memory": "kept" if is_kept else "left to the allocator"}
    outcomes: list[tuple[str, list[Figure]]] = []
    if which != "predict":
        outcomes.append(("step", step_figures(chosen, rounds, quick)))
    if which != "step":
        outcomes.append(("predict", predict_figures(chosen, rounds, quick, data)))
    for name, figures in outcomes:
        print("\n".join(f"{name}: {figure.to_text()}" for figure in figures))
    warnings = ["quick: sizes and rounds are too small to say anything about speed"] if quick else []
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if json is not None:
        report = {
            "command": shlex.join(["anchorite", *sys.argv[1:]]),
            "warnings": warnings,
            "machine": facts,
            "outcomes": [{"name": name, "figures": [asdict(one) for one in figures]} for name, figures in outcomes],
        }
        write_text_atomically(json, json_format.dumps(report, indent=1) + "\n")
        print(json)
