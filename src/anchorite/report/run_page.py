"""How a run goes or went, as one HTML page that works from disk, offline, for years.

Legend: K classes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors import safe_open

from anchorite.errors import InputError
from anchorite.files import StrPath, write_text_atomically
from anchorite.metrics import most_confused
from anchorite.report.charts import Chart, Line, decimals, format_number, make_chart
from anchorite.report.page import MAX_PAGE_BYTES, embed_pictures, render_page
from anchorite.report.run_data import RunFiles, flatten, none_if_absent, read_status, show

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
_MOST_NAMED = 12  # classes of a source
_MAX_LINES = 16  # of one chart; of more classes, the worst and the best
MAX_CONFUSED = 24  # rows of the confusion matrix; of more classes, those with most errors
_SCORES = "val/map"  # how columns begin whose highest value is the best
_GROUP_TITLES = {"train": "Training losses", "val": "Validation scores", "seconds": "Seconds", "": "Pace"}
_VALIDATION_TIME = "Validation time"
_FOLDED_GROUPS = ("Seconds", "Pace", _VALIDATION_TIME)  # of interest only when something is slow
_UNKNOWN, _NOT_RECORDED = "-", "not recorded"  # of recipes that do not tell; of runs of earlier releases
_EXAMPLE_NAME = re.compile(r"(worst|best)-[0-9]{2}\.jpg")
_LETTER_HEIGHT, _LETTER_WIDTH = 4.2, 2.2  # of texts on an example, in hundredths of its longer side


def write_run_report(run_folder: StrPath, path: StrPath | None = None) -> Path:
    """Write the page of a run, by default as run_folder/report.html, and return its path.

    It shows the run's small files, plots/*.png, predictions/*.jpg and examples/*.jpg, each if present. Raises
    InputError when the folder is not a run's or a file in it is malformed, StorageError when the page cannot be
    written.
    """
    run_folder = Path(run_folder)
    path = run_folder / "report.html" if path is None else Path(path)
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

    def render(examples: dict[str, Any] | None, galleries: dict[str, tuple[dict[str, str], list[str]]]) -> str:
        scripts = ("chart.js", "live.js") if live else ("chart.js",)
        content = {**context, "examples": examples, "galleries": galleries}
        return render_page("run_report.html.j2", content, styles=STYLES, scripts=scripts, connects_to_itself=live)

    room = MAX_PAGE_BYTES - len(render(None, {}).encode("utf-8"))
    examples = read_examples(files, room // 2)
    if examples:
        room -= sum(
            len(one["uri"]) + 600 * (1 + len(one["labels"] + one["found"] + one["ignored"]))
            for one in examples["images"]
        )
    # Plots only where no charts show the same.
    plots = () if context["charts"] else sorted((run_folder / "plots").glob("*.png"))
    predictions = sorted((run_folder / "predictions").glob("*.jpg"))
    galleries = {}
    for title, most, paths in (("Plots", _MAX_PLOTS, plots), ("Predictions", _MAX_PREDICTIONS, predictions)):
        if paths:
            galleries[title] = embed_pictures(paths, most, room)
            room -= sum(map(len, galleries[title][0].values()))
    return render(examples, galleries)


def _context(files: RunFiles) -> dict[str, Any]:
    """Everything the template shows but the pictures."""
    decisions = files.summary.get("decisions") or []
    dataset, classes, environment = describe_data(files), class_table(files), files.environment()
    # Of the summary, the rest: what is not shown elsewhere on the page.
    shown = {"decisions": True, "environment": environment, "dataset": dataset}
    shown |= dict.fromkeys(("best_validation", "last_validation"), classes)
    rest = {key: value for key, value in files.summary.items() if not shown.get(key)}
    sections = {"result": {key: value for key, value in rest.items() if not isinstance(value, dict)}}
    sections |= {key: value for key, value in rest.items() if isinstance(value, dict)}
    return {
        "run_name": files.folder.resolve().name,
        "status": read_status(files),
        "tiles": _tiles(files),
        "settings": effective_settings(files),
        "anchors": _anchor_rows(files),
        "plan": lr_plan(files),
        "curve_groups": _curve_groups(files),
        "folded": _FOLDED_GROUPS,
        "coco": _coco_table(files),
        "classes": classes,
        "charts": validation_charts(files),
        "confusion": confusion_table(files),
        "time": time_split(files),
        "dataset": dataset,
        "environment": flatten(environment),
        "decisions": decisions if isinstance(decisions, list) else [decisions],
        "sections": {
            key.replace("_", " ").capitalize(): _section(content) for key, content in sections.items() if content
        },
        "recipe": flatten(files.recipe),
    }


@none_if_absent
def _anchor_rows(files: RunFiles) -> list[str]:
    """For each level its anchors as text."""
    return [
        ", ".join(f"{width:g} x {height:g}" for width, height in zip(row[::2], row[1::2], strict=True))
        for row in files.facts["anchors"]
    ]


def effective_settings(files: RunFiles) -> list[tuple[str, str, str, str]]:
    """The derived settings of a run, without those of which neither recipe nor run.json tells anything: name, what the
    recipe says, what the run uses as training recorded it in run.json, and what that derives from.

    Their words are those of templates/effective_settings.txt, where r is the recipe and d what was derived, by dotted
    keys.
    """
    recipe, derived, start = dict(flatten(files.recipe)), files.facts.get("derived"), files.facts.get("start")
    recorded = dict(flatten(derived)) if isinstance(derived, dict) else {}
    settings = []
    if isinstance(start, dict):
        weights, digest, transferred = (str(start.get(key, _UNKNOWN)) for key in ("weights", "sha256", "kept"))
        settings = [("starting weights", weights, f"SHA-256 {digest[:12]}...", transferred)]

    def saved_balance(checkpoint: Path) -> tuple[str, str]:
        with safe_open(checkpoint.with_suffix(".safetensors"), framework="np") as file:
            values = [format_number(float(value)) for value in file.get_tensor("criterion.balance")]
        return ", ".join(values), f", as in {checkpoint.stem}"

    at = ", at the start"
    if saved := files.from_newest_checkpoint(saved_balance):
        recorded["balance"], at = saved
    recorded["balance_at"] = ""
    if (is_automatic := recipe.get("loss.automatic_balance")) is not None:
        recipe["balance"] = "automatic" if is_automatic == "yes" else "fixed"
        recorded["balance_at"] = f"{at}; they follow each level's loss" if is_automatic == "yes" else ""
    if (epochs := recorded.get("mosaic_epochs")) is not None:
        recorded["mosaic"] = "never" if epochs == "0" else f"epochs 1 to {epochs}"

    def filled(template: str, missing: str) -> str:
        try:
            return template.format(r=recipe, d=recorded)
        except KeyError:
            return missing

    text = (resources.files("anchorite.report") / "templates/effective_settings.txt").read_text("utf-8")
    for name, written, effective, why in (row.split(" | ") for row in text.splitlines()):
        cells = filled(written, _UNKNOWN), filled(effective, _NOT_RECORDED)
        if cells != (_UNKNOWN, _NOT_RECORDED):
            reason = why.format(r=defaultdict(lambda: _UNKNOWN, recipe), d=defaultdict(lambda: _UNKNOWN, recorded))
            settings.append((name, *cells, reason))
    return settings


@none_if_absent
def lr_plan(files: RunFiles) -> Chart:
    """The learning rates planned over the epochs; None where run.json does not tell them."""
    plan = files.facts["derived"]["lr_plan"]
    lines = [Line(name, plan["epochs"], plan[key]) for name, key in (("weights", "lr"), ("biases", "bias_lr"))]
    return make_chart("learning rate, as planned", lines, x_name="epochs")


def _tiles(files: RunFiles) -> list[tuple[str, str, str]]:
    """The figures to see first, as (label, value, note)."""
    planned = files.recipe.get("epochs")
    tiles = [("Epochs", str(len(files.epochs)), f"of {planned}" if isinstance(planned, int) else "")]
    for name, values in files.metrics.items():
        finite = [(value, epoch) for value, epoch in zip(values, files.epochs, strict=True) if math.isfinite(value)]
        if name.startswith(_SCORES) and "_" not in name and finite:
            value, epoch = max(finite, key=lambda pair: pair[0])
            tiles.append((f"Best {name}", format_number(value), f"at epoch {format_number(epoch)}"))
        elif name == "images_per_second" and finite:
            tiles.append(("Images a second", format_number(round(median(value for value, _ in finite), 1)), "median"))
    return tiles


def _curve_groups(files: RunFiles) -> dict[str, list[Chart]]:
    """A chart for every column but the epoch, under the title of the part before the slash."""
    groups: dict[str, list[Chart]] = {title: [] for title in _GROUP_TITLES.values()}
    brief = len(files.metrics) > _MAX_DETAILED_CURVES
    for name, values in files.metrics.items():
        if name == "epoch":
            continue
        prefix, _, title = name.rpartition("/")
        chart = make_chart(
            title, [Line(title, files.epochs, values)], mark_highest=name.startswith(_SCORES), brief=brief
        )
        is_time = prefix == "val" and (title.startswith("seconds_") or title == "images_per_second")
        groups.setdefault(_VALIDATION_TIME if is_time else _GROUP_TITLES.get(prefix, prefix), []).append(chart)
    for title in _FOLDED_GROUPS:  # what a run is judged by comes first
        groups[title] = groups.pop(title, [])
    return {title: group for title, group in groups.items() if group}


def _section(content: dict[str, Any]) -> dict[str, Any]:
    """A mapping as facts, and as tables where it holds lists of mappings."""
    tables = {
        key: value
        for key, value in content.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    return {
        "facts": flatten({key: value for key, value in content.items() if key not in tables}),
        "tables": {
            key: {
                "columns": list(dict.fromkeys(name for row in rows[:MOST_CLASSES] for name in row)),
                "rows": rows[:MOST_CLASSES],
                "num_left_out": len(rows[MOST_CLASSES:]),
            }
            for key, rows in tables.items()
        },
    }


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


@none_if_absent
def class_table(files: RunFiles) -> list[dict[str, Any]]:
    """A row a class of how the best weights did, by the summary."""
    rows = files.summary["best_validation"]["metrics"]["classes"][:MOST_CLASSES]
    names = ("name", "num_images", "num_truths", "ap", "ap50")
    return [{**{name: row[name] for name in names}, "percent": round(100 * (row["ap"] or 0.0))} for row in rows]


@none_if_absent
def validation_charts(files: RunFiles) -> list[Chart]:
    """Precision over recall and F1 over confidence: a line a class with its score, and a strong one for their mean."""
    details = files.validation
    names, at = [str(name) for name in details["class_names"]], f"at IoU {details['iou_threshold']:g}"
    precision, f1 = (np.array(details[key], dtype=np.float64) for key in ("envelope", "f1"))  # nan for null
    charts = []
    for title, x_name, xs, rows, scores, overall in (
        (f"Precision over recall {at} (AP)", "recall", details["recalls"], precision, precision.mean(axis=1), np.mean),
        (f"F1 over confidence {at} (best F1)", "confidence", details["confidences"], f1, np.fmax.reduce(f1, 1), np.max),
    ):
        labelled = [k for k in range(len(names)) if math.isfinite(scores[k])]
        if not labelled:
            continue
        mean = np.nanmean(rows[labelled], axis=0)
        chosen, half, note = sorted(labelled, key=lambda k: -scores[k]), _MAX_LINES // 2, ""
        if len(chosen) > _MAX_LINES:
            note = f"the {half} best and the {half} worst of {len(labelled)} classes"
            chosen = [*chosen[:half], *chosen[-half:]]
        lines = [Line(names[k], xs, rows[k].tolist(), f"{scores[k]:.3f}") for k in chosen]
        lines.append(Line("mean of classes", xs, mean.tolist(), f"{overall(mean):.3f}", strong=True))
        charts.append(make_chart(title, lines, x_name=x_name, note=note, y_range=(0.0, 1.0)))
    return charts


@none_if_absent
def confusion_table(files: RunFiles) -> dict[str, Any]:
    """The confusion matrix, of many classes the part of those with the most errors.

    names: of rows and columns, the last one the background; counts: rows of the part; totals: of the whole rows.
    """
    details, confusion = files.validation, files.validation["confusion"]
    names = [*map(str, details["class_names"]), "background"]
    counts = np.array(confusion["counts"], dtype=np.int64)
    note = f"Detections of confidence {float(confusion['confidence']):g} or more, at IoU .5."
    if "classes" in confusion:  # of more classes than a file should hold pairs of, the part alone
        chosen, totals = [*map(int, confusion["classes"]), len(names) - 1], [*map(int, confusion["totals"])]
        counts = counts.reshape(len(chosen), len(totals))
    else:
        counts = counts.reshape(len(names), len(names))
        chosen = most_confused(counts, MAX_CONFUSED)
        totals, counts = counts.sum(axis=1)[chosen].tolist(), counts[np.ix_(chosen, chosen)]
    if len(chosen) < len(names):
        note += f" Shown are the {len(chosen) - 1} of {len(names) - 1} classes with the most errors."
    return {"names": [names[k] for k in chosen], "counts": counts.tolist(), "totals": totals, "note": note}


def time_split(files: RunFiles) -> list[tuple[str, str, float, float, str]]:
    """The parts of the run's time: name, style (of its colour), seconds, percent and meaning; empty where the metrics
    do not tell.

    The rest of the whole time is known only where the run was made in one go: else the summary has that of its last
    part alone.
    """
    train, wait, validation = map(files.seconds, ("seconds/train", "seconds/data_wait", "val/seconds_"))
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
    total = sum(seconds for _, _, seconds, _ in parts)
    return [(name, style, seconds, 100 * seconds / total, meaning) for name, style, seconds, meaning in parts]


@none_if_absent
def describe_data(files: RunFiles) -> dict[str, Any]:
    """Path, splits, what was found wrong and boxes of each class, by the summary and, before it is written, by run.json
    alone; "-" for what an earlier release did not count.

    told: sentences on what was wrong with the data when the run was started; sources: see `source_rows`.
    """
    dataset, started = files.summary.get("dataset"), files.facts
    if dataset is None:
        splits = [{"split": name, **one} for name, one in started["splits"].items()]
        dataset = {"path": started["data"], "format": started["format"], "splits": splits, "boxes_by_class": []}
    facts = [(key, show(dataset[key])) for key in ("path", "format")]
    if made := started.get("val_split"):
        share, seed = show(made["share"]), show(made["seed"])
        facts.append(("split val", f"{len(made['images'])} images of train, taken out by --val {share}, seed {seed}"))
    checks = started.get("checks") or {"splits": [], "findings": []}
    if "adjusted_labels" in dataset and not started.get("checks"):  # of a run of an earlier release
        # inspect imports torch, for which `anchorite report` must not wait
        from anchorite.inspect.findings import KIND_OF_ADJUSTMENT, KINDS

        adjusted = [(KIND_OF_ADJUSTMENT.get(kind, kind), count) for kind, count in dataset["adjusted_labels"].items()]
        facts += [(KINDS[kind].words(count) if kind in KINDS else kind, show(count)) for kind, count in adjusted]
    names = [row["split"] for row in dataset["splits"]]
    classes = [(row["class"], [row.get(name) for name in names]) for row in dataset["boxes_by_class"][:MOST_CLASSES]]
    most = max((counts[0] for _, counts in classes if isinstance(counts[0], int)), default=0) or 1
    checked = {row["split"]: row for row in checks["splits"]}
    return {
        "facts": facts,
        "told": [(str(one["severity"]), str(one["text"])) for one in checks["findings"]],
        "splits": [_split_row(row, checked.get(row["split"], {})) for row in dataset["splits"]],
        "sources": source_rows(checks.get("sources", ()), names),
        "names": names,
        "classes": [(name, counts, round(100 * (counts[0] or 0) / most)) for name, counts in classes],
        "num_left_out": len(dataset["boxes_by_class"]) - len(classes),
    }


def _split_row(row: dict[str, Any], checked: dict[str, Any]) -> list[str]:
    """Of a split its name, images, objects, weights, regions, images without boxes and images left out; row: of the
    summary or of run.json, checked: what training said first."""
    ignored = row.get("ignored", checked.get("ignored"))
    objects = row.get("objects", row["boxes"] - (ignored or 0))
    weighted = row.get("weighted", checked.get("weighted"))
    mean = row.get("mean_weight", checked.get("mean_weight"))
    weights = f"{weighted} (mean {mean:.2f})" if weighted else show(weighted)
    left_out = sum(checked["left_out"].values()) if checked else None
    empty = row.get("images_without_boxes", checked.get("empty_images"))
    return [row["split"], *map(show, (row["images"], objects, weights, ignored, empty, left_out))]


def source_rows(sources: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[tuple[str, str, str, list[str]]]:
    """Of each source of labels its name, the classes it covers, the weight of its background and its images in each
    split, as texts."""
    rows = []
    for one in sources:
        words = "all classes" if one["covers"] is None else f"{_named(one['covers'])}; not {_named(one['not_covered'])}"
        weight = format_number(float(one["background_weight"]))
        rows.append((one["name"] or "-", words, weight, [show(one["images"].get(name)) for name in splits]))
    return rows


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return (", ".join(names[:_MOST_NAMED]) or "none") + (f" and {more} more" if more > 0 else "")


@none_if_absent
def read_examples(files: RunFiles, max_bytes: int) -> dict[str, Any] | None:
    """The images that validation.json names, as many as fit, with their boxes as drawn; None without any.

    confidence: of the detections that are drawn, as text.
    """
    section, names = files.validation["examples"], [str(name) for name in files.validation["class_names"]]
    listed = [one for one in section["images"][:_MAX_EXAMPLES] if _EXAMPLE_NAME.fullmatch(one["file"])]
    paths = [files.folder / "examples" / one["file"] for one in listed]
    pictures, _ = embed_pictures(paths, _MAX_EXAMPLES, max_bytes)
    titles = {"right": "right", "missed": "missed", "false_alarms": "false", "confused": "of another class"}
    images = []
    for one in (one for one in listed if one["file"] in pictures):
        width, height = int(one["width"]), int(one["height"])
        unit = max(width, height) / 100  # a hundredth of the longer side, in pixels of the image
        outcomes = [f"{int(one[key])} {title}" for key, title in titles.items() if one[key]]
        labels = [(box["box"], names[box["class"]]) for box in one["labels"]]
        found = [(box["box"], f"{names[box['class']]} {float(box['score']):.2f}") for box in one["found"]]
        ignored = [tuple(map(float, box)) for box in one.get("ignored", ())]
        images.append(
            {
                "kind": str(one["kind"]),
                "name": str(one["name"]),
                "uri": pictures[one["file"]],
                "width": width,
                "height": height,
                "unit": unit,
                "words": ", ".join(outcomes) or "nothing labelled, nothing found",
                "ignored": [{"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0} for x0, y0, x1, y1 in ignored],
                "labels": _drawn_boxes(labels, unit, height, below=True),
                "found": _drawn_boxes(found, unit, height, below=False),
            }
        )
    return {"confidence": f"{float(section['confidence']):g}", "images": images} if images else None


def _drawn_boxes(
    boxes: list[tuple[list[float], str]], unit: float, height: int, *, below: bool
) -> list[dict[str, Any]]:
    """The boxes with their words: of labels at the bottom edge, of detections above the top edge, inside where there is
    no room; words that would cover those of an earlier box are moved down where there is room."""
    letters, margin = _LETTER_HEIGHT * unit, 0.8 * unit
    drawn: list[dict[str, Any]] = []
    texts: list[tuple[float, float, float]] = []  # left and right end and base line
    for corners, words in boxes:
        x0, y0, x1, y1 = map(float, corners)
        above = y0 - margin if y0 > letters else y0 + letters - unit
        x, y = x0 + margin, min(max(y1 - margin if below else above, letters - unit), height - margin)
        end = x + _LETTER_WIDTH * unit * len(words)
        beside = [row for left, right, row in texts if left < end and x < right]
        rows = (y + letters * step for step in range(1 + int((height - y) / letters)))
        y = next((row for row in rows if all(abs(row - other) >= 0.9 * letters for other in beside)), y)
        texts.append((x, end, y))
        place = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
        drawn.append({**place, "words": words, "label_x": x, "label_y": y})
    return drawn
