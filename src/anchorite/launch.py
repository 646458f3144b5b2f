"""How torchrun started this process, as far as the environment tells; without torch, which takes a second to load."""

from __future__ import annotations

import os
from collections.abc import Mapping

FROM_RANK = "from rank "
"""Begins the note that an error takes along from a rank of its own; what fails without it fails on all ranks alike."""


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's number among those that torchrun started; 0 without it."""
    return int(environment.get("RANK", "0")) if int(environment.get("WORLD_SIZE", "1")) > 1 else 0


def may_restart(environment: Mapping[str, str] = os.environ) -> tuple[bool, bool]:
    """Whether torchrun may start the processes again when one fails, and whether it has done so."""
    most, done = (int(environment.get(f"TORCHELASTIC_{name}", "0")) for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    return most > 0, done > 0
