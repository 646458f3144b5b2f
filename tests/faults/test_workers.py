"""Loader processes that are killed, stopped or raise, at any moment: the run ends with exit 6 and leaves nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anchorite.cli import run
from anchorite.data import Loader, open_dataset
from anchorite.data.batches import LoaderConfig
from anchorite.errors import WorkerError
from anchorite.train import StepDone, resume
from tests.cli.commands import data_folder, quick_recipe, started
from tests.cli.test_processes import members_of_session
from tests.data.test_loader import host_loader, is_running, make_samples, wait_for_end, worker_processes
from tests.faults.watch import shared_memory, unchanged
from tests.processes import ForkedProcess

TIMEOUT_S = 1.0


def descriptors() -> Counter[str]:
    """The kinds of this process's open files; memory files among them."""
    kinds: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            kinds[str(entry.readlink()).split(":")[0]] += 1
        except OSError:
            continue  # that of the listing itself
    return kinds


@contextmanager
def nothing_left() -> Iterator[None]:
    """Holds the block to leave no process, open file, thread or shared memory behind."""
    gc.collect()
    before, num_threads, memory = descriptors(), threading.active_count(), shared_memory()
    yield
    gc.collect()
    assert multiprocessing.active_children() == []
    assert not descriptors() - before  # an earlier test's may have been closed meanwhile
    assert threading.active_count() <= num_threads
    assert shared_memory() <= memory


def at_a_moment(rng: random.Random, processes: list[int], number: signal.Signals) -> threading.Timer:
    """Sends a signal to one of the processes, some time from now."""
    victim = rng.choice(processes)
    timer = threading.Timer(rng.random() * 0.2, os.kill, [victim, number])
    timer.start()
    return timer


def run_for_long(loader: Loader) -> None:
    for epoch in range(10_000):
        loader.set_epoch(epoch)
        list(loader)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_ends_the_pass_in_time_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    samples = make_samples(tmp_path, 40)
    with nothing_left():
        for seed in range(3):
            rng = random.Random(seed)
            loader = host_loader(samples, LoaderConfig(batch_size=2, workers=2, worker_timeout_s=TIMEOUT_S))
            next(iter(loader))  # and no more of it: one pass at a time
            processes = worker_processes(loader)
            timer = at_a_moment(rng, processes, number)
            began = time.monotonic()
            with pytest.raises(WorkerError, match=r"a data worker \(process \d+\) .* while working on .*\.png"):
                run_for_long(loader)
            assert time.monotonic() - began < TIMEOUT_S + 15
            timer.join()
            wait_for_end(processes)
            loader.close()
        del loader, timer
    assert not any(map(is_running, processes))


def _stops_in_mid_answer(orders: Any, *_: object) -> None:
    orders.recv()
    os.write(orders.fileno(), struct.pack("!i", 1_000_000) + b"the beginning of an answer")
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_worker_that_stops_in_the_middle_of_its_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorite.data.host_loader._work", _stops_in_mid_answer)
    samples = make_samples(tmp_path)
    with nothing_left():
        with host_loader(samples, LoaderConfig(workers=1, worker_timeout_s=TIMEOUT_S)) as loader:
            began = time.monotonic()
            with pytest.raises(WorkerError, match="gave no batch for 1 s"):
                list(loader)
            assert time.monotonic() - began < TIMEOUT_S + 15
        del loader


def test_a_worker_that_dies_between_two_passes_is_noticed_and_all_are_ended(tmp_path: Path) -> None:
    with host_loader(make_samples(tmp_path, 40), LoaderConfig(batch_size=2, workers=2)) as loader:
        next(iter(loader))  # and no more of it: answers are still under way
        processes = worker_processes(loader)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        with pytest.raises(WorkerError, match="killed by signal 9"):
            list(loader)
        wait_for_end(processes)


