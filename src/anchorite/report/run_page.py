"""How a run goes or went, as one HTML page that works from disk, offline, for years.

Legend: K classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.errors import InputError
from anchorite.files import write_text_atomically
from anchorite.report.charts import Chart, Line, decimals, format_number, make_chart
from anchorite.report.page import MAX_PAGE_BYTES, Gallery, make_gallery, render_page
from anchorite.report.run_data import RunFiles, clock, flatten, read_status, show
from anchorite.report.run_settings import effective_settings, lr_plan

STYLES = ("style.css", "run_report.css")
COCO_NUMBERS = (
    ("map", "mAP", "AP averaged over IoU .50 to .95 and all classes"),
    ("map50", "mAP50", "AP at IoU .50"),
    ("map75", "mAP75", "AP at IoU .75"),
    ("map_small", "mAP small", "objects under 32 x 32 pixels"),
    ("map_medium", "mAP medium", "objects from 32 x 32 to 96 x 96 pixels"),
    ("map_large", "mAP large", "objects over 96 x 96 pixels"),
    ("ar_1", "AR 1", "average recall with the best detection of each image and class"),
    ("ar_10", "AR 10", "average recall with the best 10"),
    ("ar_100", "AR 100", "average recall with the best 100"),
    ("ar_small", "AR small", "average recall of small objects"),
    ("ar_medium", "AR medium", "average recall of medium objects"),
    ("ar_large", "AR large", "average recall of large objects"),
)
MOST_CLASSES = 1000  # and rows of any other table
_MAX_PREDICTIONS, _MAX_PLOTS, _MAX_EXAMPLES = 16, 24, 12
_MAX_DETAILED_CURVES = 40
_MAX_LINES = 16  # of one chart; of more classes, the worst and the best
_MAX_CONFUSED = 24  # rows of the confusion matrix; of more classes, those with most errors
_GROUP_TITLES = {"train": "Training losses", "val": "Validation scores", "seconds": "Seconds", "": "Pace"}
_VALIDATION_TIME = "Validation time"
_FOLDED_GROUPS = ("Seconds", "Pace", _VALIDATION_TIME)  # of interest only when something is slow
_EXAMPLE_NAME = re.compile(r"(worst|best)-[0-9]{2}\.jpg")
_LETTER_HEIGHT, _LETTER_WIDTH = 4.2, 2.2  # of texts on an example, in hundredths of its longer side


def write_run_report(run_folder: Path, path: Path | None = None) -> Path:
    """Write the page of a run, by default as run_folder/report.html, and return its path.

    It shows the run's small files, plots/*.png, predictions/*.jpg and examples/*.jpg, each if present. Raises
    InputError when the folder is not a run's or a file in it is malformed, StorageError when the page cannot be
    written.
    """
    path = run_folder / "report.html" if path is None else path
    write_text_atomically(path, run_page(run_folder))
    return path


def run_page(run_folder: Path, live_stamp: str | None = None) -> str:
    """The page of a run as it is now, at most 3 MB of HTML.

    live_stamp: for the live viewer, which keeps the page up to date: the run's `stamp` before the page was made.
    """
    if not any((run_folder / name).is_file() for name in ("recipe.yaml", "metrics.csv", "summary.json")):
        raise InputError(
            f"{run_folder}: is not the folder of a run (no recipe.yaml, metrics.csv or summary.json); "
            "name a folder such as runs/NAME"
        )
    files = RunFiles(run_folder)
    live = live_stamp is not None
    context = {**_context(files), "live": live, "stamp": live_stamp}

    def render(examples: Examples | None, galleries: dict[str, Gallery]) -> str:
        scripts = ("chart.js", "live.js") if live else ("chart.js",)
        content = {**context, "examples": examples, "galleries": galleries}
        return render_page("run_report.html.j2", content, styles=STYLES, scripts=scripts, connects_to_itself=live)

    room = MAX_PAGE_BYTES - len(render(None, {}).encode("utf-8"))
    examples = read_examples(files, room // 2)
    room -= 0 if examples is None else examples.num_bytes
    # Plots only where no charts show the same.
    plots = [] if context["charts"] else sorted((run_folder / "plots").glob("*.png"))
    galleries = {"Plots": make_gallery(plots, _MAX_PLOTS, room)}
    predictions = sorted((run_folder / "predictions").glob("*.jpg"))
    galleries["Predictions"] = make_gallery(predictions, _MAX_PREDICTIONS, room - galleries["Plots"].num_bytes)
    return render(examples, {title: one for title, one in galleries.items() if one.pictures or one.left_out})


def _context(files: RunFiles) -> dict[str, Any]:
    """Everything the template shows but the pictures."""
    summary = dict(files.summary)
    decisions = summary.pop("decisions", None) or []
    dataset, classes, environment = data_facts(files), class_table(summary), files.environment()
    shown_above = {"environment"} if environment else set()
    if dataset and dataset["is_complete"]:
        shown_above.add("dataset")
    if classes:  # what else the section says is in the tables and charts
        shown_above |= {"best_validation", "last_validation"}
    rest = {key: value for key, value in summary.items() if key not in shown_above}
    single = {key: value for key, value in rest.items() if not isinstance(value, dict)}
    sections = {"result": single, **{key: value for key, value in rest.items() if isinstance(value, dict)}}
    return {
        "run_name": files.folder.resolve().name,
        "status": read_status(files),
        "tiles": _tiles(files),
        "settings": effective_settings(files),
        "anchors": _anchor_rows(files.facts.get("anchors")),
        "plan": lr_plan(files),
        "curve_groups": _curve_groups(files),
        "folded": _FOLDED_GROUPS,
        "coco": _coco_table(files),
        "classes": classes,
        "charts": validation_charts(files.validation),
        "confusion": confusion_table(files.validation),
        "time": time_split(files),
        "dataset": dataset,
        "environment": {"facts": [(key, show(value)) for key, value in environment.items()], "tables": {}},
        "decisions": [show(decision) for decision in (decisions if isinstance(decisions, list) else [decisions])],
        "sections": [
            _section(key.replace("_", " ").capitalize(), content) for key, content in sections.items() if content
        ],
        "recipe": _section("Recipe", dict(flatten(files.recipe))),
    }


def _anchor_rows(anchors: Any) -> list[str]:
    """For each level its anchors as text; empty where they are not a table of numbers."""
    try:
        return [
            ", ".join(f"{width:g} x {height:g}" for width, height in zip(row[::2], row[1::2], strict=True))
            for row in anchors or ()
        ]
    except (TypeError, ValueError):
        return []


def _tiles(files: RunFiles) -> list[tuple[str, str, str]]:
    """The figures to see first, as (label, value, note)."""
    planned = files.recipe.get("epochs")
    tiles = [("Epochs", str(len(files.epochs)), f"of {planned}" if isinstance(planned, int) else "")]
    for name, values in files.metrics.items():
        finite = [(value, epoch) for value, epoch in zip(values, files.epochs, strict=True) if math.isfinite(value)]
        if _is_score(name) and "_" not in name and finite:
            value, epoch = max(finite, key=lambda pair: pair[0])
            tiles.append((f"Best {name}", format_number(value), f"at epoch {format_number(epoch)}"))
        elif name == "images_per_second" and finite:
            tiles.append(("Images a second", format_number(round(median(value for value, _ in finite), 1)), "median"))
    return tiles


def _is_score(name: str) -> bool:
    """Whether a column of the metrics is a score whose highest value is the best."""
    return name.startswith("val/map")


def _curve_groups(files: RunFiles) -> dict[str, list[Chart]]:
    """A chart for every column but the epoch, under the title of the part before the slash."""
    groups: dict[str, list[Chart]] = {title: [] for title in _GROUP_TITLES.values()}
    brief = len(files.metrics) > _MAX_DETAILED_CURVES
    for name, values in files.metrics.items():
        if name == "epoch":
            continue
        prefix, _, title = name.rpartition("/")
        chart = make_chart(title, [Line(title, files.epochs, values)], mark_highest=_is_score(name), brief=brief)
        is_time = prefix == "val" and (title.startswith("seconds_") or title == "images_per_second")
        groups.setdefault(_VALIDATION_TIME if is_time else _GROUP_TITLES.get(prefix, prefix), []).append(chart)
    for title in _FOLDED_GROUPS:  # what a run is judged by comes first
        groups[title] = groups.pop(title, [])
    return {title: group for title, group in groups.items() if group}


def _section(title: str, content: dict[str, Any]) -> dict[str, Any]:
    """A mapping as facts, and as tables where it holds lists of mappings."""
    tables: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns = list(dict.fromkeys(name for row in value[:MOST_CLASSES] for name in row))
            rows = [[_cell(row.get(name)) for name in columns] for row in value[:MOST_CLASSES]]
            tables[key] = {"columns": columns, "rows": rows, "num_left_out": len(value) - len(rows)}
        else:
            facts[key] = value
    return {"title": title, "facts": flatten(facts), "tables": tables}


def _cell(value: Any) -> tuple[str, bool]:
    """A value as text, and whether it is a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_number(value), True
    return show(value), False


