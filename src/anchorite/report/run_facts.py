"""Where a run's time went, what it was trained on, and on what: made ready to be shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from anchorite.report.run_files import RunFiles, show
from anchorite.report.run_settings import saved_environment
from anchorite.report.run_status import clock

_MOST_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the time. style: of its colour; percent: its share; start: where it begins, in percent."""

    name: str
    style: str
    seconds: str
    percent: float
    start: float
    meaning: str


def time_split(files: RunFiles) -> list[Share]:
    """The parts of the run's time, by the metrics; empty where they tell nothing.

    What is left of the whole time is told only where the run was made in one go: else the summary knows but the last.
    """
    metrics = files.metrics
    train, wait = _total(metrics, "seconds/train"), _total(metrics, "seconds/data_wait")
    validation = sum(_total(metrics, name) for name in metrics if name.startswith("val/seconds_"))
    if train <= 0:
        return []
    parts = [
        ("training steps", "train", max(0.0, train - wait), "forward, loss, backward and optimizer"),
        ("waiting for data", "wait", wait, "the step had to wait for its images"),
        ("validation", "val", validation, "on the val split, after every epoch"),
    ]
    whole = files.summary.get("seconds")
    rest = whole - train - validation if isinstance(whole, int | float) else -1.0
    if rest >= 0:
        parts.append(("all else", "rest", rest, "checkpoints, weights, metrics, and what the loop itself takes"))
    total, start, shares = sum(seconds for _, _, seconds, _ in parts), 0.0, []
    for name, style, seconds, meaning in parts:
        percent = 100 * seconds / total
        shares.append(
            Share(name, style, clock(seconds) if seconds >= 10 else f"{seconds:.2g} s", percent, start, meaning)
        )
        start += percent
    return shares


def data_facts(files: RunFiles) -> dict[str, Any] | None:
    """Place, splits, adjustments and boxes of each class, by the summary, or while there is none by run.json."""
    dataset = files.summary.get("dataset")
    if _is_described(dataset):
        assert isinstance(dataset, dict)
        return _described(dataset)
    try:
        splits = [
            {"split": name, "images": one["images"], "boxes": one["boxes"], "images_without_boxes": None}
            for name, one in files.facts["splits"].items()
        ]
        place = [("path", str(files.facts["data"])), ("format", str(files.facts["format"]))]
        return {"facts": place, "splits": splits, "adjusted": None, "names": [], "classes": [], "num_left_out": 0}
    except (KeyError, TypeError, AttributeError):
        return None


def environment(files: RunFiles) -> list[tuple[str, str]]:
    """What the run ran on, by the summary, or while there is none by the newest checkpoint."""
    found = files.summary.get("environment") or saved_environment(files.folder / "checkpoints")
    return [(str(key), show(value)) for key, value in found.items()] if isinstance(found, dict) else []


def _is_described(dataset: Any) -> bool:
    """Whether a summary's data set is as `describe_dataset` writes it."""
    if not isinstance(dataset, dict) or not {"path", "format", "splits", "boxes_by_class"} <= dataset.keys():
        return False
    lists = (dataset["splits"], dataset["boxes_by_class"])
    return all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists)


def _described(dataset: dict[str, Any]) -> dict[str, Any]:
    splits = [
        {key: row.get(key) for key in ("split", "images", "boxes", "images_without_boxes")} for row in dataset["splits"]
    ]
    names = [str(row["split"]) for row in splits]
    counts = dataset["boxes_by_class"][:_MOST_CLASSES]
    numbers = [[row.get(name) for name in names] for row in counts]
    most = max((n for row in numbers for n in row[:1] if isinstance(n, int)), default=0)
    classes = []
    for row, ns in zip(counts, numbers, strict=True):
        share = round(100 * ns[0] / most) if most and ns and isinstance(ns[0], int) else 0
        classes.append({"name": str(row.get("class", "-")), "counts": [show(n) for n in ns], "share": share})
    adjusted = dataset.get("adjusted_labels")
    return {
        "facts": [("path", show(dataset["path"])), ("format", show(dataset["format"]))],
        "splits": splits,
        "adjusted": [(str(kind), show(n)) for kind, n in adjusted.items()] if isinstance(adjusted, dict) else None,
        "names": names,
        "classes": classes,
        "num_left_out": len(dataset["boxes_by_class"]) - len(counts),
    }


def _total(metrics: dict[str, list[float]], name: str) -> float:
    return sum(seconds for seconds in metrics.get(name, ()) if math.isfinite(seconds))
