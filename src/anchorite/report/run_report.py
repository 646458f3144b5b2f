"""How a run went, as one HTML page that works from disk, offline, for years."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

from anchorite.errors import InputError
from anchorite.files import write_text_atomically
from anchorite.report import curves
from anchorite.report.curves import Curve, format_number, make_curve
from anchorite.report.page import render_page
from anchorite.report.pictures import Gallery, make_gallery
from anchorite.report.run_files import flatten, read_metrics, read_recipe, read_summary, show

_TEMPLATE = "run_report.html.j2"
_MAX_PAGE_BYTES = 2_950_000
_MAX_PREDICTIONS, _MAX_PLOTS = 16, 24
_MAX_TABLE_ROWS = 1000
_MAX_DETAILED_CURVES = 40
_GROUP_TITLES = {"train": "Training losses", "val": "Validation scores", "seconds": "Seconds", "": "Pace"}


def write_run_report(run_folder: Path) -> Path:
    """Write run_folder/report.html from what the run left there, and return its path.

    Read are recipe.yaml, metrics.csv, summary.json, plots/*.png and predictions/*.jpg, each if present. Raises
    InputError when the folder is no run's or a file in it is malformed, StorageError when the page cannot be written.
    """
    if not any((run_folder / name).is_file() for name in ("recipe.yaml", "metrics.csv", "summary.json")):
        raise InputError(
            f"{run_folder}: is not the folder of a run (no recipe.yaml, metrics.csv or summary.json); "
            "name a folder such as runs/NAME"
        )
    context = _context(run_folder)
    bare_page = render_page(_TEMPLATE, {**context, "galleries": {}})
    galleries = _galleries(run_folder, _MAX_PAGE_BYTES - len(bare_page.encode("utf-8")))
    path = run_folder / "report.html"
    write_text_atomically(path, render_page(_TEMPLATE, {**context, "galleries": galleries}))
    return path


def _context(run_folder: Path) -> dict[str, Any]:
    """Everything the template shows but the pictures."""
    metrics = read_metrics(run_folder / "metrics.csv")
    summary = read_summary(run_folder / "summary.json")
    decisions = summary.pop("decisions", None) or []
    single = {key: value for key, value in summary.items() if not isinstance(value, dict)}
    sections = {"result": single, **{key: value for key, value in summary.items() if isinstance(value, dict)}}
    return {
        "run_name": run_folder.resolve().name,
        "tiles": _tiles(metrics),
        "curve_groups": _curve_groups(metrics),
        "frame": curves,
        "decisions": [show(decision) for decision in (decisions if isinstance(decisions, list) else [decisions])],
        "sections": [
            _section(key.replace("_", " ").capitalize(), content) for key, content in sections.items() if content
        ],
        "recipe": _section("Recipe", dict(read_recipe(run_folder / "recipe.yaml"))),
    }


def _section(title: str, content: dict[str, Any]) -> dict[str, Any]:
    """A mapping as facts, and as tables where it holds lists of mappings."""
    tables = {key: value for key, value in content.items() if _is_table(value)}
    facts = flatten({key: value for key, value in content.items() if key not in tables})
    return {"title": title, "facts": facts, "tables": {key: _table(rows) for key, rows in tables.items()}}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _tiles(metrics: dict[str, list[float]]) -> list[tuple[str, str, str]]:
    """The figures to see first, as (label, value, note)."""
    epochs = _epochs(metrics)
    tiles = [("Epochs", str(len(epochs)), "")]
    for name, values in metrics.items():
        finite = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value)]
        if _is_score(name) and finite:
            value, epoch = max(finite, key=lambda pair: pair[0])
            tiles.append((f"Best {name}", format_number(value), f"at epoch {format_number(epoch)}"))
        elif name == "images_per_second" and finite:
            tiles.append(("Images a second", format_number(round(median(value for value, _ in finite), 1)), "median"))
    return tiles


def _curve_groups(metrics: dict[str, list[float]]) -> dict[str, list[Curve]]:
    """A chart for every column but the epoch, under the title of the part before the slash."""
    epochs = _epochs(metrics)
    groups: dict[str, list[Curve]] = {title: [] for title in _GROUP_TITLES.values()}
    for name, values in metrics.items():
        if name == "epoch":
            continue
        prefix, _, title = name.rpartition("/")
        brief = len(metrics) > _MAX_DETAILED_CURVES
        curve = make_curve(title, epochs, values, mark_highest=_is_score(name), brief=brief)
        groups.setdefault(_GROUP_TITLES.get(prefix, prefix), []).append(curve)
    pace = groups.pop(_GROUP_TITLES[""])
    groups[_GROUP_TITLES[""]] = pace  # what a run is judged by comes first
    return {title: group for title, group in groups.items() if group}


def _is_score(name: str) -> bool:
    return name.startswith("val/map")


def _epochs(metrics: dict[str, list[float]]) -> list[float]:
    """The epoch of each row; 1, 2, 3 ... where the file does not say."""
    num_rows = max((len(values) for values in metrics.values()), default=0)
    epochs = metrics.get("epoch", [])
    if epochs and all(math.isfinite(epoch) for epoch in epochs):
        return epochs
    return [float(row + 1) for row in range(num_rows)]


def _table(mappings: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of mappings as columns and cells (text, is it a number), at most 1000 rows."""
    shown = mappings[:_MAX_TABLE_ROWS]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    return {
        "columns": columns,
        "rows": [[_cell(row.get(column)) for column in columns] for row in shown],
        "num_left_out": len(mappings) - len(shown),
    }


def _cell(value: Any) -> tuple[str, bool]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_number(value), True
    return show(value), False


def _galleries(run_folder: Path, max_bytes: int) -> dict[str, Gallery]:
    """Plots, then predictions, within what the page may still grow by."""
    plots = make_gallery(sorted((run_folder / "plots").glob("*.png")), _MAX_PLOTS, max_bytes)
    predictions = make_gallery(
        sorted((run_folder / "predictions").glob("*.jpg")), _MAX_PREDICTIONS, max_bytes - plots.num_bytes
    )
    galleries = {"Plots": plots, "Predictions": predictions}
    return {title: gallery for title, gallery in galleries.items() if gallery.pictures or gallery.left_out}
