"""Ctrl-C and SIGTERM to real runs: a checkpoint, the right code, no process and no memory left: row 10."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from anchorite.train.checkpoint import found_checkpoints
from tests.cli.commands import data_folder, quick_recipe, started
from tests.cli.test_processes import members_of_session, read_until
from tests.faults.watch import shared_memory
from tests.processes import ForkedProcess

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]

LONG = ("--epochs", "40", "--set", "checkpoint_minutes=0.0")


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGINT, 130, "0"), (signal.SIGTERM, 143, "2")], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_at_any_moment_leaves_a_checkpoint_and_no_process(
    number: signal.Signals, code: int, workers: str, tmp_path: Path
) -> None:
    moments = random.Random(int(number))
    out, memory, points = tmp_path / "run", shared_memory(), [0]
    words = [str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), "--workers", workers, *LONG]
    for _ in range(3):
        process = started("train", *words)
        read_until(process, "run: ")
        time.sleep(moments.uniform(0.3, 1.5))
        process.send_signal(number)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - begun < 30
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        assert f"anchorite train --resume {out}" in errors
        assert members_of_session(process.pid) == []
        newest = next(iter(found_checkpoints(out / "checkpoints")))
        assert newest.progress is not None
        points.append(newest.progress.epoch * 1000 + newest.progress.partial.batches)
        words = ["--resume", str(out)]
    assert points == sorted(set(points)), "each time it went further"
    assert shared_memory() == memory


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    # The first Ctrl-C waits for the end of the step, the second does not.
    words = ["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(tmp_path / "run")]
    process = ForkedProcess("tests.faults.faulty:take_a_minute", words)
    read_until(process, "run: in a step")
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
