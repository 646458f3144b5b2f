"""Whether a run is being trained, has ended or was interrupted: told from its files alone, without touching them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from anchorite.files import is_locked
from anchorite.report.run_files import RunFiles

State = Literal["running", "finished", "diverged", "interrupted", "stopped"]
_WATCHED = ("recipe.yaml", "run.json", "metrics.csv", "summary.json", "validation.json", "predictions", "plots")


@dataclass(frozen=True)
class RunStatus:
    """state: running, finished, diverged, interrupted (a checkpoint is there) or stopped (none is).

    words: a sentence on it; epochs: done; num_epochs: planned, None where the recipe does not say; seconds_left: of a
    running one, None where there is nothing to tell it from.
    """

    state: State
    words: str
    epochs: int
    num_epochs: int | None
    seconds_left: float | None


def read_status(files: RunFiles, now: float | None = None) -> RunStatus:
    """The status of a run. now: seconds since 1970, by default the clock's."""
    epochs, planned = len(files.epochs), files.recipe.get("epochs")
    num_epochs = planned if isinstance(planned, int) and not isinstance(planned, bool) and planned > 0 else None
    of = f" of {num_epochs}" if num_epochs else ""
    reason = files.summary.get("reason")
    if reason is not None:
        return RunStatus("finished", _finished(files, epochs, of), epochs, num_epochs, None)
    if is_locked(files.folder / ".lock"):
        begun = _newest(files.folder, ("metrics.csv", "run.json", "recipe.yaml"))
        since = max(0.0, (time.time() if now is None else now) - begun)
        left = _seconds_left(files, epochs, num_epochs, since)
        ahead = "" if left is None else f", about {clock(left)} left"
        words = f"Training: epoch {epochs + 1}{of} since {clock(since)}{ahead}."
        if num_epochs and epochs >= num_epochs:
            words = f"Training: all {epochs} epochs are done; the last files are being written."
        return RunStatus("running", words, epochs, num_epochs, left)
    if any(files.folder.glob("post-mortem-*.json")):
        words = f"Diverged in epoch {epochs + 1}{of}; see the post-mortem file in the run folder."
        return RunStatus("diverged", words, epochs, num_epochs, None)
    go_on = f"anchorite train --resume {files.folder}"
    if any((files.folder / "checkpoints").glob("epoch-*.json")):
        words = f"Interrupted after {epochs}{of} epochs; it goes on with: {go_on}"
        return RunStatus("interrupted", words, epochs, num_epochs, None)
    words = f"Not being trained; {epochs}{of} epochs are done, and there is no checkpoint."
    return RunStatus("stopped", words, epochs, num_epochs, None)


def stamp(folder: Path) -> str:
    """A word that changes when what a page shows of the run has changed."""
    facts: list[Any] = []
    for name in _WATCHED:
        try:
            status = (folder / name).stat()
        except OSError:
            facts.append(None)
        else:
            facts.append((status.st_mtime_ns, status.st_size))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def clock(seconds: float) -> str:
    """12 s, 3:07 or 1:02:59."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finished(files: RunFiles, epochs: int, of: str) -> str:
    seconds = files.summary.get("seconds")
    took = f", {clock(seconds)}" if isinstance(seconds, int | float) and math.isfinite(seconds) else ""
    lacks = "" if "environment" in files.summary else " Its plots and pictures are still being made, or were never."
    return f"Finished ({files.summary['reason']}): {epochs}{of} epochs{took}.{lacks}"


def _newest(folder: Path, names: Sequence[str]) -> float:
    """When the first of these files that is there was written, in seconds since 1970."""
    for name in names:
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return time.time()


def _seconds_left(files: RunFiles, epochs: int, num_epochs: int | None, since: float) -> float | None:
    """By the median of the last epochs' seconds of training and validation."""
    if num_epochs is None or not epochs:
        return None
    columns = [values for name, values in files.metrics.items() if _is_time(name)]
    lasts = [sum(column[row] for column in columns) for row in range(max(0, epochs - 5), epochs)]
    finite = [seconds for seconds in lasts if math.isfinite(seconds)]
    if not finite or not columns:
        return None
    an_epoch = median(finite)
    return max(0.0, (num_epochs - epochs) * an_epoch - min(since, an_epoch))


def _is_time(name: str) -> bool:
    return name == "seconds/train" or name.startswith("val/seconds_")