def test_a_worker_that_hangs_ends_training_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", data_folder(), "--recipe", quick_recipe(), "--workers", "2", "--epochs", "5000"]
    words += ["--set", f"worker_timeout_s={TIMEOUT_S}"]
    stopper = threading.Thread(target=_stop_a_child, daemon=True)
    with unchanged(data_folder()):
        stopper.start()
        code = run([str(word) for word in [*words, "--out", tmp_path / "run"]])
    message = capsys.readouterr().err
    assert code == 6
    assert "gave no batch for 1 s while working on " in message
    assert f"anchorite train --resume {tmp_path / 'run'}" in message
    assert "Traceback" not in message
    assert multiprocessing.active_children() == []
    # The field may be changed in the run's own recipe, and the run goes on.
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("worker_timeout_s: 1.0", "worker_timeout_s: 60.0"))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", open_dataset(data_folder()), _interrupt)
    assert multiprocessing.active_children() == []


def _interrupt(event: object) -> None:
    if isinstance(event, StepDone):
        raise KeyboardInterrupt


def _stop_a_child() -> None:
    while not (children := multiprocessing.active_children()):
        time.sleep(0.02)
    time.sleep(1)
    os.kill(int(children[0].pid or 0), signal.SIGSTOP)


def training(out: Path, *more: str) -> ForkedProcess:
    words = ["--recipe", quick_recipe(), "--workers", "2", "--epochs", "100000", "--out", str(out)]
    return started("train", str(data_folder()), *words, *more)


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_worker_of_a_real_run_is_killed(seconds: float, tmp_path: Path) -> None:
    before = shared_memory()
    with unchanged(data_folder()):
        process = training(tmp_path / "run")
        wait_until(lambda: len(members_of_session(process.pid)) == 2)
        time.sleep(seconds)
        os.kill(members_of_session(process.pid)[-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "was killed by signal 9" in errors
    assert ".jpg" in errors or "before its first sample" in errors
    assert "Traceback" not in errors
    assert members_of_session(process.pid) == []
    assert shared_memory() == before


@pytest.mark.slow
def test_no_worker_outlives_a_real_run_that_is_killed_not_even_a_stopped_one(tmp_path: Path) -> None:
    before = shared_memory()
    process = training(tmp_path / "run")
    wait_until(lambda: (tmp_path / "run" / "metrics.csv").exists())
    children = members_of_session(process.pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGSTOP)
    process.kill()
    try:
        wait_until(lambda: members_of_session(process.pid) == [])
    finally:
        for child in members_of_session(process.pid):
            os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)
    assert shared_memory() == before


def test_an_image_that_spoils_during_a_run_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = Path(shutil.copytree(data_folder(), tmp_path / "data"))
    image = sorted((data / "images" / "train").iterdir())[3]

    def spoil() -> None:
        wait_until(lambda: (tmp_path / "run" / "metrics.csv").exists())
        image.write_bytes(b"spoilt")

    spoiler = threading.Thread(target=spoil, daemon=True)
    spoiler.start()
    words = ["train", data, "--recipe", quick_recipe(), "--workers", "2", "--epochs", "100000", "--set", "store=none"]
    assert run([str(word) for word in [*words, "--out", tmp_path / "run"]]) == 6
    errors = capsys.readouterr().err
    assert f".jpg: no training sample can be made of it: InputError: {image}: not a JPEG" in errors
    assert "Traceback" not in errors
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_of_it_where_workers_are_spawned(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
import anchorite.data.host_loader as host_loader
from anchorite.data import open_dataset
from anchorite.train import load_recipe, train

class Elsewhere:
    platform = "darwin"  # which decides that workers are spawned

    def __getattr__(self, name):
        return getattr(sys, name)

host_loader.sys = Elsewhere()
print("imported")
recipe = load_recipe({quick_recipe()!r}, epochs=1, workers=1)
train(recipe, open_dataset({str(data_folder())!r}), "run")
""",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("anchorite.errors.WorkerError: a data worker (process ")
    assert 'under `if __name__ == "__main__":`' in last
    assert done.stderr.count("Traceback") == 1  # none of a worker
    assert done.stdout.count("imported") <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "script.py"]
