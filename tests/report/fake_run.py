"""A run folder as training leaves it, with made-up but plausible content."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

from anchorite.data import Record
from anchorite.evaluate import ValidationResult, ValidationSpeed
from anchorite.metrics import Predictions, Truth, coco_metrics
from anchorite.report.conclusion import save_details
from anchorite.train import Recipe

EVIL = "<script>alert('x')</script>"


def make_run(folder: Path, num_epochs: int = 30, num_predictions: int = 6, picture_side: int = 200) -> Path:
    """Fill `folder` with every file that a report reads; class names and the like contain markup."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "model": {"size": "n", "anchors": [[10.0, 13.0], [16.0, 30.0]]},
        "train": {"epochs": num_epochs, "rate": 0.01, "compile": False, "resume": None},
        "class_names": ["disc", EVIL],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_metrics(folder, num_epochs)
    rows = [
        {"class": name, "images": 100, "objects": 200 + i, "map50": 0.91234567 - i / 10, "map": 0.7 - i / 10}
        for i, name in enumerate(("disc", EVIL))
    ]
    summary = {
        "environment": {"torch": "2.13.0", "device": "cpu", "threads": 2},
        "dataset": {"train": {"images": 400, "boxes": 1981}, "class_names": ["disc", EVIL]},
        "validation": {"map": 0.6543, "map50": 0.8765, "rows": rows},
        "decisions": ["precision: float32, because the CPU has no bfloat16 arithmetic", f"class names: {EVIL}"],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    write_pictures(folder, num_predictions, picture_side)
    return folder


def write_metrics(folder: Path, num_epochs: int) -> None:
    names = "epoch train/box train/objectness train/classification val/map val/map50 rate images_per_second seconds"
    lines = [",".join(names.split())]
    for epoch in range(1, num_epochs + 1):
        decay = float(np.exp(-epoch / 9))
        values = [
            epoch,
            0.05 + 0.1 * decay,
            0.02 + 0.3 * decay,
            0.01 + 0.4 * decay,
            0.7 * (1 - decay),
            0.9 * (1 - decay),
        ]
        lines.append(",".join(f"{value:.6g}" for value in [*values, 0.01 * decay, 41.5 + epoch % 3, 9.7]))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, num_predictions: int, side: int) -> None:
    random = np.random.default_rng(0)
    for name in ("plots", "predictions"):
        (folder / name).mkdir(exist_ok=True)
    plot = np.full((240, 320, 3), 255, np.uint8)
    cv2.polylines(plot, [np.array([(20, 220), (120, 60), (300, 30)])], False, (200, 90, 20), 3)
    for name in ("confusion", "precision_recall"):
        cv2.imwrite(str(folder / "plots" / f"{name}.png"), plot)
    for index in range(num_predictions):
        noise = random.integers(0, 256, size=(side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "predictions" / f"scene_{index:02d}.jpg"), noise)


def make_full_run(folder: Path, num_epochs: int = 6, concluded: bool = True) -> Path:
    """A run folder as a real one, in classes disc and EVIL; once concluded with its validation."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(epochs=num_epochs, batch=16, image_size=320)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    facts = {
        "data": "/data/set",
        "format": "yolo",
        "anchors": [[10.0, 13.0], [30.0, 61.0], [116.0, 90.0]],
        "class_names": ["disc", EVIL],
        "splits": {"train": {"images": 237, "boxes": 426, "fingerprint": "a"}, "val": {"images": 4, "boxes": 5}},
    }
    steps = 4 * num_epochs
    facts["derived"] = {
        "gains": {"box": 0.05, "objectness": 0.25, "class": 0.0125},
        "balance": [4.0, 1.0, 0.4],
        "batches_per_epoch": 15,
        "accumulation": 4,
        "images_per_step": 64,
        "steps_per_epoch": 4,
        "num_steps": steps,
        "warmup_steps": 12,
        "warmup_bias_lr": 0.1,
        "lr_last": 0.0001,
        "lr_plan": {"epochs": [0, 3, num_epochs], "lr": [0, 0.01, 0.0001], "bias_lr": [0.1, 0.01, 0.0001]},
        "ema_decay_last": 0.0119,
        "mosaic_epochs": 0,
    }
    (folder / "run.json").write_text(json.dumps(facts))
    _write_real_metrics(folder, num_epochs)
    if concluded:
        _conclude(folder, num_epochs)
    return folder


def _write_real_metrics(folder: Path, num_epochs: int) -> None:
    lines = ["epoch,train/box,seconds/train,seconds/data_wait,val/map,val/map50,val/ar_1,val/seconds_forward"]
    lines += [f"{e},{1 / e:.4f},10,2.5,{e / 10:.2f},{e / 8:.3f},{e / 20:.2f},3" for e in range(1, num_epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def _conclude(folder: Path, num_epochs: int) -> None:
    """Two images: on the first nothing is found of its box, on the second all is right, and a region is ignored."""
    truths = (_truth([[10, 10, 50, 40]], [1]), _truth([[20, 20, 60, 60], [0, 0, 15, 10]], [0, -1]))
    predictions = (
        Predictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)),
        _found([[20, 20, 60, 60]], [0.9], [0]),
    )
    names = ("disc", EVIL)
    speed = ValidationSpeed(*(0.0 for _ in ValidationSpeed._fields))
    result = ValidationResult(coco_metrics(truths, predictions, names), None, truths, predictions, names, speed)
    records = []
    for number, truth in enumerate(truths):
        path = folder / f"image-{number}.png"
        cv2.imwrite(str(path), np.full((80, 100, 3), 90, np.uint8))
        records.append(
            Record(path, 100, 80, truth.boxes_xyxy, truth.class_ids, truth.ignored, truth.areas, ("",) * len(truth))
        )
    save_details(folder, result, records)
    summary = {
        "reason": "complete",
        "seconds": num_epochs * 14.0,
        "best_validation": result.to_json(),
        "environment": {"torch": "2.13.0", "device": "cpu"},
        "dataset": {
            "path": "/data/set",
            "format": "yolo",
            "adjusted_labels": {"clipped": 3},
            "splits": [{"split": "train", "images": 237, "boxes": 426, "images_without_boxes": 11}],
            "boxes_by_class": [{"class": "disc", "train": 400}, {"class": EVIL, "train": 26}],
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def _truth(boxes: list[list[float]], class_ids: list[int]) -> Truth:
    boxes_xyxy = np.array(boxes, np.float64)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return Truth(boxes_xyxy, np.array(class_ids, np.int64), np.array(class_ids) < 0, areas)


def _found(boxes: list[list[float]], scores: list[float], class_ids: list[int]) -> Predictions:
    return Predictions(np.array(boxes, np.float64), np.array(scores), np.array(class_ids, np.int64))