def _coco_table(files: RunFiles) -> dict[str, Any] | None:
    """The twelve numbers of the best and of the last epoch as (title, best, last, meaning); None without any."""
    row = files.best_row
    if row is None:
        return None
    rows = [
        (title, decimals(column[row]), decimals(column[-1]), meaning)
        for key, title, meaning in COCO_NUMBERS
        if (column := files.metrics.get(f"val/{key}"))
    ]
    return {"best": format_number(files.epochs[row]), "last": format_number(files.epochs[-1]), "rows": rows}


def class_table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a class from the section best_validation; empty where it is missing or of another shape."""
    try:
        rows = summary["best_validation"]["metrics"]["classes"][:MOST_CLASSES]
        names = ("name", "num_images", "num_truths", "ap", "ap50")
        return [{**{name: row[name] for name in names}, "percent": round(100 * (row["ap"] or 0.0))} for row in rows]
    except (KeyError, TypeError):
        return []


def validation_charts(details: dict[str, Any]) -> list[Chart]:
    """Precision over recall and F1 over confidence, a line a class and their mean; empty where there is none."""
    try:
        names = [str(name) for name in details["class_names"]]
        threshold = details["iou_threshold"] if "iou_threshold" in details else details["iou_limit"]  # older runs
        precision, f1 = _matrix(details["envelope"]), _matrix(details["f1"])
        best_f1 = np.where(np.isnan(f1).all(axis=1), np.nan, np.nan_to_num(f1, nan=-1.0).max(axis=1))
        titles = (
            f"Precision over recall at IoU {threshold:g} (AP)",
            f"F1 over confidence at IoU {threshold:g} (best F1)",
        )
        mean_precision = np.asarray(precision.mean(axis=1))
        charts = [
            _class_chart(titles[0], "recall", names, details["recalls"], precision, mean_precision, np.mean),
            _class_chart(titles[1], "confidence", names, details["confidences"], f1, best_f1, np.max),
        ]
    except (KeyError, TypeError, ValueError, IndexError):
        return []
    return [chart for chart in charts if chart is not None]


def _matrix(rows: Any) -> NDArray[np.float64]:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _class_chart(
    title: str,
    x_name: str,
    names: Sequence[str],
    xs: Sequence[float],
    rows: NDArray[np.float64],
    scores: NDArray[np.float64],
    overall: Any,
) -> Chart | None:
    """A line a class with its score, and a strong one for the mean of the classes, whose score is `overall` of it."""
    labelled = [k for k in range(len(names)) if math.isfinite(scores[k])]
    if not labelled:
        return None
    mean = np.nanmean(rows[labelled], axis=0)
    best_first = sorted(labelled, key=lambda k: -scores[k])
    half, note = _MAX_LINES // 2, ""
    if len(best_first) > _MAX_LINES:
        note = f"the {half} best and the {half} worst of {len(labelled)} classes"
        best_first = [*best_first[:half], *best_first[-half:]]
    lines = [Line(names[k], xs, rows[k].tolist(), f"{scores[k]:.3f}") for k in best_first]
    lines.append(Line("mean of classes", xs, mean.tolist(), f"{overall(mean):.3f}", strong=True))
    return make_chart(title, lines, x_name=x_name, note=note, y_range=(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A count of the confusion matrix, its darkness (0 to 10, by its share of the row), and the words for hovering."""

    count: int
    shade: int
    right: bool
    words: str


