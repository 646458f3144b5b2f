"""Reading the files of a run folder, as far as the run got, and telling from them how far that is."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

from anchorite.errors import InputError
from anchorite.files import is_locked
from anchorite.plain_yaml import yaml_value
from anchorite.reading import decode_utf8, read_json, read_limited
from anchorite.train.recipe_names import RENAMED_COLUMNS, with_current_names

RunState = Literal["running", "finished", "diverged", "interrupted", "stopped"]
_MAX_BYTES = 20_000_000
_MAX_SETTINGS = 5000
_WATCHED = ("recipe.yaml", "run.json", "metrics.csv", "summary.json", "validation.json", "predictions", "plots")


@dataclass(frozen=True)
class RunFiles:
    """The small files of a run folder, each read when it is first used; empty where it is absent.

    Reading raises InputError naming the file, and the line where there is one, when it is malformed.
    """

    folder: Path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """recipe.yaml, nested as written."""
        path = self.folder / "recipe.yaml"
        recipe = yaml_value(_read_text(path), str(path)) if path.exists() else {}
        if not isinstance(recipe, dict):
            kind = type(recipe).__name__
            raise InputError(f"{path}: must be a mapping of settings, not {kind}; correct it or remove it")
        return with_current_names(recipe)[0]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json: what the run was started with besides its recipe."""
        return read_summary(self.folder / "run.json")

    @cached_property
    def metrics(self) -> dict[str, list[float]]:
        """The columns of metrics.csv in order, all of one length; nan where a cell is missing or no number."""
        path = self.folder / "metrics.csv"
        text = _read_text(path) if path.exists() else ""
        if not text:
            return {}
        try:
            header, *rows = csv.reader(text.splitlines())
        except csv.Error as error:
            raise InputError(f"{path}: not valid CSV: {error}; correct it or remove it") from error
        rows = [row for row in rows if row]
        return {
            RENAMED_COLUMNS.get(name, name): [
                _number(row[position]) if position < len(row) else math.nan for row in rows
            ]
            for position, name in enumerate(header)
        }

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json: how the run ended."""
        return read_summary(self.folder / "summary.json")

    @cached_property
    def validation(self) -> dict[str, Any]:
        """validation.json: curves, confusion and examples of the best weights."""
        return read_summary(self.folder / "validation.json")

    @cached_property
    def epochs(self) -> list[float]:
        """The epoch of each row of the metrics; 1, 2, 3 ... where the file does not say."""
        num_rows = max((len(values) for values in self.metrics.values()), default=0)
        epochs = self.metrics.get("epoch", [])
        if epochs and all(math.isfinite(epoch) for epoch in epochs):
            return epochs
        return [float(row + 1) for row in range(num_rows)]

    @property
    def best_row(self) -> int | None:
        """The row of the metrics with the highest mAP, the first of equals; None where there is none."""
        scores = self.metrics.get("val/map", [])
        finite = [row for row, score in enumerate(scores) if math.isfinite(score)]
        return max(finite, key=lambda row: (scores[row], -row)) if finite else None

    def seconds(self, *prefixes: str) -> float:
        """The sum of all columns of the metrics whose names start so."""
        columns = [values for name, values in self.metrics.items() if name.startswith(prefixes)]
        return sum(value for values in columns for value in values if math.isfinite(value))

    def environment(self) -> dict[str, Any]:
        """The machine and versions of the run, by the summary, before that by the newest readable checkpoint."""
        found = self.summary.get("environment")
        for path in sorted((self.folder / "checkpoints").glob("epoch-*.json"), reverse=True):
            if isinstance(found, dict) and found:
                break
            try:
                found = json.loads(path.read_text(encoding="utf-8"))["body"]["environment"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return found if isinstance(found, dict) else {}


def read_summary(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file; empty where the file is absent. InputError names file and line."""
    return read_json(path, _MAX_BYTES) if path.exists() else {}


def _read_text(path: Path) -> str:
    return decode_utf8(read_limited(path, _MAX_BYTES), path)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def flatten(value: Any) -> list[tuple[str, str]]:
    """Nested mappings and lists as (dotted key, value) rows; at most 5000, then a row that says so."""
    if value == {}:
        return []
    rows = list(islice(_flattened(value, ""), _MAX_SETTINGS + 1))
    if len(rows) > _MAX_SETTINGS:
        rows[_MAX_SETTINGS:] = [("...", f"only the first {_MAX_SETTINGS} are shown")]
    return rows


