"""How a run goes or went, as one HTML page that works from disk, offline, for years."""

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
from anchorite.report.run_examples import Examples, read_examples
from anchorite.report.run_facts import data_facts, environment, time_split
from anchorite.report.run_files import RunFiles, flatten, show
from anchorite.report.run_results import class_table, coco_table, confusion_table, validation_charts
from anchorite.report.run_settings import effective_settings, rate_plan
from anchorite.report.run_status import read_status

_TEMPLATE = "run_report.html.j2"
STYLES = ("style.css", "run_report.css")
_SCRIPTS, _LIVE_SCRIPTS = ("chart.js",), ("chart.js", "live.js")
_MAX_PAGE_BYTES = 2_950_000
_MAX_PREDICTIONS, _MAX_PLOTS = 16, 24
_MAX_TABLE_ROWS = 1000
_MAX_DETAILED_CURVES = 40
_GROUP_TITLES = {"train": "Training losses", "val": "Validation scores", "seconds": "Seconds", "": "Pace"}
_VALIDATION_TIME = "Validation time"
_QUIET_GROUPS = ("Seconds", "Pace", _VALIDATION_TIME)  # folded up: looked for only when something is slow


def write_run_report(run_folder: Path, path: Path | None = None) -> Path:
    """Write the page of a run, by default as run_folder/report.html, and return its path.

    Read are the run's small files, plots/*.png, predictions/*.jpg and examples/*.jpg, each if present. Raises
    InputError when the folder is no run's or a file in it is malformed, StorageError when the page cannot be written.
    """
    path = run_folder / "report.html" if path is None else path
    write_text_atomically(path, run_page(run_folder))
    return path


def run_page(run_folder: Path, live_stamp: str | None = None) -> str:
    """The page of a run as it is now, at most 3 MB of HTML.

    live_stamp: for the viewer, which keeps it up to date: what `stamp` said before the page was made.
    """
    if not any((run_folder / name).is_file() for name in ("recipe.yaml", "metrics.csv", "summary.json")):
        raise InputError(
            f"{run_folder}: is not the folder of a run (no recipe.yaml, metrics.csv or summary.json); "
            "name a folder such as runs/NAME"
        )
    files = RunFiles(run_folder)
    live = live_stamp is not None
    context = {**_context(files), "live": live, "stamp": live_stamp}
    bare_page = _render({**context, "examples": None, "galleries": {}}, live)
    room = _MAX_PAGE_BYTES - len(bare_page.encode("utf-8"))
    examples = read_examples(files, room // 2)
    room -= 0 if examples is None else examples.num_bytes + _boxes_bytes(examples)
    galleries = _galleries(run_folder, room, bool(context["charts"]))
    return _render({**context, "examples": examples, "galleries": galleries}, live)


def _render(context: dict[str, Any], live: bool) -> str:
    return render_page(
        _TEMPLATE, context, styles=STYLES, scripts=_LIVE_SCRIPTS if live else _SCRIPTS, connects_to_itself=live
    )


def _boxes_bytes(examples: Examples) -> int:
    """About what the drawn boxes add to the page."""
    return sum(600 * (1 + len(one.labels) + len(one.found)) for one in examples.images)


def _context(files: RunFiles) -> dict[str, Any]:
    """Everything the template shows but the pictures."""
    summary = dict(files.summary)
    decisions = summary.pop("decisions", None) or []
    dataset, classes = data_facts(files), class_table(summary)
    surroundings = environment(files)
    shown_above = {"environment"} if surroundings else set()
    if dataset and "dataset" in summary and dataset["adjusted"] is not None:
        shown_above.add("dataset")
    if classes:  # what else the section says is in the tables and charts
        shown_above |= {"best_validation", "last_validation"}
    rest = {key: value for key, value in summary.items() if key not in shown_above}
    single = {key: value for key, value in rest.items() if not isinstance(value, dict)}
    sections = {"result": single, **{key: value for key, value in rest.items() if isinstance(value, dict)}}
    anchors = files.facts.get("anchors")
    return {
        "run_name": files.folder.resolve().name,
        "status": read_status(files),
        "tiles": _tiles(files),
        "settings": effective_settings(files),
        "anchors": _anchor_rows(anchors),
        "plan": rate_plan(files),
        "curve_groups": _curve_groups(files),
        "quiet": _QUIET_GROUPS,
        "frame": curves,
        "coco": coco_table(files),
        "classes": classes,
        "charts": validation_charts(files.validation),
        "confusion": confusion_table(files.validation),
        "time": time_split(files),
        "dataset": dataset,
        "environment": surroundings,
        "decisions": [show(decision) for decision in (decisions if isinstance(decisions, list) else [decisions])],
        "sections": [
            _section(key.replace("_", " ").capitalize(), content) for key, content in sections.items() if content
        ],
        "recipe": _section("Recipe", dict(flatten(files.recipe))),
    }


def _anchor_rows(anchors: Any) -> list[str]:
    """For each level its anchors as texts; empty where they are no table of numbers."""
    try:
        return [
            ", ".join(f"{width:g} x {height:g}" for width, height in zip(row[::2], row[1::2], strict=True))
            for row in anchors or ()
        ]
    except (TypeError, ValueError):
        return []


def _section(title: str, content: dict[str, Any]) -> dict[str, Any]:
    """A mapping as facts, and as tables where it holds lists of mappings."""
    tables = {key: value for key, value in content.items() if _is_table(value)}
    facts = flatten({key: value for key, value in content.items() if key not in tables})
    return {"title": title, "facts": facts, "tables": {key: _table(rows) for key, rows in tables.items()}}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _tiles(files: RunFiles) -> list[tuple[str, str, str]]:
    """The figures to see first, as (label, value, note)."""
    epochs = files.epochs
    planned = files.recipe.get("epochs")
    tiles = [("Epochs", str(len(epochs)), f"of {planned}" if isinstance(planned, int) else "")]
    for name, values in files.metrics.items():
        finite = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value)]
        if is_score(name) and name.count("_") == 0 and finite:
            value, epoch = max(finite, key=lambda pair: pair[0])
            tiles.append((f"Best {name}", format_number(value), f"at epoch {format_number(epoch)}"))
        elif name == "images_per_second" and finite:
            tiles.append(("Images a second", format_number(round(median(value for value, _ in finite), 1)), "median"))
    return tiles


