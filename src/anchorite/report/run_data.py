"""Reading the files of a run folder, as far as the run got, and telling from them how far that is."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal, ParamSpec, TypeVar

from safetensors import SafetensorError

from anchorite.errors import InputError
from anchorite.files import is_locked
from anchorite.plain_yaml import yaml_value
from anchorite.reading import decode_utf8, read_json, read_limited
from anchorite.recipe_names import RENAMED_COLUMNS, with_current_names

_State = Literal["running", "finished", "diverged", "interrupted", "stopped"]
Arguments = ParamSpec("Arguments")
Part = TypeVar("Part")
_MAX_BYTES = 20_000_000
_MAX_SETTINGS = 5000
_WATCHED = ("recipe.yaml", "run.json", "metrics.csv", "summary.json", "validation.json", "predictions", "plots")


def none_if_absent(read: Callable[Arguments, Part]) -> Callable[Arguments, Part | None]:
    """A decorator of what reads a part of a page: None where the files lack it, or hold something else in its place."""

    @functools.wraps(read)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Part | None:
        try:
            return read(*args, **kwargs)
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            return None

    return call


@dataclass(frozen=True)
class RunFiles:
    """The small files of a run folder, each read when it is first used; empty where it is absent.

    Names that earlier releases wrote are replaced by today's. Reading raises InputError naming the file, and the line
    where there is one, when it is malformed.
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
        reader = csv.DictReader(_read_text(path).splitlines() if path.exists() else ())
        try:
            rows = list(reader)
        except csv.Error as error:
            raise InputError(f"{path}: not valid CSV: {error}; correct it or remove it") from error
        names = reader.fieldnames or ()
        return {RENAMED_COLUMNS.get(name, name): [_number(row[name]) for row in rows] for name in names}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json: how the run ended."""
        return read_summary(self.folder / "summary.json")

    @cached_property
    def validation(self) -> dict[str, Any]:
        """validation.json: curves, confusion and examples of the best weights."""
        validation = read_summary(self.folder / "validation.json")
        if "iou_limit" in validation:  # its earlier name
            validation["iou_threshold"] = validation.pop("iou_limit")
        return validation

    @cached_property
    def epochs(self) -> list[float]:
        """The epoch of each row of the metrics; 1, 2, 3 ... where the file does not say."""
        epochs = self.metrics.get("epoch", [])
        if epochs and all(map(math.isfinite, epochs)):
            return epochs
        num_rows = max(map(len, self.metrics.values()), default=0)
        return [float(row + 1) for row in range(num_rows)]

    @property
    def best_row(self) -> int | None:
        """The row of the metrics with the highest mAP, the first of equals; None where there is none."""
        scores = self.metrics.get("val/map", [])
        return max(
            (row for row, score in enumerate(scores) if math.isfinite(score)), key=scores.__getitem__, default=None
        )

    def seconds(self, *prefixes: str) -> float:
        """The sum of all columns of the metrics whose names start so."""
        columns = [values for name, values in self.metrics.items() if name.startswith(prefixes)]
        return sum(value for values in columns for value in values if math.isfinite(value))

    def environment(self) -> dict[str, Any]:
        """The machine and versions of the run, by the summary, before that by the newest readable checkpoint."""
        found = self.summary.get("environment") or self.from_newest_checkpoint(
            lambda path: json.loads(path.read_text(encoding="utf-8"))["body"]["environment"]
        )
        return found if isinstance(found, dict) else {}

    def from_newest_checkpoint(self, read: Callable[[Path], Part]) -> Part | None:
        """What `read` makes of the newest checkpoint's JSON file for which it succeeds; None where there is none."""
        for path in sorted((self.folder / "checkpoints").glob("epoch-*.json"), reverse=True):
            with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
                return read(path)
        return None


def read_summary(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file; empty where the file is absent. InputError names file and line."""
    return read_json(path, _MAX_BYTES) if path.exists() else {}


def _read_text(path: Path) -> str:
    return decode_utf8(read_limited(path, _MAX_BYTES), path)


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def flatten(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Nested mappings and lists as (dotted key, value) rows; at most 5000, then a row that says so."""
    is_list = isinstance(value, list | tuple)
    if isinstance(value, dict) and (value or not key):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif is_list and any(isinstance(one, dict | list | tuple) for one in value):
        inner = enumerate(value)
    else:
        return [(key, (", ".join(map(show, value)) or "none") if is_list else show(value))]
    rows = [row for name, one in inner for row in flatten(one, f"{key}.{name}" if key else str(name))]
    if len(rows) > _MAX_SETTINGS:
        rows[_MAX_SETTINGS:] = [("...", f"only the first {_MAX_SETTINGS} are shown")]
    return rows


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
class StatusLine:
    """state: running, finished, diverged, interrupted (there is a checkpoint) or stopped (there is none).

    words: a sentence on it; epochs: done; num_epochs: planned, None where the recipe does not say.
    """

    state: _State
    words: str
    epochs: int
    num_epochs: int | None


def read_status(files: RunFiles, now: float | None = None) -> StatusLine:
    """The status of a run, by its files alone, which are not changed. now: seconds since 1970, by default the clock's.

    Raises what reading the files raises.
    """
    folder, summary = files.folder, files.summary
    epochs, planned = len(files.epochs), files.recipe.get("epochs")
    num_epochs = planned if isinstance(planned, int) and not isinstance(planned, bool) and planned > 0 else None
    of = f" of {num_epochs}" if num_epochs else ""
    state: _State
    if (reason := summary.get("reason")) is not None:
        state, seconds = "finished", summary.get("seconds")
        took = f", {clock(seconds)}" if isinstance(seconds, int | float) and math.isfinite(seconds) else ""
        lacks = "" if "environment" in summary else " Its plots and pictures are not there yet."
        words = f"Finished ({reason}): {epochs}{of} epochs{took}.{lacks}"
    elif is_locked(folder / ".lock"):
        state, now = "running", time.time() if now is None else now
        paths = [folder / name for name in ("metrics.csv", "run.json", "recipe.yaml")]
        since = max(0.0, now - next((path.stat().st_mtime for path in paths if path.exists()), now))
        columns = [files.metrics[name] for name in files.metrics if name.startswith(("seconds/train", "val/seconds_"))]
        recent = [seconds for row in list(zip(*columns, strict=True))[-5:] if math.isfinite(seconds := sum(row))]
        words = f"Training: epoch {epochs + 1}{of} since {clock(since)}"
        if num_epochs and epochs >= num_epochs:
            words = f"Training: all {epochs} epochs are done; the last files are being written"
        elif num_epochs and recent:
            an_epoch = median(recent)
            words += f", about {clock((num_epochs - epochs) * an_epoch - min(since, an_epoch))} left"
        words += "."
    elif any(folder.glob("post-mortem-*.json")):
        state, words = "diverged", f"Diverged in epoch {epochs + 1}{of}; see the post-mortem file in the run folder."
    elif any((folder / "checkpoints").glob("epoch-*.json")):
        state = "interrupted"
        words = f"Interrupted after {epochs}{of} epochs; to continue: anchorite train --resume {folder}"
    else:
        state, words = "stopped", f"Not being trained; {epochs}{of} epochs are done, and there is no checkpoint."
    return StatusLine(state, words, epochs, num_epochs)


def stamp(folder: Path) -> str:
    """A word that changes when what a page shows of the run has changed."""
    facts: list[Any] = []
    for name in _WATCHED:
        try:
            status = (folder / name).stat()
            facts.append((status.st_mtime_ns, status.st_size))
        except OSError:
            facts.append(None)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
