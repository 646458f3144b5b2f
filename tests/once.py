"""What takes seconds to make, made once for all processes of a run of pytest."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

FOLDER_VARIABLE = "ANCHORITE_TESTS_ONCE"
"""Names the folder of this run, which conftest.py makes and removes."""


def made_once(name: str, make: Callable[[], bytes]) -> bytes:
    """The bytes that `make` returned to the first process that asked for `name`."""
    path = Path(os.environ[FOLDER_VARIABLE]) / name
    with path.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(make())
    return path.read_bytes()
