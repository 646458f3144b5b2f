"""A file system that fills up or cannot be written: rows 6 and 7."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import data_folder, quick_recipe, started

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 55 MB, room for one checkpoint of model n and its weights and not for two; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=55m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root and the permission to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.suffix != ".tmp"
    }


def test_a_disk_that_fills_up_leaves_the_older_checkpoint_as_it_was(small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "run"
    process = started("train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), "--epochs", "9")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4, errors
    assert errors.startswith(f"anchorite: {out}")
    assert "cannot be written" in errors
    assert "MB needed" in errors
    assert "MB free there" in errors
    assert "Traceback" not in errors
    assert not list(out.rglob("*.tmp"))
    before = hashes(out / "checkpoints")
    assert {"epoch-0001.json", "epoch-0001.safetensors"} <= before.keys()
    # It fails again as long as there is no room, and harms nothing.
    again = started("train", "--resume", str(out))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 4, errors
    after = hashes(out / "checkpoints")
    assert {name: after[name] for name in ("epoch-0001.json", "epoch-0001.safetensors")} == {
        name: before[name] for name in ("epoch-0001.json", "epoch-0001.safetensors")
    }


def test_a_run_folder_that_cannot_be_written_is_refused_before_the_first_epoch(
    small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "run"
    process = started("train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out), "--epochs", "1")
    process.communicate(timeout=300)
    (out / "summary.json").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for words in (["--resume", str(out)], [str(data_folder()), "--out", str(small_disk / "new")]):
        process = started("train", *words)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 4, errors
        assert "Read-only file system" in errors or "no permission to write" in errors
        assert errors.count("Traceback") == 0
        assert "run: " not in output, "training had begun"
