"""Runs of several ranks under torchrun, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from safetensors.torch import load_file

from anchorite.train import RunFolder
from tests.cli.commands import data_folder, quick_recipe

TIMEOUT_S = 5.0
EPOCHS = 4
BY_STEP = ("--epochs", str(EPOCHS), "--set", "checkpoint_minutes=1e-9", "--set", f"rank_timeout_s={TIMEOUT_S}")
ENDLESS = ("--epochs", "400", "--set", "checkpoint_minutes=1e-9", "--set", f"rank_timeout_s={TIMEOUT_S}")


def start(words: Sequence[str], count: int = 2, restarts: int = 0, module: str = "anchorite") -> subprocess.Popen[str]:
    """torchrun with several ranks of the command line, leader of a session of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [*launcher, "--max-restarts", str(restarts), "-m", module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        start_new_session=True,
    )


def train_words(out: Path, *more: str) -> list[str]:
    return ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), *more]


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, by rank."""
    numbers = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(launcher.pid):
                words = (folder / "environ").read_bytes().split(b"\0")
                rank = next(word for word in words if word.startswith(b"RANK="))
                numbers[int(rank.removeprefix(b"RANK="))] = int(folder.name)
        except (OSError, StopIteration, IndexError):
            continue
    return [numbers[rank] for rank in sorted(numbers)]


def wait_for_checkpoint(run: Path) -> None:
    """Until a run has saved something."""
    give_up = time.monotonic() + 90
    while not list(run.glob("checkpoints/*.json")):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def bits(run: Path) -> dict[str, bytes]:
    """Everything that a run's end is made of."""
    tensors = load_file(run / "checkpoints" / f"epoch-{EPOCHS:04d}.safetensors")
    found = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    untimed = [
        {name: value for name, value in row.items() if "second" not in name} for row in RunFolder(run).read_rows()
    ]
    return {**found, "rows": json.dumps(untimed).encode(), "best": (run / "best.safetensors").read_bytes()}


@cache
def finished() -> Path:
    """A run of two ranks on 10 images in batches of 4, so that ranks have parts of 2, and of 1 in the last batch."""
    run = Path(mkdtemp()) / "run"
    process = start(train_words(run, *BY_STEP))
    output, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    assert "ranks 2: batch 4, 2 images each" in output
    assert output.count("weights: ") == 1, "the first rank alone has a say"
    assert (run / "report.html").is_file()
    return run