class ConfusionTable(NamedTuple):
    """names: of the rows and of the columns, the last one the background; note: what was left out."""

    names: tuple[str, ...]
    rows: tuple[tuple[MatrixCell, ...], ...]
    note: str


def confusion_table(details: dict[str, Any]) -> ConfusionTable | None:
    """The confusion matrix, of many classes those with the most errors; None where there is none."""
    try:
        names = [str(name) for name in details["class_names"]] + ["background"]
        counts = np.array(details["confusion"]["counts"], dtype=np.int64)
        confidence = float(details["confusion"]["confidence"])
        if counts.shape != (len(names), len(names)):
            return None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    note = f"Detections of confidence {confidence:g} or more, at IoU .5."
    background = len(names) - 1
    chosen = list(range(len(names)))
    if background > _MAX_CONFUSED:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        chosen = [*sorted(np.argsort(-errors[:-1], kind="stable")[:_MAX_CONFUSED].tolist()), background]
        note += f" Shown are the {_MAX_CONFUSED} of {background} classes with the most errors."

    def cell(i: int, j: int) -> MatrixCell:
        count, total = int(counts[i, j]), int(counts[i].sum())
        words = f"{names[i]}: {count} of {total} "
        if i == background:
            words = f"{count} x {names[j]} found where nothing is labelled"
        elif j == background:
            words += "missed"
        else:
            words += "found" if i == j else f"taken for {names[j]}"
        shade = max(1, round(10 * count / total)) if count else 0
        return MatrixCell(count, shade, i == j != background, words)

    rows = tuple(tuple(cell(i, j) for j in chosen) for i in chosen)
    return ConfusionTable(tuple(names[i] for i in chosen), rows, note)


