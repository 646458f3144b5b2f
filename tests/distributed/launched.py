"""Runs of several ranks under torchrun, as a user starts them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import load_file

from anchorite.train import RunFolder
from tests.cli.commands import data_folder, quick_recipe
from tests.distributed.machines import LOOPBACK, Machine
from tests.processes import ForkedProcess

TIMEOUT_S = 5.0
EPOCHS = 3
BY_STEP = ("--epochs", str(EPOCHS), "--set", "checkpoint_minutes=1e-9", "--set", f"rank_timeout_s={TIMEOUT_S}")
ENDLESS = ("--epochs", "400", "--set", "checkpoint_minutes=1e-9", "--set", f"rank_timeout_s={TIMEOUT_S}")


class Launched(ForkedProcess):
    """torchrun with ranks that are forked too: each calls `function` with `arguments`. Its options come first."""

    def __init__(self, options: Sequence[str], function: str, *arguments: Any, machine: Machine = LOOPBACK[0]) -> None:
        self._ranks = Path(mkdtemp())
        there = ("tests.distributed.machines:inside", machine.namespace)
        words = [*options, "--no-python", "rank"]  # a program that is never started: see `torchrun`
        call = ("tests.distributed.launched:torchrun", words, str(self._ranks), [*there, function, *arguments])
        super().__init__(*there, *call, env=os.environ | {"NO_COLOR": "1", "GLOO_SOCKET_IFNAME": machine.device})

    def ranks(self) -> list[int]:
        """The processes that torchrun started last, by rank."""
        return [int(path.read_text()) for path in sorted(self._ranks.iterdir())]


def torchrun(words: list[str], ranks: str, call: Sequence[Any]) -> None:
    """What torchrun does with these words, but that ranks are forked; the number of each is a file of a folder."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.run import main

    def started(args: Any, env: dict[str, str], stdout: None, stderr: None, start_new_session: bool) -> ForkedProcess:
        process = ForkedProcess(*call, stdout=stdout, stderr=stderr, env=env)
        (Path(ranks) / env["RANK"]).write_text(str(process.pid))
        return process

    subprocess_handler.Popen = started  # type: ignore[misc, assignment]
    main(words)


def start(words: Sequence[str], count: int = 2, restarts: int = 0) -> Launched:
    """torchrun with several ranks of the command line."""
    return Launched(standalone(count, restarts), "anchorite.cli:main", list(words))


def standalone(count: int = 2, restarts: int = 0) -> list[str]:
    """The options of torchrun for ranks of one machine."""
    return ["--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts)]


def train_words(out: Path, *more: str) -> list[str]:
    return ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), *more]


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
