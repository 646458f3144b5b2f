"""Small data sets whose labels are known to be right, and a network that finds exactly what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from anchorite.anchors import AnchorSet, encode_boxes
from anchorite.boxes import Targets
from anchorite.data import DatasetIndex, Record
from anchorite.loss import assign
from anchorite.model import Detector, WeightsInfo
from anchorite.predict import TorchRuntime

EVIL = "<script>alert('x')</script>"
NAMES = (EVIL, "=cmd|'/c calc'!A1", "plain")
SIDE = 128
# One box a quadrant, so that no two meet.
_CORNERS = ((12, 10), (74, 14), (16, 78), (80, 76))
_SURE, _NO = 6.0, -9.0
_GROWN = 1.02  # sides found over sides labelled: no detector is exact


def make_record(boxes: Sequence[Sequence[float]], class_ids: Sequence[int], **changes: Any) -> Record:
    """A record of a 128 x 128 image with these labels."""
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(array)
    record = Record(
        path=Path("image.png"),
        width=SIDE,
        height=SIDE,
        boxes_xyxy=array,
        class_ids=np.array(class_ids, dtype=np.int64),
        ignored=np.zeros(count, bool),
        areas=np.prod(array[:, 2:] - array[:, :2], axis=1),
        origins=tuple(f"image.txt:{line + 1}" for line in range(count)),
    )
    return replace(record, **changes)


def right_dataset(folder: Path, num_images: int = 12) -> DatasetIndex:
    """Images of two splits with three boxes each; the left edge of an image tells its number, the right is white."""
    random = np.random.default_rng(3)
    records = []
    for number in range(num_images):
        pixels = np.full((SIDE, SIDE, 3), 60, np.uint8)
        pixels[:, 0], pixels[:, -1] = number * 10, 255
        boxes, class_ids = [], []
        for corner in range(3):
            left, top = _CORNERS[(number + corner) % 4]
            width, height = random.integers(24, 38, 2)
            boxes.append((left, top, left + width, top + height))
            class_ids.append(int(random.integers(3)))
            cv2.rectangle(pixels, (left, top), (left + int(width), top + int(height)), (200, 90, 20), -1)
        path = folder / "images" / f"{number:02d} <b>.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
        origins = tuple(f"{folder}/labels/{number:02d}.txt:{line + 1}" for line in range(3))
        records.append(make_record(boxes, class_ids, path=path, origins=origins))
    half = num_images // 2
    return DatasetIndex(folder, "yolo", NAMES, {"train": tuple(records[:half]), "val": tuple(records[half:])})


def free_corner(record: Record) -> tuple[int, int]:
    """The corner of the quadrant that has no box."""
    taken = {(int(left), int(top)) for left, top in record.boxes_xyxy[:, :2]}
    return next(corner for corner in _CORNERS if corner not in taken)


class TruthfulRuntime(TorchRuntime):
    """A network that answers from the right labels of the images it is shown, mirrored or not."""

    def __init__(self, truth: DatasetIndex) -> None:
        anchors = AnchorSet.coco_p5()
        super().__init__(Detector("n", len(NAMES), anchors), WeightsInfo("n", NAMES, anchors, SIDE), "cpu")
        self.truth = [record for records in truth.splits.values() for record in records]
        self.num_mirrored = 0

    def outputs(self, images: Tensor) -> list[Tensor]:
        rows = []
        for number, image in enumerate(images):
            is_mirrored = int(image[0, 0, 0]) == 255
            self.num_mirrored += is_mirrored
            record = self.truth[int(image[0, 0, -1 if is_mirrored else 0]) // 10]
            for (left, top, right, bottom), class_id in zip(record.boxes_xyxy / SIDE, record.class_ids, strict=True):
                if is_mirrored:
                    left, right = 1 - right, 1 - left
                center = (left + right) / 2, (top + bottom) / 2
                rows.append([number, class_id, *center, right - left, bottom - top])
        targets = Targets.from_rows(torch.tensor(rows).reshape(-1, 6).float())
        return perfect_logits(targets, self.info.anchors, len(images))


def perfect_logits(targets: Targets, anchors: AnchorSet, batch: int) -> list[Tensor]:
    """Dense logits of 128 px images that say at every matched place what is there, and nothing elsewhere."""
    grids = [(SIDE // stride, SIDE // stride) for stride in anchors.strides]
    levels = []
    for number, found in enumerate(assign(targets, anchors, grids)):
        logits = torch.full((batch, anchors.num_anchors, 5 + len(NAMES), *grids[number]), _NO)
        sides = anchors.cells(torch.float64)[number][found.anchor]
        place = (found.image, found.anchor, slice(None), found.row, found.column)
        answers = torch.full((len(found.anchor), 5 + len(NAMES)), _NO)
        grown = torch.cat([found.box[:, :2], found.box[:, 2:] * _GROWN], dim=1)
        answers[:, :4] = encode_boxes(grown, sides).float()
        answers[:, 4] = _SURE
        answers[torch.arange(len(answers)), 5 + found.class_index] = _SURE
        logits[place] = answers
        levels.append(logits)
    return levels
