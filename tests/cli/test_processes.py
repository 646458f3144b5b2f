"""The command line as real processes: Ctrl-C, signals, full disks, closed pipes, progress while it runs."""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.train import RunFolder
from tests.cli.commands import COMMAND, contents, data_folder, quick_recipe, started, weights
from tests.processes import ForkedProcess

pytestmark = pytest.mark.slow


def members_of_session(session: int) -> list[int]:
    """Living processes (zombies are not) of a session, without its leader."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            state, *fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(fields[2]) == session and state != "Z" and int(entry.name) != session:
            members.append(int(entry.name))
    return members


def training(out: Path, *more: str) -> ForkedProcess:
    return started("train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), *more)


def read_until(process: ForkedProcess, start: str) -> None:
    for line in process.stdout:
        if line.strip().startswith(start):
            return
    pytest.fail(f"it ended without a line that starts with {start!r}: {process.communicate()}")


@pytest.mark.parametrize(
    ("number", "workers", "code", "name"),
    [
        (signal.SIGINT, "0", 130, "interrupted"),
        (signal.SIGTERM, "2", 143, "terminated"),
    ],
)
def test_a_signal_ends_a_run_cleanly_and_it_can_be_gone_on_with(
    number: signal.Signals, workers: str, code: int, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    process = training(out, "--epochs", "40", "--workers", workers)
    # Output is a pipe, so that this line comes while the run goes on also shows that progress is flushed.
    read_until(process, "1/40")
    children = members_of_session(process.pid)
    assert len(children) == int(workers)
    # As Ctrl-C does it: to the whole group; SIGTERM to the command alone.
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert errors.splitlines() == [
        f"anchorite: {name}",
        f"to go on with the run: anchorite train --resume '{out}'",
    ]
    assert members_of_session(process.pid) == []
    done = len(RunFolder(out).read_rows())
    assert 1 <= done < 40
    # A shorter recipe, so that the test need not wait for the rest.
    recipe = out / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 40", f"epochs: {done + 1}"))
    assert run(["train", "--resume", str(out), "--allow", "recipe"]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"resumed after (batch \d+ of \d+ of epoch {done + 1}|epoch {done}) of {done + 1}", output)
    assert len(RunFolder(out).read_rows()) == done + 1
    assert (out / "report.html").is_file()


def test_a_run_that_is_interrupted_before_its_first_checkpoint_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    process = training(out)
    read_until(process, "run: ")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "--resume" in errors
    assert run(["train", "--resume", str(out)]) == 0
    output = capsys.readouterr().out
    # Where a batch or an epoch was done before the signal came, there is a checkpoint after all.
    assert re.search(r"starts over|resumed after (batch \d+ of \d+ of )?epoch", output)
    assert len(RunFolder(out).read_rows()) == 2


def test_a_full_disk_ends_a_run_with_the_last_checkpoint_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = training(out)
    # Weights of model n take 7 MB, a checkpoint three times as much: no checkpoint can be finished.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4
    assert errors.startswith(f"anchorite: {out / 'checkpoints'}")
    assert "cannot be written" in errors
    assert "MB free there" in errors
    assert f"anchorite train --resume {out}" in errors
    assert "Traceback" not in errors
    assert not [path for path in contents(out) if path.name.endswith(".tmp") or path.parent.name == "checkpoints"]
    assert run(["train", "--resume", str(out)]) == 0


def test_output_that_nobody_reads_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [*COMMAND, "recipes"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=300
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_run_whose_output_nobody_reads_any_more_says_how_to_go_on(tmp_path: Path) -> None:
    process = training(tmp_path / "run", "--epochs", "40")
    read_until(process, "run: ")
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    assert process.stderr.read() == f"anchorite: to go on with the run: anchorite train --resume {tmp_path / 'run'}\n"


def test_a_closed_output_is_no_error() -> None:
    quoted = shlex.join([*COMMAND, "recipes"])
    process = subprocess.run(
        ["sh", "-c", f"exec {quoted} >&-"], stderr=subprocess.PIPE, text=True, check=False, timeout=300
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_output_on_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [*COMMAND, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    assert process.returncode == 4
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr


def test_names_that_the_terminal_cannot_spell_are_escaped(tmp_path: Path) -> None:
    image = tmp_path / "\u00fcber.png"
    image.write_bytes(next((data_folder() / "images" / "val").iterdir()).read_bytes())
    words = ["predict", weights(), str(image), "--out", str(tmp_path / "out")]
    process = started(*words, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert "\\xfcber.png: " in output


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_inside_a_destructor_is_not_lost(number: str, code: int) -> None:
    script = f"""
import signal, time
import anchorite.cli as cli
class Closing:
    def __del__(self):
        signal.raise_signal(signal.{number})
def run(words, debug):
    try:
        Closing()
        for _ in range(400):
            time.sleep(0.05)
        return 0
    except KeyboardInterrupt as error:
        return cli.tell(error)
cli.run = run
cli.main([])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    said = "interrupted" if code == 130 else "terminated"
    assert (ended.returncode, ended.stderr) == (code, f"anchorite: {said}\n")
