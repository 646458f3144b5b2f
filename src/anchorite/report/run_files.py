"""Reading what a run left in its folder: recipe, metrics, summary and the like, as far as the run got."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from anchorite.errors import InputError
from anchorite.plain_yaml import yaml_value
from anchorite.reading import read_json

_MAX_BYTES = 20_000_000
_MAX_SETTINGS = 5000


@dataclass(frozen=True)
class RunFiles:
    """The small files of a run folder, each read once, when it is asked for; empty where it is absent.

    Reading raises InputError naming the file, and the line where there is one, when it is malformed.
    """

    folder: Path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """recipe.yaml, nested as written."""
        return read_recipe(self.folder / "recipe.yaml")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json: what the run was started with besides its recipe."""
        return read_summary(self.folder / "run.json")

    @cached_property
    def metrics(self) -> dict[str, list[float]]:
        """metrics.csv by column."""
        return read_metrics(self.folder / "metrics.csv")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return read_summary(self.folder / "summary.json")

    @cached_property
    def validation(self) -> dict[str, Any]:
        """validation.json."""
        return read_summary(self.folder / "validation.json")

    @cached_property
    def epochs(self) -> list[float]:
        """The epoch of each row of the metrics; 1, 2, 3 ... where the file does not say."""
        num_rows = max((len(values) for values in self.metrics.values()), default=0)
        epochs = self.metrics.get("epoch", [])
        if epochs and all(math.isfinite(epoch) for epoch in epochs):
            return epochs
        return [float(row + 1) for row in range(num_rows)]


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a recipe; empty without a file. InputError names file and line."""
    text = _read_text(path)
    if text is None:
        return {}
    recipe = yaml_value(text, str(path))
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: must be a mapping of settings, not {type(recipe).__name__}; correct it or remove it")
    return recipe


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of metrics.csv in order, all of one length; nan where a cell is missing or no number."""
    text = _read_text(path)
    if not text:
        return {}
    try:
        header, *rows = csv.reader(text.splitlines())
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV: {error}; correct it or remove it") from error
    rows = [row for row in rows if row]
    return {
        name: [_number(row[position]) if position < len(row) else math.nan for row in rows]
        for position, name in enumerate(header)
    }


def read_summary(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file; empty where the file is absent. InputError names file and line."""
    return read_json(path, _MAX_BYTES) if path.exists() else {}


def flatten(value: Any) -> list[tuple[str, str]]:
    """Nested mappings and lists as (dotted key, value) rows; at most 5000, then a row that says so."""
    if value == {}:
        return []
    rows = list(islice(_flattened(value, ""), _MAX_SETTINGS + 1))
    if len(rows) > _MAX_SETTINGS:
        rows[_MAX_SETTINGS:] = [("...", f"only the first {_MAX_SETTINGS} are shown")]
    return rows


def show(value: Any) -> str:
    """A scalar as text: floats to six digits, yes and no, "-" for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _flattened(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flattened(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(inner, dict | list | tuple) for inner in value):
        for position, inner in enumerate(value):
            yield from _flattened(inner, f"{key}.{position}" if key else str(position))
    elif isinstance(value, list | tuple):
        yield key, ", ".join(show(inner) for inner in value) or "none"
    else:
        yield key, "none" if value == {} else show(value)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _read_text(path: Path) -> str | None:
    """The text of a file, None where there is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: has more than {_MAX_BYTES // 1_000_000} MB, which no run writes; remove it")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
