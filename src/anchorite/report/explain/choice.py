"""Which images are explained: those the user names, or the most instructive ones of a split.

Legend: N images.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anchorite.data import DatasetIndex, LetterboxedBatch, Record, letterbox_transform
from anchorite.data.letterboxed import plan_letterboxed
from anchorite.errors import InputError
from anchorite.evaluate.targets import batch_targets
from anchorite.loss import assign
from anchorite.report.explain.setting import Setting

MOST_CHOSEN = 12
MOST_NAMED = 60
_PLANNED_TOGETHER = 256
_NUM_NEAR = 3


@dataclass(frozen=True)
class Chosen:
    """An image to explain and why it is there: index counts in the split's records."""

    index: int
    reason: str


def find_images(dataset: DatasetIndex, split: str, names: Sequence[str]) -> list[Chosen]:
    """The images of a split with these file names or stems, in the order named.

    Raises InputError for a name that no image has, naming the nearest, or the split that has it.
    """
    records = dataset.splits[split]
    by_name: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        for name in {record.path.name, record.path.stem}:
            by_name.setdefault(name, []).append(index)
    found: dict[int, None] = {}
    for name in names:
        if name not in by_name:
            raise InputError(f"--image {name}: no image of split {split} has this name{_hint(dataset, split, name)}")
        found.update(dict.fromkeys(by_name[name]))
    if len(found) > MOST_NAMED:
        raise InputError(f"--image: {len(found)} images for one page; name at most {MOST_NAMED}")
    return [Chosen(index, "named by --image") for index in found]


def _hint(dataset: DatasetIndex, split: str, name: str) -> str:
    for other, records in dataset.splits.items():
        if other != split and any(name in (record.path.name, record.path.stem) for record in records):
            return f"; it is in split {other}: add --split {other}"
    known = list(dict.fromkeys(record.path.name for record in dataset.splits[split]))
    stems = {record.path.stem: record.path.name for record in dataset.splits[split]}
    near = difflib.get_close_matches(name, known, _NUM_NEAR) or [
        stems[stem] for stem in difflib.get_close_matches(name, list(stems), _NUM_NEAR)
    ]
    return f"; near are {', '.join(near)}" if near else f"; it has such as {', '.join(known[:_NUM_NEAR])}"


def choose_images(records: Sequence[Record], setting: Setting, most: int = MOST_CHOSEN) -> list[Chosen]:
    """Up to `most` images of N, ranked: in turn the ones with most unmatched boxes, collisions, and boxes.

    Only labels and sizes are looked at, no pixel. The same split gives the same choice.
    """
    boxes, unmatched, collisions = _counts(records, setting)
    rankings: list[tuple[np.ndarray, Callable[[int], str]]] = [
        (unmatched, lambda count: f"{count} {_plural(count, 'box', 'boxes')} that nothing answers for"),
        (collisions, lambda count: f"{count} {_plural(count, 'place', 'places')} claimed by several boxes"),
        (boxes, lambda count: f"{count} {_plural(count, 'box', 'boxes')}"),
    ]
    orders = [np.argsort(-counts, kind="stable").tolist() for counts, _ in rankings]
    chosen: dict[int, str] = {}
    wanted = min(most, len(records))
    while len(chosen) < wanted:
        before = len(chosen)
        for order, (counts, reason) in zip(orders, rankings, strict=True):
            index = next((index for index in order if index not in chosen and counts[index]), None)
            if index is not None and len(chosen) < wanted:
                chosen[index] = reason(int(counts[index]))
        if len(chosen) == before:  # only images without boxes are left
            rest = [index for index in range(len(records)) if index not in chosen]
            chosen.update(dict.fromkeys(rest[: wanted - len(chosen)], "no boxes"))
    return [Chosen(index, reason) for index, reason in chosen.items()]


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _counts(records: Sequence[Record], setting: Setting) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) numbers of boxes, of those that match nothing, and of places that more than one box claims."""
    boxes, unmatched, collisions = (np.zeros(len(records), np.int64) for _ in range(3))
    strides = setting.anchors.strides
    for plan in plan_letterboxed(records, setting.image_size, _PLANNED_TOGETHER, strides[-1]):
        height, width = plan.size_hw
        transforms = tuple(
            letterbox_transform((records[index].height, records[index].width), plan.size_hw) for index in plan.indices
        )
        # A batch without pixels: the labels alone are looked at.
        empty = torch.empty((0, 3, height, width), dtype=torch.uint8)
        targets = batch_targets(records, LetterboxedBatch(empty, transforms, torch.tensor(plan.indices)))
        image_of = targets.rows[:, 0].long().numpy()
        indices = np.array(plan.indices)
        np.add.at(boxes, indices[image_of], 1)
        matched = np.zeros(len(targets), bool)
        grid_sizes = [(height // stride, width // stride) for stride in strides]
        for level in assign(targets, setting.anchors, grid_sizes, setting.ratio_limit):
            matched[level.target.numpy()] = True
            claims = torch.stack([level.image, level.anchor, level.row, level.column, level.target], dim=1)
            places, claimed = np.unique(np.unique(claims.numpy(), axis=0)[:, :4], axis=0, return_counts=True)
            np.add.at(collisions, indices[places[claimed > 1, 0]], 1)
        np.add.at(unmatched, indices[image_of[~matched]], 1)
    return boxes, unmatched, collisions
