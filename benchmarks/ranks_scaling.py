"""Images a second of one rank against several, and the bytes that they send each other over gloo.

`python benchmarks/ranks_scaling.py DATA --out FILE.json`: rounds of four subjects in turn, runs of two epochs of which
the second counts, one thread a process: one process; two that know nothing of each other, which is all that the machine
has to give; two ranks that share the first one's batch; two ranks with a batch each. The bytes are those through the
loopback device, which nothing else should use meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anchorite.benchmark import machine
from anchorite.data import open_dataset
from anchorite.model import Detector, default_anchors
from anchorite.train import RunFolder

EPOCHS = 2


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="n")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    subjects = {  # launchers, ranks of each, images of their batches
        "one": (1, 1, options.batch),
        "two, apart": (2, 1, options.batch),
        "two, the batch shared": (1, 2, options.batch),
        "two, a batch each": (1, 2, 2 * options.batch),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for _ in range(options.rounds):
        for name, (count, world, batch) in subjects.items():
            with ThreadPoolExecutor(count) as launchers:
                found = list(launchers.map(partial(_run, options, world), [batch] * count))
            runs[name].append({key: sum(one[key] for one in found) for key in found[0]})
            print(name, runs[name][-1], flush=True)
    facts = _facts(options, runs)
    print(json.dumps(facts["figures"], indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


def _run(options: argparse.Namespace, world: int, batch: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        launcher = [] if world == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        settings = {"precision": options.precision, "image_size": options.image_size, "optimizer.nominal_batch": batch}
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        sent = _loopback_bytes()
        flags = ["--model", options.model, "--batch", str(batch), "--epochs", str(EPOCHS), "--device", "cpu", *words]
        subprocess.run(
            [sys.executable, *launcher, "-m", "anchorite", "train", str(options.data), "--out", str(run), *flags],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        sent = _loopback_bytes() - sent
        rows = RunFolder(run).read_rows()
    num_steps = EPOCHS * -(-len(open_dataset(options.data).splits["train"]) // batch)
    return {"images_per_second": float(rows[-1]["images_per_second"]), "bytes_per_step": sent / num_steps}


def _facts(options: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    anchors = default_anchors(options.model)
    classes = len(open_dataset(options.data).class_names)
    parameters = sum(one.numel() for one in Detector(options.model, classes, anchors).parameters())
    speeds = {name: [one["images_per_second"] for one in of_subject] for name, of_subject in runs.items()}
    figures: dict[str, Any] = {}
    for name, of_subject in runs.items():
        # Ratios within a round: what a shared machine gives changes from one round to the next.
        processes = 1 if name == "one" else 2
        ratios = [speed / alone / processes for speed, alone in zip(speeds[name], speeds["one"], strict=True)]
        median = {key: statistics.median(one[key] for one in of_subject) for key in of_subject[0]}
        figures[name] = {**median, "efficiency": statistics.median(ratios), "efficiencies": ratios}
    figures["gradient_bytes"] = 4 * parameters
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(torch.device("cpu")),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "figures": figures,
        "runs": runs,
    }


def _loopback_bytes() -> int:
    """Bytes that have passed through the loopback device since the machine started."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[0])


if __name__ == "__main__":
    main()