def _curve_groups(files: RunFiles) -> dict[str, list[Curve]]:
    """A chart for every column but the epoch, under the title of the part before the slash."""
    metrics = files.metrics
    groups: dict[str, list[Curve]] = {title: [] for title in _GROUP_TITLES.values()}
    for name, values in metrics.items():
        if name == "epoch":
            continue
        prefix, _, title = name.rpartition("/")
        brief = len(metrics) > _MAX_DETAILED_CURVES
        curve = make_curve(title, files.epochs, values, mark_highest=is_score(name), brief=brief)
        is_time = prefix == "val" and (title.startswith("seconds_") or title == "images_per_second")
        groups.setdefault(_VALIDATION_TIME if is_time else _GROUP_TITLES.get(prefix, prefix), []).append(curve)
    for title in _QUIET_GROUPS:  # what a run is judged by comes first
        groups[title] = groups.pop(title, [])
    return {title: group for title, group in groups.items() if group}


def is_score(name: str) -> bool:
    """Whether a column is a score whose highest value counts."""
    return name.startswith("val/map")


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


def _galleries(run_folder: Path, max_bytes: int, has_charts: bool) -> dict[str, Gallery]:
    """Plots, where no charts show the same, then predictions, within what the page may still grow by."""
    plots = make_gallery(sorted((run_folder / "plots").glob("*.png")) if not has_charts else [], _MAX_PLOTS, max_bytes)
    predictions = make_gallery(
        sorted((run_folder / "predictions").glob("*.jpg")), _MAX_PREDICTIONS, max_bytes - plots.num_bytes
    )
    galleries = {"Plots": plots, "Predictions": predictions}
    return {title: gallery for title, gallery in galleries.items() if gallery.pictures or gallery.left_out}
