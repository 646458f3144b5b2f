"""Several runs side by side as one HTML page: their curves over each other, what differs in their settings, results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anchorite.errors import InputError
from anchorite.report.charts import Chart, Line, decimals, line_style, make_chart
from anchorite.report.page import render_page
from anchorite.report.run_data import RunFiles, clock, flatten, none_if_absent, read_status, show
from anchorite.report.run_page import COCO_NUMBERS, MOST_CLASSES, STYLES, class_table, effective_settings

MOST_RUNS = 16
_MAX_CURVES = 40
ComparedRow = tuple[str, tuple[str, ...], tuple[bool, ...]]  # a name, a text for each run, whether each is the best


def comparison_page(run_folders: Sequence[Path]) -> str:
    """The page that compares the runs, as HTML.

    Raises InputError when a folder is named twice, when there are more than 16, or when a file in one is malformed.
    """
    if len(run_folders) > MOST_RUNS:
        raise InputError(f"{len(run_folders)} runs: a page compares at most {MOST_RUNS}; leave some out")
    folders = [folder.resolve() for folder in run_folders]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: named twice; name each run once")
    runs = [RunFiles(folder) for folder in run_folders]
    # The folders' names, with as many of their parent folders as it takes to distinguish them.
    names = [folder.name for folder in folders]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
    same_data = len({_val_split(files) or str(files.facts.get("data")) for files in runs}) == 1
    context = {
        "names": names,
        "styles": [line_style(number) for number in range(len(runs))],
        "folders": [str(folder) for folder in folders],
        "statuses": [read_status(files) for files in runs],
        "same_data": same_data,
        "results": _results(runs, same_data),
        "classes": _classes(runs, same_data),
        "charts": _charts(runs, names),
        "settings": _differing([dict(flatten(files.recipe)) for files in runs]),
        "labels": _differing([_data_counts(files) or {} for files in runs]),
        "effective": _differing(
            [{name: effective for name, _, effective, _ in effective_settings(files)} for files in runs]
        ),
    }
    return render_page("compare.html.j2", context, styles=STYLES, scripts=("chart.js",))


@none_if_absent
def _val_split(files: RunFiles) -> str:
    """What identifies the images and labels that a run was measured on."""
    return str(files.facts["splits"]["val"]["fingerprint"])


@none_if_absent
def _data_counts(files: RunFiles) -> dict[str, str]:
    """What each split of a run held, by run.json; nothing of a release that did not count it."""
    titles = {"images": "images", "boxes": "objects", "weighted": "weighted", "ignored": "regions ignored"}
    return {
        f"{row['split']}: {title}": show(row.get(key, 0))  # weights are newer than the rest
        for row in files.facts["checks"]["splits"]
        for key, title in titles.items()
    }


def _results(runs: Sequence[RunFiles], mark: bool) -> list[ComparedRow]:
    """The COCO numbers at each run's best epoch, epochs, best epoch and time."""
    scores = [(title, [_at_best(one, one.metrics.get(f"val/{key}")) for one in runs]) for key, title, _ in COCO_NUMBERS]
    seconds = [files.seconds("seconds/train", "val/seconds_") or math.nan for files in runs]
    return [
        *(_row(title, values, decimals, mark) for title, values in scores if any(map(math.isfinite, values))),
        _row("epochs", [len(files.epochs) for files in runs], str, mark=False),
        _row("best epoch", [_at_best(files, files.epochs) for files in runs], "{:g}".format, mark=False),
        _row("time", [-value for value in seconds], lambda value: clock(-value), mark),
    ]


def _at_best(files: RunFiles, column: Sequence[float] | None) -> float:
    return math.nan if column is None or files.best_row is None else column[files.best_row]


def _classes(runs: Sequence[RunFiles], mark: bool) -> list[ComparedRow]:
    """AP of each class, a row a class of any run, by the runs' summaries."""
    tables = [{str(row["name"]): row["ap"] for row in class_table(files) or ()} for files in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))[:MOST_CLASSES]
    values = [[math.nan if (ap := table.get(name)) is None else float(ap) for table in tables] for name in names]
    return [_row(name, of_runs, decimals, mark) for name, of_runs in zip(names, values, strict=True)]


def _row(name: str, values: Sequence[float], text: Callable[[Any], str], mark: bool) -> ComparedRow:
    """A row whose highest value is marked, if asked for and unless all are equal."""
    finite = [value for value in values if math.isfinite(value)]
    differ = mark and len(finite) > 1 and max(finite) > min(finite)
    cells = tuple(text(value) if math.isfinite(value) else "-" for value in values)
    return name, cells, tuple(differ and value == max(finite) for value in values)


def _charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    """A chart for every column of scores and losses, a line a run."""
    columns = list(dict.fromkeys(name for files in runs for name in files.metrics))
    scores = [name for name in columns if name.startswith(("val/map", "val/ar_"))]
    others = [name for name in columns if name.startswith("train/") or name in ("lr", "images_per_second")]
    charts = []
    for column in [*scores, *others][:_MAX_CURVES]:
        values = [files.metrics.get(column, [math.nan] * len(files.epochs)) for files in runs]
        lines = [Line(name, one.epochs, ys) for name, one, ys in zip(names, runs, values, strict=True)]
        charts.append(make_chart(column, lines))
    return [chart for chart in charts if chart.strokes]


def _differing(settings: Sequence[dict[str, str]]) -> list[ComparedRow]:
    """The settings whose values are not the same in all runs."""
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [(name, tuple(one.get(name, "-") for one in settings)) for name in names]
    return [(name, cells, (False,) * len(cells)) for name, cells in rows if len(set(cells)) > 1]