def _flattened(value: Any, key: str) -> Iterator[tuple[str, str]]:
    is_list = isinstance(value, list | tuple)
    if isinstance(value, dict) and value:
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif is_list and any(isinstance(one, dict | list | tuple) for one in value):
        inner = enumerate(value)
    else:
        yield key, (", ".join(map(show, value)) or "none") if is_list else show(value)
        return
    for name, one in inner:
        yield from _flattened(one, f"{key}.{name}" if key else str(name))


def show(value: Any) -> str:
    """A value as text: floats to six digits, yes and no, "-" for None, "none" for an empty mapping."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value == {} else str(value)


def clock(seconds: float) -> str:
    """12 s, 3:07 or 1:02:59."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class RunStatus:
    """state: running, finished, diverged, interrupted (there is a checkpoint) or stopped (there is none).

    words: a sentence on it; epochs: done; num_epochs: planned, None where the recipe does not say; seconds_left: of a
    running one, None where it cannot be estimated.
    """

    state: RunState
    words: str
    epochs: int
    num_epochs: int | None
    seconds_left: float | None = None


def read_status(files: RunFiles, now: float | None = None) -> RunStatus:
    """The status of a run, by its files alone, which are not changed. now: seconds since 1970, by default the clock's.

    Raises what reading the files raises.
    """
    epochs, planned = len(files.epochs), files.recipe.get("epochs")
    num_epochs = planned if isinstance(planned, int) and not isinstance(planned, bool) and planned > 0 else None
    of = f" of {num_epochs}" if num_epochs else ""
    reason = files.summary.get("reason")
    if reason is not None:
        seconds = files.summary.get("seconds")
        took = f", {clock(seconds)}" if isinstance(seconds, int | float) and math.isfinite(seconds) else ""
        lacks = "" if "environment" in files.summary else " Its plots and pictures are not there yet."
        return RunStatus("finished", f"Finished ({reason}): {epochs}{of} epochs{took}.{lacks}", epochs, num_epochs)
    if is_locked(files.folder / ".lock"):
        begun = _modified(files.folder, ("metrics.csv", "run.json", "recipe.yaml"))
        since = max(0.0, (time.time() if now is None else now) - begun)
        left = _seconds_left(files, num_epochs, since)
        rest = "" if left is None else f", about {clock(left)} left"
        words = f"Training: epoch {epochs + 1}{of} since {clock(since)}{rest}."
        if num_epochs and epochs >= num_epochs:
            words = f"Training: all {epochs} epochs are done; the last files are being written."
        return RunStatus("running", words, epochs, num_epochs, left)
    if any(files.folder.glob("post-mortem-*.json")):
        words = f"Diverged in epoch {epochs + 1}{of}; see the post-mortem file in the run folder."
        return RunStatus("diverged", words, epochs, num_epochs)
    if any((files.folder / "checkpoints").glob("epoch-*.json")):
        words = f"Interrupted after {epochs}{of} epochs; to continue: anchorite train --resume {files.folder}"
        return RunStatus("interrupted", words, epochs, num_epochs)
    words = f"Not being trained; {epochs}{of} epochs are done, and there is no checkpoint."
    return RunStatus("stopped", words, epochs, num_epochs)


def _modified(folder: Path, names: Sequence[str]) -> float:
    """When the first of these files that exists was written, in seconds since 1970."""
    for name in names:
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return time.time()


def _seconds_left(files: RunFiles, num_epochs: int | None, since: float) -> float | None:
    """By the median of the last epochs' seconds of training and validation."""
    names = ("seconds/train", "val/seconds_")
    columns = [values for name, values in files.metrics.items() if name.startswith(names)]
    finite = [seconds for row in list(zip(*columns, strict=True))[-5:] if math.isfinite(seconds := sum(row))]
    if num_epochs is None or not finite:
        return None
    an_epoch = median(finite)
    return max(0.0, (num_epochs - len(files.epochs)) * an_epoch - min(since, an_epoch))


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
