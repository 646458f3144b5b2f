"""Runs of experiments: trained by the command line as a user would, resumed where they were stopped, measured once.

A folder WORK holds the runs in WORK/out and a line of JSON for each that is finished in WORK/results.jsonl.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = ("map", "map50", "map75")


def anchorite(*words: object) -> str:
    """Run a command; what it prints."""
    command = [sys.executable, "-m", "anchorite", *map(str, words)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def train_or_resume(run: Path, data: Path, flags: Sequence[object]) -> None:
    """Train, or go on with a run that was stopped; nothing where it is finished."""
    if (run / "last.safetensors").exists() and (run / "summary.json").exists():
        return
    run.parent.mkdir(parents=True, exist_ok=True)
    if any((run / "checkpoints").glob("*")):
        anchorite("train", "--resume", run)
    else:
        shutil.rmtree(run, ignore_errors=True)
        anchorite("train", data, *flags, "--out", run)


def metrics_on_test(weights: Path, data: Path, image_size: int) -> dict[str, Any]:
    """The metrics of weights on the split test, as `anchorite validate --json` writes them."""
    words = (weights, data, "--split", "test", "--image-size", image_size, "--json")
    return json.loads(anchorite("validate", *words))["metrics"]


def rounded(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The three figures of `METRICS`."""
    return {name: round(metrics[name], 4) for name in METRICS}


def read_results(work: Path) -> list[dict[str, Any]]:
    """The lines of all finished runs."""
    path = work / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_result(work: Path, result: Mapping[str, Any]) -> None:
    """Note a finished run, and print it."""
    line = json.dumps(result)
    with (work / "results.jsonl").open("a") as file:
        file.write(f"{line}\n")
    print(line, flush=True)
