"""The end of a run: plots, pictures and details of its best weights, the facts around it, and its page.

Legend: K classes, N detections of an image.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import anchorite
from anchorite.data import DatasetIndex, Record, decode_image
from anchorite.devices import choose_device, choose_precision, processor_facts
from anchorite.evaluate import ReadConfig, ValidationResult, Validator
from anchorite.files import StrPath, make_folder, write_bytes_atomically, write_text_atomically
from anchorite.jpeg import encode_jpeg, shrunk
from anchorite.metrics import Predictions, Truth, confusion_matrix, most_confused, outcomes
from anchorite.model import load_weights
from anchorite.predict import Predictor, draw
from anchorite.report.run_data import read_summary
from anchorite.report.run_page import MAX_CONFUSED, write_run_report
from anchorite.train import RunFolder

_MOST_OF_A_KIND = 6
_MOST_BOXES = 100  # of an image, of each kind; more cannot be distinguished in a small picture
_EXAMPLE_PX, _EXAMPLE_QUALITY = 640, 80
_CONFUSION_CONFIDENCE = 0.25
_MOST_PAIRED = 100  # classes whose confusion is written whole; of more, the part that the page shows
_NUM_CONFIDENCES = 101
_MAX_PREDICTIONS, _PREDICTION_PX, _PREDICTION_QUALITY = 12, 1280, 90
_LONGEST_STEM = 50  # letters, each of up to four bytes


def conclude_run(
    run_folder: StrPath, dataset: DatasetIndex, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Path:
    """Write what is known only at the end of a run, and return the path of its page.

    plots/*.png, predictions/*.jpg, examples/*.jpg and validation.json show the best weights on the val split (without
    that split none of them is written), and summary.json gets the sections best_validation, environment and dataset.
    Earlier ones are replaced. progress: called with ("decoded" or "measured", images done, images in all).
    """
    folder, run_folder = RunFolder(run_folder), Path(run_folder)
    recipe = folder.read_recipe()
    device = choose_device(recipe.device)
    environment = {
        "anchorite": anchorite.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor_facts()["model name"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    facts: dict[str, Any] = {"environment": environment, "dataset": describe_dataset(dataset)}
    records = dataset.splits.get("val", ())
    if records:
        detector, info = load_weights(folder.best)
        validator = Validator(
            records,
            info.class_names,
            recipe.image_size,
            ReadConfig(recipe.batch_size, recipe.image_store),
            partial(progress, "decoded"),
        )
        precision = choose_precision(recipe.precision, device)
        measured = partial(progress, "measured")
        result = validator.run(detector, recipe.validation, device, precision.dtype, progress=measured)
        result.save_plots(run_folder / "plots")
        save_details(run_folder, result, records)
        # What is found in up to 12 of the images, evenly spread over them; drawn at full size, then made smaller.
        make_folder(run_folder / "predictions")
        chosen = np.linspace(0, len(records) - 1, min(_MAX_PREDICTIONS, len(records))).round().astype(int)
        sources = [records[index].path for index in chosen.tolist()]
        for number, (image, found) in enumerate(Predictor(detector, info, str(device)).stream(sources), 1):
            stem = "".join(char if char.isalnum() or char in "-_." else "_" for char in Path(found.source).stem)
            picture = encode_jpeg(shrunk(draw(image, found), _PREDICTION_PX), _PREDICTION_QUALITY)
            write_bytes_atomically(run_folder / f"predictions/{number:02d}-{stem[:_LONGEST_STEM]}.jpg", picture)
        facts["best_validation"] = result.to_json()
    summary = read_summary(folder.summary) | facts
    write_text_atomically(folder.summary, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return write_run_report(run_folder)


def is_concluded(run_folder: StrPath) -> bool:
    """Whether the run came to its end and `conclude_run` did, too: it writes the page last."""
    return "environment" in read_summary(RunFolder(run_folder).summary) and Path(run_folder, "report.html").is_file()


def describe_dataset(dataset: DatasetIndex) -> dict[str, Any]:
    """What a run was trained on: path, format, of each split images, boxes and those that are learned, regions that are
    ignored, weights, of each class the boxes that are learned, labels that were adjusted."""
    splits, names = dataset.splits, dataset.class_names
    counts = {split: one.class_counts(len(names)).tolist() for split, one in splits.items()}
    return {
        "path": str(dataset.root.resolve()),
        "format": dataset.format,
        "adjusted_labels": dict(Counter(one.kind for one in dataset.adjustments)),
        "splits": [
            {
                "split": name,
                "images": len(one),
                "boxes": one.num_boxes(),
                "objects": sum(counts[name]),
                "ignored": one.num_boxes() - sum(counts[name]),
                "weighted": one.num_weighted(),
                "mean_weight": one.mean_weight(),
                "images_without_boxes": one.num_background(),
            }
            for name, one in splits.items()
        ],
        "boxes_by_class": [
            {"class": name, **{split: of_split[number] for split, of_split in counts.items()}}
            for number, name in enumerate(names)
        ],
    }


def save_details(run_folder: Path, result: ValidationResult, records: Sequence[Record]) -> None:
    """Write validation.json, and into examples/ the plain images that it names; StorageError when the disk refuses.

    records: of the validated split, in the result's order. Raises InputError when an image can no longer be decoded.
    """
    curves = result.curves
    at, _ = curves.best_confidence()
    confidence = _CONFUSION_CONFIDENCE if np.isnan(at) else at
    confusion = confusion_matrix(result.truths, result.predictions, result.class_names, _CONFUSION_CONFIDENCE)
    counts, of_part = confusion.counts, {}
    if len(result.class_names) > _MOST_PAIRED:
        chosen = most_confused(counts, MAX_CONFUSED)
        of_part = {"classes": chosen[:-1], "totals": counts.sum(axis=1)[chosen].tolist()}
        counts = counts[np.ix_(chosen, chosen)]
    every = (len(curves.confidences) - 1) // (_NUM_CONFIDENCES - 1)
    details = {
        "class_names": list(result.class_names),
        "iou_threshold": curves.iou_threshold,
        "recalls": _rounded(curves.recalls),
        "envelope": [_rounded(row) for row in curves.envelope],
        "confidences": _rounded(curves.confidences[::every]),
        "f1": [_rounded(row) for row in curves.f1[:, ::every]],
        "confusion": {"counts": counts.tolist(), "confidence": confusion.confidence, **of_part},
        "examples": {"confidence": round(confidence, 3), "images": _examples(run_folder, result, records, confidence)},
    }
    text = json.dumps(details, ensure_ascii=False, allow_nan=False)
    write_text_atomically(run_folder / "validation.json", text + "\n")


class ImageVerdict(NamedTuple):
    """How an image went at one confidence, at IoU .5: boxes found right, missed, false alarms, as another class."""

    right: int
    missed: int
    false_alarms: int
    confused: int

    @property
    def f1(self) -> float:
        """1 where nothing is wrong, also for an image without boxes and detections."""
        wrong = self.missed + self.false_alarms + 2 * self.confused
        return 1.0 if not wrong else 2 * self.right / (2 * self.right + wrong)


def choose_examples(verdicts: Sequence[ImageVerdict]) -> tuple[list[int], list[int]]:
    """Numbers of the worst images, the worst first, and of the best, the best first: at most 6 each, none twice.

    Of images with equal F1, more wrong boxes are worse, and more right ones better.
    """
    keys = [(one.f1, -(one.missed + one.false_alarms + one.confused), one.right) for one in verdicts]
    order = sorted(range(len(verdicts)), key=keys.__getitem__)
    num_worst = min(_MOST_OF_A_KIND, (len(order) + 1) // 2)
    return order[:num_worst], order[num_worst:][::-1][:_MOST_OF_A_KIND]


def _examples(
    run_folder: Path, result: ValidationResult, records: Sequence[Record], confidence: float
) -> list[dict[str, Any]]:
    """The worst and the best images, written to examples/, and what validation.json says of each."""
    image, of_label, found_as = outcomes(result.truths, result.predictions, result.class_names, confidence).T
    none = len(result.class_names)
    kinds = np.select([of_label == found_as, found_as == none, of_label == none], [0, 1, 2], 3)
    counts = np.zeros((len(records), len(ImageVerdict._fields)), np.int64)
    np.add.at(counts, (image, kinds), 1)
    verdicts = [ImageVerdict(*row) for row in counts.tolist()]
    folder = run_folder / "examples"
    make_folder(folder)
    for old in folder.glob("*.jpg"):
        old.unlink()
    examples = []
    for kind, chosen in zip(("worst", "best"), choose_examples(verdicts), strict=True):
        for number, index in enumerate(chosen, 1):
            file, record = f"{kind}-{number:02d}.jpg", records[index]
            truth, found = result.truths[index], result.predictions[index]
            picture = shrunk(decode_image(record.path), _EXAMPLE_PX)
            write_bytes_atomically(folder / file, encode_jpeg(picture, _EXAMPLE_QUALITY))
            labelled, ignored = (np.flatnonzero(flags)[:_MOST_BOXES] for flags in (~truth.ignored, truth.ignored))
            best_first = np.argsort(-found.scores, kind="stable")
            detected = best_first[found.scores[best_first] >= confidence][:_MOST_BOXES]
            examples.append(
                {
                    "kind": kind,
                    "file": file,
                    "name": record.path.name.encode("utf-8", "replace").decode("utf-8"),
                    "width": record.width,
                    "height": record.height,
                    "f1": round(verdicts[index].f1, 4),
                    **verdicts[index]._asdict(),
                    "labels": [_box(truth, i) for i in labelled],
                    "ignored": [_rounded(truth.boxes_xyxy[i], 1) for i in ignored],
                    "found": [{**_box(found, i), "score": float(found.scores[i])} for i in detected],
                }
            )
    return examples


def _box(boxes: Truth | Predictions, number: int) -> dict[str, Any]:
    return {"box": _rounded(boxes.boxes_xyxy[number], 1), "class": int(boxes.class_ids[number])}


def _rounded(values: NDArray[np.floating[Any]], digits: int = 4) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), digits) for value in values]
