"""How many places answer for an object, with and without the neighbour cells, on a dataset or on drawn scenes.

`python docs/pictures/measure.py DATA [SIDE]` prints the table that docs/objective.md quotes.
SIDE is that of the network input in pixels.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.data import open_dataset
from anchorite.data.scenes import draw_scene
from anchorite.loss import Assignment, assign

SCENES, SCENE_SIDE = 100, 640


@cache
def scene_targets() -> tuple[Targets, int]:
    """Labels of the first drawn training scenes of seed 0, and the number of scenes."""
    rows = []
    for image in range(SCENES):
        scene = draw_scene(0, "train", image, 192)
        boxes = torch.from_numpy(scene.boxes_xyxy) / 192
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        classes = torch.from_numpy(scene.class_ids).double()[:, None]
        rows.append(torch.cat([torch.full_like(classes, image), classes, centres, sides], dim=1))
    return Targets.from_rows(torch.cat(rows)), SCENES


def dataset_targets(path: Path, side: int) -> tuple[Targets, int]:
    """Labels of the train split, each image letterboxed into a square of `side` pixels; and the number of images."""
    records = open_dataset(path).splits["train"]
    rows = []
    for image, record in enumerate(records):
        scale = side / max(record.width, record.height)
        shift = [(side - length * scale) / 2 for length in (record.width, record.height)]
        counts = ~record.ignored
        for (left, top, right, bottom), class_id in zip(
            record.boxes_xyxy[counts], record.class_ids[counts], strict=True
        ):
            x0, x1 = (float(value) * scale + shift[0] for value in (left, right))
            y0, y1 = (float(value) * scale + shift[1] for value in (top, bottom))
            box = [(x0 + x1) / 2 / side, (y0 + y1) / 2 / side, (x1 - x0) / side, (y1 - y0) / side]
            rows.append([image, float(class_id), *box])
    return Targets.from_rows(torch.tensor(rows, dtype=torch.float64)), len(records)


def found_in(targets: Targets, side: int = SCENE_SIDE) -> list[Assignment]:
    """The candidates of the three default levels at a square input of `side` pixels."""
    anchors = AnchorSet.coco_p5()
    return assign(targets, anchors, [(side // stride, side // stride) for stride in anchors.strides])


def own_cell(found: Assignment) -> int:
    """How many candidates lie in the very cell that holds their centre: what there would be without neighbours."""
    inside = (found.box[:, :2] >= 0) & (found.box[:, :2] < 1)
    return int(inside.all(dim=1).sum())


def counted(targets: Targets, side: int = SCENE_SIDE) -> dict[str, Any]:
    """Mean matched places per object by level, in the centre's own cell and in all, and objects without any."""
    levels = found_in(targets, side)
    objects = len(targets)
    seen = torch.cat([level.target for level in levels]).unique()
    return {
        "own": [own_cell(level) / objects for level in levels],
        "all": [len(level.row) / objects for level in levels],
        "unmatched": objects - len(seen),
    }


def shares_of_places(targets: Targets, images: int, side: int = SCENE_SIDE) -> list[float]:
    """Share of a level's places (anchors times cells) that answer for an object; a place hit twice counts once."""
    shares = []
    for level, stride in zip(found_in(targets, side), AnchorSet.coco_p5().strides, strict=True):
        places = torch.stack([level.image, level.anchor, level.row, level.column]).unique(dim=1).shape[1]
        shares.append(places / (images * 3 * (side // stride) ** 2))
    return shares


def main(path: str, side: str = str(SCENE_SIDE)) -> None:
    """Print the table."""
    targets, images = dataset_targets(Path(path), int(side))
    numbers, shares = counted(targets, int(side)), shares_of_places(targets, images, int(side))
    print(f"{images} images, {len(targets)} objects at {side} px, {numbers['unmatched']} of them matched by no anchor")
    print("level   own cell   with neighbours   share of places")
    for name, own, every, share in zip(("P3", "P4", "P5"), numbers["own"], numbers["all"], shares, strict=True):
        print(f"{name}      {own:8.2f}   {every:15.2f}   {share:14.2%}")
    print(f"all     {sum(numbers['own']):8.2f}   {sum(numbers['all']):15.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
