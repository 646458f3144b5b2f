"""How many planted label errors `anchorite suspects` finds: python benchmarks/suspects_recall.py DATA --weights W.

Plants errors into a copy of the labels in memory (the files stay as they are): a share of the labels gets another
class, is dropped, or is moved by half its size along one axis. Then ranks all labels and prints, over a few seeds,
precision and recall among as many rows as errors were planted, with one look at each image and with two. What the
detector was trained on is up to the weights: those trained on the unchanged labels never saw the errors, which makes
them easier to find. `--write FOLDER` writes one planted data set instead, to train on, and its errors as planted.json,
which `--planted FOLDER` then measures: the honest way. Errors that were in the data before count as false alarms.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from anchorite.data import DatasetIndex, Record, as_split, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.model import load_weights
from anchorite.predict import TorchRuntime
from anchorite.report.suspects import Suspect, rank_suspects
from anchorite.report.suspects_evidence import iou_of

SHARE = 0.03  # of the labels, for each kind of error


@dataclass(frozen=True)
class Planted:
    """One error: its kind, the split and name of the image, and the box as it stands now, or stood before."""

    kind: str
    split: str
    image: str
    box_xyxy: tuple[float, ...]


def plant(dataset: DatasetIndex, seed: int) -> tuple[DatasetIndex, list[Planted]]:
    """A copy of the data set with errors, at most one a label, and what they are."""
    random = np.random.default_rng(seed)
    places = [
        (split, number, label)
        for split, records in dataset.splits.items()
        for number, record in enumerate(records)
        for label in range(len(record.class_ids))
    ]
    each = max(1, round(SHARE * len(places)))
    chosen = random.choice(len(places), 3 * each, replace=False).tolist()
    splits = {split: list(records) for split, records in dataset.splits.items()}
    planted, dropped = [], []
    for order, place in enumerate(chosen):
        split, number, label = places[place]
        record, kind = splits[split][number], ("swapped", "moved", "dropped")[order // each]
        box = record.boxes_xyxy[label]
        if kind == "swapped":
            splits[split][number] = _swapped(record, label, len(dataset.class_names), random)
        elif kind == "moved":
            splits[split][number] = _moved(record, label, random)
            box = splits[split][number].boxes_xyxy[label]
        else:
            dropped.append((split, number, label))
        planted.append(Planted(kind, split, record.path.name, tuple(box.tolist())))
    for split, number, label in sorted(dropped, reverse=True):  # last ones first, so that numbers stay true
        splits[split][number] = _dropped(splits[split][number], label)
    return replace(dataset, splits={split: as_split(records) for split, records in splits.items()}), planted


def _swapped(record: Record, label: int, num_classes: int, random: np.random.Generator) -> Record:
    class_ids = record.class_ids.copy()
    class_ids[label] = (class_ids[label] + random.integers(1, num_classes)) % num_classes
    return replace(record, class_ids=class_ids)


def _moved(record: Record, label: int, random: np.random.Generator) -> Record:
    """Moved by half its size along one axis, towards where there is more room."""
    boxes, axis = record.boxes_xyxy.copy(), int(random.integers(2))
    low, high = boxes[label, axis], boxes[label, axis + 2]
    step = (high - low) / 2 * (1 if (low + high) / 2 < (record.width, record.height)[axis] / 2 else -1)
    boxes[label, [axis, axis + 2]] = np.clip([low + step, high + step], 0, (record.width, record.height)[axis])
    return replace(record, boxes_xyxy=boxes)


def _dropped(record: Record, label: int) -> Record:
    kept = np.arange(len(record.class_ids)) != label
    origins = tuple(origin for number, origin in enumerate(record.origins) if number != label)
    arrays = {name: getattr(record, name)[kept] for name in ("boxes_xyxy", "class_ids", "ignored", "areas")}
    return replace(record, origins=origins, **arrays)


def points_at(suspect: Suspect, error: Planted) -> bool:
    """Whether a row leads a reader to the error: the label itself or, where it was dropped, its place."""
    box = suspect.seen_xyxy if error.kind == "dropped" else suspect.label_xyxy
    if (suspect.split, suspect.image.name) != (error.split, error.image) or box is None:
        return False
    if (error.kind == "dropped") != (suspect.kind == "missing"):
        return False
    least = 0.5 if error.kind == "dropped" else 0.99
    return float(iou_of(np.array([box]), np.array([error.box_xyxy]))[0, 0]) >= least


def measured(suspects: tuple[Suspect, ...], planted: list[Planted]) -> dict[str, float]:
    """Precision among the first rows, recall among as many rows as there are errors, and by kind of error."""
    first_rank: dict[Planted, int] = {}
    hits = []
    for suspect in suspects:
        found = [error for error in planted if points_at(suspect, error)]
        hits.append(bool(found))
        for error in found:
            first_rank.setdefault(error, suspect.rank)
    num_of_kind = Counter(error.kind for error in planted)
    within = {name: len(planted) * factor for name, factor in (("once", 1), ("twice", 2))}
    result = {f"precision@{count}": float(np.mean(hits[:count])) for count in (10, 20, len(planted))}
    for name, limit in within.items():
        for kind, number in num_of_kind.items():
            world = [rank for error, rank in first_rank.items() if error.kind == kind]
            result[f"recall {kind}, {name}"] = sum(rank <= limit for rank in world) / number
    return result


def main() -> None:
    """Plant, rank, print the means over the seeds as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="write one planted data set there and end")
    parser.add_argument("--planted", type=Path, help="folder that --write made, whose errors DATA has")
    options = parser.parse_args()
    dataset = open_dataset(options.data, skip_bad=True)
    if options.write:
        changed, planted = plant(dataset, seed=0)
        write_dataset(changed, options.write, "yolo")
        content = json.dumps([asdict(error) for error in planted])
        (options.write / "planted.json").write_text(content, encoding="utf-8")
        return
    if options.planted:
        rows = json.loads((options.planted / "planted.json").read_text(encoding="utf-8"))
        trials = [(dataset, [Planted(**{**row, "box_xyxy": tuple(row["box_xyxy"])}) for row in rows])]
    else:
        trials = [plant(dataset, seed) for seed in range(options.seeds)]
    detector, info = load_weights(options.weights)
    runtime = TorchRuntime(detector, info, "cpu", precision=None)
    for mirrored in (False, True):
        results = []
        for changed, planted in trials:
            ranking = rank_suspects(changed, list(changed.splits), runtime, info.image_size, mirrored=mirrored)
            results.append(measured(ranking.suspects, planted))
        means = {name: round(float(np.mean([one[name] for one in results])), 3) for name in results[0]}
        print(json.dumps({"looks": 1 + mirrored, "planted": len(trials[0][1]), "labels": ranking.num_labels, **means}))


if __name__ == "__main__":
    main()