def time_split(files: RunFiles) -> list[dict[str, Any]]:
    """The parts of the run's time with name, style (of its colour), seconds as text, percent, start in percent and
    meaning; empty where the metrics do not tell.

    The rest of the whole time is known only where the run was made in one go: else the summary has that of its last
    part alone.
    """
    train, wait = files.seconds("seconds/train"), files.seconds("seconds/data_wait")
    validation = files.seconds("val/seconds_")
    if train <= 0:
        return []
    parts = [
        ("training steps", "train", max(0.0, train - wait), "forward, loss, backward and optimizer"),
        ("waiting for data", "wait", wait, "the step had to wait for its images"),
        ("validation", "val", validation, "on the val split, after every epoch"),
    ]
    whole = files.summary.get("seconds")
    if isinstance(whole, int | float) and (rest := whole - train - validation) >= 0:
        parts.append(("all else", "rest", rest, "checkpoints, weights, metrics, and the loop itself"))
    total, start, shares = sum(seconds for _, _, seconds, _ in parts), 0.0, []
    for name, style, seconds, meaning in parts:
        text = clock(seconds) if seconds >= 10 else f"{seconds:.2g} s"
        percent = 100 * seconds / total
        shares.append(
            {"name": name, "style": style, "seconds": text, "percent": percent, "start": start, "meaning": meaning}
        )
        start += percent
    return shares


def data_facts(files: RunFiles) -> dict[str, Any] | None:
    """Path, splits, adjustments and boxes of each class, by the summary; before it is written, what run.json tells."""
    try:
        return _described_dataset(files.summary["dataset"])
    except (KeyError, TypeError, AttributeError, IndexError):
        pass
    try:
        facts = [("path", str(files.facts["data"])), ("format", str(files.facts["format"]))]
        splits = [
            {"split": name, "images": one["images"], "boxes": one["boxes"], "images_without_boxes": None}
            for name, one in files.facts["splits"].items()
        ]
        return {"facts": facts, "splits": splits, "names": [], "classes": [], "num_left_out": 0, "is_complete": False}
    except (KeyError, TypeError, AttributeError):
        return None


def _described_dataset(dataset: Any) -> dict[str, Any]:
    """What `describe_dataset` wrote; KeyError and the like where it is of another shape."""
    adjusted = [(f"labels {kind}", show(count)) for kind, count in dataset["adjusted_labels"].items()]
    keys = ("split", "images", "boxes", "images_without_boxes")
    splits = [{key: row.get(key) for key in keys} for row in dataset["splits"]]
    names = [row["split"] for row in dataset["splits"]]
    rows = [(row["class"], [row.get(name) for name in names]) for row in dataset["boxes_by_class"][:MOST_CLASSES]]
    most = max((counts[0] for _, counts in rows if isinstance(counts[0], int)), default=0)
    return {
        "facts": [(key, show(dataset[key])) for key in ("path", "format")]
        + (adjusted or [("labels adjusted", "none")]),
        "splits": splits,
        "names": names,
        "classes": [
            {"name": name, "counts": counts, "percent": round(100 * (counts[0] or 0) / (most or 1))}
            for name, counts in rows
        ],
        "num_left_out": len(dataset["boxes_by_class"]) - len(rows),
        "is_complete": True,
    }


