"""Small datasets, settings and pages for the tests of the explain page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.data import DatasetIndex, open_dataset
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.loss import DetectionLoss, LossConfig
from anchorite.model import Detector
from anchorite.report.explain import ExplainSettings, explain
from tests.inspect.samples import yolo_folder

EVIL = "<script>alert(1)</script>"
TINY = "0 0.5 0.3 0.015625 0.0208333333\n"  # 2 x 2 px of a 128 x 96 image, which no default anchor matches at 128 px
MIDDLE = "1 0.55 0.52 0.3 0.4\n"

SAMPLES = {
    "train": {"t": MIDDLE},
    "val": {
        "empty": "",
        "many": "".join(f"0 {0.1 + 0.2 * i} {0.2 + 0.6 * (i % 2)} 0.12 0.15\n" for i in range(5)),
        "lost": TINY + MIDDLE,
        "crash": MIDDLE + "0 0.551 0.521 0.24 0.34\n",
    },
}


def dataset_in(folder: Path, names: str = "[cat, dog]") -> DatasetIndex:
    """Images of 128 x 96 px: one without boxes, one with five, one with an unmatched box, one with a collision."""
    return open_dataset(yolo_folder(folder, SAMPLES, names))


def partly_known(dataset: DatasetIndex) -> DatasetIndex:
    """The same with what labels do not know in image `many`: of its five boxes the first counts a quarter, the last two
    are regions, one of any class; its source does not cover the class dog, and its background counts half."""
    record = next(record for record in dataset.splits["val"] if record.path.stem == "many")
    changed = replace(
        record,
        ignored=np.array([False, False, False, True, True]),
        class_ids=np.array([0, 0, 0, 0, NO_CLASS]),
        weights=np.array([0.25, 1, 1, 1, 1], np.float32),
        source=LabelSource("cats", (True, False), 0.5),
    )
    val = [changed if one.path == record.path else one for one in dataset.splits["val"]]
    return replace(dataset, splits={**dataset.splits, "val": val})


def setting_of(dataset: DatasetIndex, *, costs: bool = False, image_size: int = 128) -> ExplainSettings:
    """The default anchors; with `costs`, a detector of size n with random weights."""
    anchors, num_classes = AnchorSet.coco_p5(), len(dataset.class_names)
    detector = criterion = None
    if costs:
        torch.manual_seed(3)
        detector = Detector("n", num_classes, anchors).eval()
        criterion = DetectionLoss(anchors, num_classes, LossConfig())
    return ExplainSettings(
        dataset.class_names, anchors, image_size, 4.0, detector, criterion, ("anchors: of the test",)
    )


def explained_val(dataset: DatasetIndex, setting: ExplainSettings, *names: str) -> tuple[str, dict[str, Any]]:
    """The page of these images of val, or of all, and its facts."""
    records = dataset.splits["val"]
    stems = [record.path.stem for record in records]
    chosen = {stems.index(name): "of the test" for name in names or stems}
    page, facts, _ = explain(records, chosen, setting, f"data of {EVIL}", ["chosen by the test"])
    return page, facts


def targets_of(image: dict) -> Targets:
    """The targets of an image's facts, float64."""
    rows = [[0, target["class"], *target["box"]] for target in image["targets"]]
    return Targets.from_rows(torch.tensor(rows, dtype=torch.float64).view(-1, 6))
