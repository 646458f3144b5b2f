"""What a finished run still lacks: plots and pictures of its best weights, the facts around it, and its page."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anchorite
from anchorite.data import DatasetIndex, Record, ShardedSplit
from anchorite.devices import choose_device, choose_precision
from anchorite.evaluate import ValidationResult, Validator
from anchorite.files import write_text_atomically
from anchorite.model import load_weights
from anchorite.predict import Predictor
from anchorite.report.run_files import read_summary
from anchorite.report.run_pictures import save_predictions
from anchorite.report.run_report import write_run_report
from anchorite.report.run_validation import save_details
from anchorite.train import RunFolder

_PAGE = "report.html"


def conclude_run(run_folder: Path, dataset: DatasetIndex) -> Path:
    """Write what only the finished run can say, and return the path of its page.

    plots/*.png, predictions/*.jpg, examples/*.jpg and validation.json show the best weights on the val split (without
    one there is none of them), and summary.json gets the sections best_validation, environment and dataset. What stood
    there before is replaced.
    """
    folder = RunFolder(run_folder)
    recipe = folder.read_recipe()
    device = choose_device(recipe.device)
    facts: dict[str, Any] = {"environment": describe_environment(device), "dataset": describe_dataset(dataset)}
    records = dataset.splits.get("val", ())
    if records:
        detector, info = load_weights(folder.best)
        validator = Validator(records, info.class_names, recipe.image_size, recipe.batch, recipe.image_store)
        precision = choose_precision(recipe.precision, device)
        result: ValidationResult = validator.run(detector, recipe.validation, device, precision.dtype)
        result.save_plots(run_folder / "plots")
        save_details(run_folder, result, records)
        save_predictions(run_folder / "predictions", Predictor(detector, info, str(device)), records)
        facts["best_validation"] = result.to_json()
    summary = read_summary(folder.summary) | facts
    write_text_atomically(folder.summary, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return write_run_report(run_folder)


def is_concluded(run_folder: Path) -> bool:
    """Whether the run came to its end and `conclude_run` did, too: the page is the last that is written."""
    return "environment" in read_summary(RunFolder(run_folder).summary) and (run_folder / _PAGE).is_file()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What a run ran on: versions, system, processor and the cores that it may use."""
    on_cuda = device.type == "cuda"
    return {
        "anchorite": anchorite.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
    }


def describe_dataset(dataset: DatasetIndex) -> dict[str, Any]:
    """What a run was trained on: place, format, images and boxes of each split and class, labels that were adjusted."""
    counts = {split: _box_counts(records, len(dataset.class_names)) for split, records in dataset.splits.items()}
    return {
        "path": str(dataset.root.resolve()),
        "format": dataset.format,
        "adjusted_labels": dict(Counter(one.kind for one in dataset.adjustments)),
        "splits": [
            {
                "split": split,
                "images": len(records),
                "boxes": sum(counts[split]),
                "images_without_boxes": _num_background(records),
            }
            for split, records in dataset.splits.items()
        ],
        "boxes_by_class": [
            {"class": name, **{split: numbers[number] for split, numbers in counts.items()}}
            for number, name in enumerate(dataset.class_names)
        ],
    }


def _box_counts(records: Sequence[Record], num_classes: int) -> list[int]:
    """Boxes of each class."""
    if isinstance(records, ShardedSplit):
        return records.class_counts(with_ignored=True).tolist()
    ids = np.concatenate([np.zeros(0, np.int64), *(record.class_ids for record in records)])
    return np.bincount(ids, minlength=num_classes).tolist()


def _num_background(records: Sequence[Record]) -> int:
    if isinstance(records, ShardedSplit):
        return records.facts.background
    return sum(len(record.class_ids) == 0 for record in records)


def _processor() -> str:
    """The processor's name; on Linux Python itself knows its architecture only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