class DrawnBox(NamedTuple):
    """A rectangle in the pixels of the image and the words on it; label_x, label_y: where they begin."""

    x: float
    y: float
    width: float
    height: float
    words: str
    label_x: float
    label_y: float


class Example(NamedTuple):
    """An image of the split with its boxes; unit: a hundredth of its longer side, in its pixels."""

    kind: str
    name: str
    uri: str
    width: int
    height: int
    unit: float
    words: str
    labels: list[DrawnBox]
    found: list[DrawnBox]


class Examples(NamedTuple):
    """Images with labels and detections; confidence: of the detections that are drawn, as text."""

    confidence: str
    images: list[Example]

    @property
    def num_bytes(self) -> int:
        """About what they add to the page."""
        return sum(len(one.uri) + 600 * (1 + len(one.labels) + len(one.found)) for one in self.images)


def read_examples(files: RunFiles, max_bytes: int) -> Examples | None:
    """The examples that validation.json names, as many as fit; None without any."""
    try:
        section = files.validation["examples"]
        names = [str(name) for name in files.validation["class_names"]]
        listed = [one for one in section["images"][:_MAX_EXAMPLES] if _EXAMPLE_NAME.fullmatch(one["file"])]
        confidence = f"{float(section['confidence']):g}"
    except (KeyError, TypeError, ValueError):
        return None
    gallery = make_gallery([files.folder / "examples" / one["file"] for one in listed], _MAX_EXAMPLES, max_bytes)
    images = []
    for one in listed:
        try:
            images.append(_example(one, gallery.pictures[one["file"]], names))
        except (KeyError, TypeError, ValueError, IndexError):
            continue  # left out of the gallery, or described in another way
    return Examples(confidence, images) if images else None


def _example(one: dict[str, Any], uri: str, names: list[str]) -> Example:
    width, height = int(one["width"]), int(one["height"])
    unit = max(width, height) / 100
    titles = {"right": "right", "missed": "missed", "false_alarms": "false", "confused": "of another class"}
    outcomes = [f"{int(one[key])} {title}" for key, title in titles.items() if one[key]]
    words = ", ".join(outcomes) or "nothing labelled, nothing found"
    labels = [(box["box"], names[box["class"]]) for box in one["labels"]]
    found = [(box["box"], f"{names[box['class']]} {float(box['score']):.2f}") for box in one["found"]]
    boxes = (_drawn_boxes(labels, unit, height, below=True), _drawn_boxes(found, unit, height, below=False))
    return Example(str(one["kind"]), str(one["name"]), uri, width, height, unit, words, *boxes)


def _drawn_boxes(boxes: list[tuple[list[float], str]], unit: float, height: int, *, below: bool) -> list[DrawnBox]:
    """The boxes with their words: of labels at the bottom edge, of detections above the top edge, inside where there is
    no room; words that would cover those of an earlier box are moved down where there is room."""
    letters, margin = _LETTER_HEIGHT * unit, 0.8 * unit
    drawn: list[DrawnBox] = []
    for corners, words in boxes:
        x0, y0, x1, y1 = (float(value) for value in corners)
        above = y0 - margin if y0 > letters else y0 + letters - unit
        x, y = x0 + margin, min(max(y1 - margin if below else above, letters - unit), height - margin)
        reach = x + _LETTER_WIDTH * unit * len(words)
        beside = [
            one for one in drawn if one.label_x < reach and x < one.label_x + _LETTER_WIDTH * unit * len(one.words)
        ]
        rows = [y + letters * step for step in range(1 + int((height - y) / letters))]
        free = (row for row in rows if all(abs(row - one.label_y) >= 0.9 * letters for one in beside))
        drawn.append(DrawnBox(x0, y0, x1 - x0, y1 - y0, words, x, next(free, y)))
    return drawn
