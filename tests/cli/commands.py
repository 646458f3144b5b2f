"""Small data, recipes and runs for the tests of the command line, made once per test process, and ways to call it."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from anchorite.cli import main, run
from anchorite.data.scenes import write_scenes
from tests.processes import ForkedProcess

QUICK = (
    "image_size: 64\nepochs: 2\nbatch: 4\nprecision: fp32\ndevice: cpu\nworkers: 0\noptimizer:\n  nominal_batch: 8\n"
)

COMMAND = (sys.executable, "-m", "anchorite")


@cache
def data_folder() -> Path:
    """10 training, 4 validation and 2 test scenes of 64 px, in a folder whose name needs quoting."""
    folder = Path(mkdtemp()) / "it's data \u00fc"
    write_scenes(folder, 10, 4, 2, seed=5, size_px=64)
    return folder


def outside_config(folder: Path) -> Path:
    """A data.yaml in a new folder of its own, whose images are those of `data_folder`."""
    config = folder / "config" / "data.yaml"
    config.parent.mkdir()
    text = (data_folder() / "data.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("path:")]
    config.write_text("\n".join([f"path: {json.dumps(str(data_folder()))}", *lines]), encoding="utf-8")
    return config


@cache
def quick_recipe() -> str:
    """Path of the smallest useful recipe."""
    path = Path(mkdtemp()) / "quick.yaml"
    path.write_text(QUICK, encoding="utf-8")
    return str(path)


@cache
def finished_run() -> Path:
    """A run of two epochs, concluded by the command line; tests must not change it."""
    out = Path(mkdtemp()) / "finished"
    with redirect_stdout(StringIO()):  # what it prints is no test's output
        assert run(["train", str(data_folder()), "--recipe", quick_recipe(), "--out", str(out)]) == 0
    return out


def weights() -> str:
    """Path of the finished run's weights."""
    return str(finished_run() / "best.safetensors")


def started(*words: str, **settings: Any) -> ForkedProcess:
    """A real process of the command line, leader of a session of its own, with text pipes."""
    return ForkedProcess("anchorite.cli:main", list(words), **settings)


def run_without(package: str, words: list[str]) -> None:
    """Run a command where a package is not installed; for `ForkedProcess`."""
    sys.modules[package] = None  # type: ignore[assignment]
    main(words)


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
