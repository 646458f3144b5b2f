"""Reading what a run left in its folder: recipe.yaml, metrics.csv and summary.json, as far as the run got."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from anchorite.errors import InputError

_MAX_BYTES = 20_000_000
_MAX_SETTINGS = 5000


def read_recipe(path: Path) -> list[tuple[str, str]]:
    """The settings of a recipe as (dotted key, value); empty without a file. InputError names file and line."""
    text = _read_text(path)
    if text is None:
        return []
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "unreadable"
        raise InputError(f"{where}: not valid YAML: {problem}; correct it or remove it") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {error}; correct it or remove it") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: must be a mapping of settings, not {type(recipe).__name__}; correct it or remove it")
    return flatten(recipe)


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
    """The mapping of summary.json; empty where the file is absent. InputError names file and line."""
    text = _read_text(path)
    if text is None:
        return {}
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}; correct it or remove it") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid JSON: {error}; correct it or remove it") from error
    if not isinstance(summary, dict):
        raise InputError(f"{path}: must be an object, not {type(summary).__name__}; correct it or remove it")
    return summary


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
