"""A run folder as training leaves it, with made-up but plausible content."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

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
