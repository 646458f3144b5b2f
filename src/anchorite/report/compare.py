"""Several runs side by side as one HTML page: their curves over each other, what differs in their settings, results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchorite.errors import InputError
from anchorite.files import write_text_atomically
from anchorite.report import curves
from anchorite.report.overlay import Line, Overlay, make_overlay
from anchorite.report.page import render_page
from anchorite.report.run_facts import time_split
from anchorite.report.run_files import RunFiles, flatten
from anchorite.report.run_report import STYLES
from anchorite.report.run_results import COCO_NUMBERS, best_epoch, class_table, decimals
from anchorite.report.run_settings import effective_settings
from anchorite.report.run_status import clock, read_status

MOST_RUNS = 16
_MOST_CURVES, _MOST_CLASSES = 40, 1000
_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """A name, a text a run, and for each whether it is the best of them."""

    name: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


def write_comparison(run_folders: Sequence[Path], path: Path) -> Path:
    """Write the page that compares the runs to `path`, and return that.

    Raises InputError when a folder is no run's or named twice, when there are more than 16, or when a file in one is
    malformed; StorageError when the page cannot be written.
    """
    write_text_atomically(path, comparison_page(run_folders))
    return path


def comparison_page(run_folders: Sequence[Path]) -> str:
    """The page that compares the runs, as HTML."""
    if len(run_folders) > MOST_RUNS:
        raise InputError(f"{len(run_folders)} runs: a page compares at most {MOST_RUNS}; leave some out")
    resolved = [folder.resolve() for folder in run_folders]
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: named twice; name each run once")
    runs = [RunFiles(folder) for folder in run_folders]
    names = _names(resolved)
    comparable = len({_data_of(files) for files in runs}) == 1
    context = {
        "names": names,
        "styles": [f"c{number % 8}{' dashed' if number >= 8 else ''}" for number in range(len(runs))],
        "folders": [str(folder) for folder in resolved],
        "statuses": [read_status(files) for files in runs],
        "same_data": comparable,
        "results": _unmarked(_results(runs), comparable),
        "classes": _unmarked(_classes(runs), comparable),
        "charts": _charts(runs, names),
        "settings": _differing([dict(flatten(files.recipe)) for files in runs]),
        "effective": _differing([{one.name: one.effective for one in effective_settings(files)} for files in runs]),
        "frame": curves,
    }
    return render_page("compare.html.j2", context, styles=STYLES, scripts=("chart.js",))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above them as it takes to tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _data_of(files: RunFiles) -> str:
    """What tells one run's val split from another's."""
    try:
        return str(files.facts["splits"]["val"]["fingerprint"])
    except (KeyError, TypeError):
        return str(files.facts.get("data"))


def _results(runs: Sequence[RunFiles]) -> list[Row]:
    """The COCO numbers at each run's best epoch, epochs, minutes and speed."""
    at = [best_epoch(files) for files in runs]
    rows = []
    for key, title, _ in COCO_NUMBERS:
        columns = [files.metrics.get(f"val/{key}") for files in runs]
        values = [
            column[row] if column and row is not None else math.nan for column, row in zip(columns, at, strict=True)
        ]
        if any(math.isfinite(value) for value in values):
            rows.append(_row(title, values, decimals))
    epochs = [f"{len(files.epochs)}" for files in runs]
    best = [_ABSENT if row is None else f"{files.epochs[row]:g}" for files, row in zip(runs, at, strict=True)]
    rows.append(Row("epochs", tuple(epochs), (False,) * len(runs)))
    rows.append(Row("best epoch", tuple(best), (False,) * len(runs)))
    seconds = [_seconds(files) for files in runs]
    rows.append(_row("time", [-value for value in seconds], lambda value: clock(-value)))
    return rows


def _seconds(files: RunFiles) -> float:
    """Of training and validation together, nan where the metrics do not tell."""
    if not time_split(files):
        return math.nan
    columns = [v for name, v in files.metrics.items() if name == "seconds/train" or name.startswith("val/seconds_")]
    return sum(value for column in columns for value in column if math.isfinite(value))


def _row(name: str, values: Sequence[float], shown: Any) -> Row:
    """A row whose highest value is marked, unless all are equal."""
    finite = [value for value in values if math.isfinite(value)]
    cells = tuple(shown(value) if math.isfinite(value) else _ABSENT for value in values)
    differ = len(finite) > 1 and max(finite) > min(finite)
    return Row(name, cells, tuple(differ and value == max(finite) for value in values))


def _classes(runs: Sequence[RunFiles]) -> list[Row]:
    """AP of each class, a row a class of any run, by the runs' summaries."""
    tables = [{row["name"]: row["ap"] for row in class_table(files.summary)} for files in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))[:_MOST_CLASSES]
    return [
        _row(
            name,
            [math.nan if table.get(name, _ABSENT) == _ABSENT else float(table[name]) for table in tables],
            decimals,
        )
        for name in names
    ]


def _charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Overlay]:
    """A chart for every column of scores and losses, a line a run."""
    columns = list(dict.fromkeys(name for files in runs for name in files.metrics))
    scores = [name for name in columns if name.startswith(("val/map", "val/ar_"))]
    others = [name for name in columns if name.startswith("train/") or name in ("rate", "images_per_second")]
    charts = []
    for column in [*scores, *others][:_MOST_CURVES]:
        lines = [Line(name, files.epochs, _column(files, column)) for name, files in zip(names, runs, strict=True)]
        charts.append(make_overlay(column, lines))
    return [chart for chart in charts if chart is not None]


def _column(files: RunFiles, name: str) -> list[float]:
    return files.metrics.get(name, [math.nan] * len(files.epochs))


def _unmarked(rows: list[Row], comparable: bool) -> list[Row]:
    """The rows as they are, or without marks where no run can be the best."""
    return rows if comparable else [replace(row, best=(False,) * len(row.best)) for row in rows]


def _differing(mappings: Sequence[dict[str, str]]) -> list[Row]:
    """The keys whose values are not the same in all mappings."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    rows = []
    for key in keys:
        cells = tuple(mapping.get(key, _ABSENT) for mapping in mappings)
        if len(set(cells)) > 1:
            rows.append(Row(key, cells, (False,) * len(cells)))
    return rows
