"""The twelve COCO numbers: a thin adapter of faster-coco-eval, in memory and silent.

The definition is that of the COCO detection challenge (cocodataset.org/#detection-eval): IoU 0.50 to 0.95 in steps of
0.05, 101 recall points, at most 100 detections an image and class, ties of score in the order given.

Legend: K classes, T IoU thresholds, R recall points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchorite.metrics.matching import Predictions, Truth, check_pairing

# COCO's own areas in square pixels and caps on detections, by the index they have in the library's result.
_AREA_NAMES = ("all", "small", "medium", "large")
_MAX_DETECTIONS = (1, 10, 100)


@dataclass(frozen=True)
class ClassMetrics:
    """One class: its average precision (IoU .50:.95 and .50; nan without truths) and what it was measured on.

    num_truths: labelled boxes that count; num_ignored: labelled boxes that do not; num_images: images with a box that
    counts; num_found: detections.
    """

    name: str
    ap: float
    ap50: float
    num_truths: int
    num_ignored: int
    num_images: int
    num_found: int


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve COCO numbers, in 0..1, and each class.

    A number is nan where there is nothing to measure (no truths of that area), where COCO's own tool gives -1: a nan
    cannot be averaged, plotted or compared by mistake.
    """

    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: tuple[ClassMetrics, ...]

    def rows(self) -> Iterator[tuple[str, float]]:
        """The twelve numbers as (name, value), in COCO's order."""
        for entry in fields(self):
            if entry.name != "classes":
                yield entry.name, getattr(self, entry.name)

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types, None for nan, ready for JSON."""
        plain: dict[str, Any] = {name: _none_for_nan(value) for name, value in self.rows()}
        plain["classes"] = [{name: _none_for_nan(value) for name, value in asdict(one).items()} for one in self.classes]
        return plain


def coco_metrics(
    truths: Sequence[Truth], predictions: Sequence[Predictions], class_names: Sequence[str]
) -> CocoMetrics:
    """The COCO numbers of the detections `predictions`, one for each image in `truths`.

    Ignored truths count as crowds: what lies in them is neither right nor wrong. Raises InputError when the two lists
    differ in length or a class number has no name.
    """
    check_pairing(truths, predictions, len(class_names))
    precision, recall = _evaluate(truths, predictions, len(class_names))
    by_area = [_mean(precision[:, :, :, area, 2]) for area in range(len(_AREA_NAMES))]
    return CocoMetrics(
        map=by_area[0],
        map50=_mean(precision[0, :, :, 0, 2]),
        map75=_mean(precision[5, :, :, 0, 2]),
        map_small=by_area[1],
        map_medium=by_area[2],
        map_large=by_area[3],
        ar_1=_mean(recall[:, :, 0, 0]),
        ar_10=_mean(recall[:, :, 0, 1]),
        ar_100=_mean(recall[:, :, 0, 2]),
        ar_small=_mean(recall[:, :, 1, 2]),
        ar_medium=_mean(recall[:, :, 2, 2]),
        ar_large=_mean(recall[:, :, 3, 2]),
        classes=_class_metrics(truths, predictions, class_names, precision[:, :, :, 0, 2]),
    )


def _evaluate(
    truths: Sequence[Truth], predictions: Sequence[Predictions], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The library's precision (T, R, K, 4 areas, 3 caps) and recall (T, K, 4 areas, 3 caps); -1 where undefined."""
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    if not truths or not num_classes:
        # The library takes an empty list of images or classes for "all of them" and fails later.
        return np.full((10, 101, num_classes, 4, 3), -1.0), np.full((10, num_classes, 4, 3), -1.0)
    evaluation = COCOeval_faster(
        _coco_dataset(COCO(), len(truths), num_classes, _truth_annotations(truths)),
        _coco_dataset(COCO(), len(truths), num_classes, _found_annotations(predictions)),
        iouType="bbox",
        print_function=lambda *_: None,  # the library would report its progress on stdout
        separate_eval=True,
    )
    assert tuple(evaluation.params.areaRngLbl) == _AREA_NAMES
    assert tuple(evaluation.params.maxDets) == _MAX_DETECTIONS
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _coco_dataset(coco: Any, num_images: int, num_classes: int, annotations: list[dict[str, Any]]) -> Any:
    coco.dataset = {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": class_id, "name": str(class_id)} for class_id in range(num_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _truth_annotations(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths):
        columns = (
            truth.class_ids.tolist(),
            _boxes_xywh(truth.boxes_xyxy),
            truth.areas.tolist(),
            truth.ignored.tolist(),
        )
        for class_id, box_xywh, area, ignored in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: the library takes 0 for "not matched"
                    "image_id": image,
                    "category_id": class_id,
                    "bbox": box_xywh,
                    "area": area,
                    "iscrowd": int(ignored),
                }
            )
    return annotations


def _found_annotations(predictions: Sequence[Predictions]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image, found in enumerate(map(_counted, predictions)):
        boxes_xywh = _boxes_xywh(found.boxes_xyxy)
        for class_id, box_xywh, score in zip(found.class_ids.tolist(), boxes_xywh, found.scores.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": class_id,
                    "bbox": box_xywh,
                    "area": box_xywh[2] * box_xywh[3],
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return annotations


def _counted(found: Predictions) -> Predictions:
    """The best 100 detections of each class, which are all that COCO's numbers look at, in the order given."""
    order = np.lexsort((-found.scores, found.class_ids))
    class_ids = found.class_ids[order]
    rank = np.arange(len(order)) - np.searchsorted(class_ids, class_ids)
    kept = np.sort(order[rank < _MAX_DETECTIONS[-1]])
    return Predictions(found.boxes_xyxy[kept], found.scores[kept], found.class_ids[kept])


def _boxes_xywh(boxes_xyxy: NDArray[np.floating]) -> list[list[float]]:
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows: list[list[float]] = boxes.tolist()
    return rows


def _class_metrics(
    truths: Sequence[Truth],
    predictions: Sequence[Predictions],
    class_names: Sequence[str],
    precision: NDArray[np.float64],
) -> tuple[ClassMetrics, ...]:
    """Each class from the precision (T, R, K) over all areas."""
    num_classes = len(class_names)
    num_truths, num_ignored, num_images, num_found = np.zeros((4, num_classes), dtype=np.int64)
    for truth, found in zip(truths, predictions, strict=True):
        of_image = np.bincount(truth.class_ids[~truth.ignored], minlength=num_classes)
        num_truths += of_image
        num_images += of_image > 0
        num_ignored += np.bincount(truth.class_ids[truth.ignored], minlength=num_classes)
        num_found += np.bincount(found.class_ids, minlength=num_classes)
    return tuple(
        ClassMetrics(
            name=name,
            ap=_mean(precision[:, :, k]),
            ap50=_mean(precision[0, :, k]),
            num_truths=int(num_truths[k]),
            num_ignored=int(num_ignored[k]),
            num_images=int(num_images[k]),
            num_found=int(num_found[k]),
        )
        for k, name in enumerate(class_names)
    )


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the defined values (-1 marks the others); nan where there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
