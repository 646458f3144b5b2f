"""Several ranks under torchrun: one killed, raising or stopped, signals, restarts, and data of an odd size: row 23."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anchorite.cli import run as run_command
from anchorite.train.checkpoint import found_checkpoints
from tests.cli.commands import data_folder, quick_recipe
from tests.distributed.launched import (
    BY_STEP,
    ENDLESS,
    EPOCHS,
    TIMEOUT_S,
    Launched,
    bits,
    finished,
    standalone,
    start,
    train_words,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]


def end(process: Launched, within_s: float) -> tuple[str, float]:
    """What a launcher said until it ended, and how long that took."""
    begun = time.monotonic()
    _, errors = process.communicate(timeout=within_s + 30)
    taken = time.monotonic() - begun
    assert taken < within_s
    assert process.returncode != 0
    return errors, taken


def ours(errors: str) -> list[str]:
    """What the ranks said, without what torchrun did."""
    return [line for line in errors.splitlines() if line.startswith("anchorite: ")]


@pytest.mark.parametrize(("number", "what"), [(signal.SIGKILL, "is gone"), (signal.SIGSTOP, "was stopped")])
def test_a_rank_that_is_killed_or_stopped_is_named_and_ends_all(number: int, what: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(train_words(run, *ENDLESS))
    wait_for_checkpoint(run)
    world = process.ranks()
    assert len(world) == 2
    os.kill(world[1], number)
    errors, _ = end(process, TIMEOUT_S + 15)
    (said,) = ours(errors)
    assert said.startswith(f"anchorite: rank 1 (process {world[1]} on "), errors
    assert what in said
    assert f"anchorite train --resume {run}" in errors
    assert not any(Path(f"/proc/{rank}").exists() for rank in world)
    assert any(one.progress is not None for one in found_checkpoints(run / "checkpoints"))


def test_a_rank_that_raises_is_quoted_and_ends_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run, *ENDLESS)
    process = Launched(standalone(), "tests.faults.faulty:fail_in_rank_one", "the disk of rank 1 is full", words)
    errors, _ = end(process, 90)  # with the start of all ranks
    said = ours(errors)
    assert said == ["anchorite: rank 1: the disk of rank 1 is full"], errors
    assert errors.count("Traceback") == 1, "torchrun's own"


def test_after_a_restart_the_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(train_words(run, *BY_STEP), restarts=1)
    wait_for_checkpoint(run)
    os.kill(process.ranks()[1], signal.SIGKILL)
    output, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    assert "resumed after" in output
    assert bits(run) == bits(finished())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_checkpoint_from_which_ranks_go_on_bit_for_bit(number: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(train_words(run, *BY_STEP))
    wait_for_checkpoint(run)
    process.send_signal(number)
    errors, _ = end(process, 30)
    assert f"anchorite train --resume {run}" in errors
    process = start(["train", "--resume", str(run)])
    output, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    assert "resumed after" in output
    assert bits(run) == bits(finished())


def test_another_number_of_ranks_is_refused_unless_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished(), tmp_path / "run"))  # other tests of this process look at the original
    (run / "summary.json").unlink()
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"epochs: {EPOCHS}\n", f"epochs: {EPOCHS + 1}\n", 1))
    words = ["train", "--resume", str(run), "--allow", "recipe"]
    assert run_command(words) == 2
    refused = capsys.readouterr().err
    assert "ranks: 2 then, 1 now" in refused
    assert "--allow ranks" in refused
    assert run_command([*words, "--allow", "ranks"]) == 0
    assert f"resumed after epoch {EPOCHS}" in capsys.readouterr().out


def test_restarts_need_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert run_command(["train", str(data_folder()), "--recipe", quick_recipe()]) == 2
    assert "--max-restarts without --out" in capsys.readouterr().err


def test_ranks_need_an_image_each_which_one_of_them_says(tmp_path: Path) -> None:
    # As a user starts it: no process of this one is forked.
    words = ["-m", "torch.distributed.run", *standalone(), "-m", "anchorite"]
    words = [sys.executable, *words, *train_words(tmp_path / "run", "--batch", "1")]
    process = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert process.returncode != 0
    (said,) = ours(process.stderr)
    assert "batch 1 for 2 ranks" in said
    assert not (tmp_path / "run").exists()
