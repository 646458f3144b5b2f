"""The twelve COCO numbers: a thin adapter of faster-coco-eval, in memory and silent.

The definition is that of the COCO detection challenge (cocodataset.org/#detection-eval): IoU 0.50 to 0.95 in steps of
0.05, 101 recall points, at most 100 detections an image and class, ties of score in the order given.

Legend: K classes, T IoU thresholds, R recall points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.metrics.matching import ANY_CLASS, Predictions, Truth, image_of_each, joined, judged, overlaps

# COCO's own areas in square pixels and caps on detections, by the index they have in the library's result.
_AREA_NAMES = ("all", "small", "medium", "large")
_MAX_DETECTIONS = (1, 10, 100)
_LEAST_SHARE = 0.4999  # of a detection's area in a crowd: a little under COCO's least threshold of IoU
# Boxes, and classes times images, that the library gets at once: it makes some 2 kB of objects of each.
_MOST_AT_ONCE = 100_000


@dataclass(frozen=True)
class ClassMetrics:
    """One class: its average precision (IoU .50:.95 and .50; nan without truths) and what it was measured on.

    num_truths: labelled boxes that count; num_ignored: those of this class that do not; num_images: images with a box
    that counts; num_found: detections.
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
    truths: Sequence[Truth],
    predictions: Sequence[Predictions],
    class_names: Sequence[str],
    progress: Callable[[], None] = lambda: None,
) -> CocoMetrics:
    """The COCO numbers of the detections `predictions`, one for each image in `truths`.

    Ignored truths count as crowds: what lies in them is neither right nor wrong; nor are detections of classes that the
    labels of their image do not cover. Classes are independent of each other, so that many, or many images, are done
    some at a time, with `progress` called before each; memory is bounded but for the boxes of one class. Raises
    InputError when the two lists differ in length or a class number has no name.
    """
    num_classes = len(class_names)
    known = judged(truths, predictions, num_classes)
    precision, recall = _evaluate(list(map(_with_crowds, truths, known)), known, num_classes, progress)
    counts = {
        "num_truths": joined(truth.class_ids[~truth.ignored] for truth in truths),
        "num_ignored": joined(truth.class_ids[truth.ignored & (truth.class_ids != ANY_CLASS)] for truth in truths),
        "num_images": joined(np.unique(truth.class_ids[~truth.ignored]) for truth in truths),
        "num_found": joined(found.class_ids for found in predictions),
    }
    counts = {name: np.bincount(class_ids, minlength=num_classes) for name, class_ids in counts.items()}
    of_classes = precision[..., 0]
    return CocoMetrics(
        map=_mean(of_classes),
        map50=_mean(of_classes[0]),
        map75=_mean(of_classes[5]),
        map_small=_mean(precision[..., 1]),
        map_medium=_mean(precision[..., 2]),
        map_large=_mean(precision[..., 3]),
        ar_1=_mean(recall[:, :, 0, 0]),
        ar_10=_mean(recall[:, :, 0, 1]),
        ar_100=_mean(recall[:, :, 0, 2]),
        ar_small=_mean(recall[:, :, 1, 2]),
        ar_medium=_mean(recall[:, :, 2, 2]),
        ar_large=_mean(recall[:, :, 3, 2]),
        classes=tuple(
            ClassMetrics(
                name=name,
                ap=_mean(of_classes[:, :, k]),
                ap50=_mean(of_classes[0, :, k]),
                **{count: int(of_class[k]) for count, of_class in counts.items()},
            )
            for k, name in enumerate(class_names)
        ),
    )


def _with_crowds(truth: Truth, found: Predictions) -> Truth:
    """The truth with a crowd of each class that it may matter to, for each ignored box of any class.

    Those are the classes of detections that lie in it by COCO's least threshold, so that there are never more crowds
    than such pairs, however many classes there are.
    """
    of_any = np.flatnonzero(truth.ignored & (truth.class_ids == ANY_CLASS))
    if not len(of_any):
        return truth
    regions = Truth(truth.boxes_xyxy[of_any], truth.class_ids[of_any], truth.ignored[of_any], truth.areas[of_any])
    lies_inside = overlaps(found, regions)[1] >= _LEAST_SHARE
    crowds = {(row, found.class_ids[number]) for number, row in np.argwhere(lies_inside).tolist()}
    rows, class_ids = np.array(sorted(crowds), np.int64).reshape(-1, 2).T
    kept = np.append(np.setdiff1d(np.arange(len(truth)), of_any), of_any[rows])
    known = np.append(np.delete(truth.class_ids, of_any), class_ids)
    return replace(
        truth,
        boxes_xyxy=truth.boxes_xyxy[kept],
        class_ids=known,
        ignored=truth.ignored[kept],
        areas=truth.areas[kept],
    )


class _Boxes(NamedTuple):
    """Boxes of all images by class, and of a class by image: columns (N,) of COCO's fields; iscrowd or score last."""

    image_id: NDArray[np.int64]
    category_id: NDArray[np.int64]
    bbox: NDArray[np.float64]
    area: NDArray[np.float64]
    last: NDArray[Any]

    @classmethod
    def of(cls, images: Sequence[Truth | Predictions], boxes_xywh: NDArray[np.float64], *last: NDArray[Any]) -> _Boxes:
        """The boxes of each image; boxes_xywh and the last columns are those of all images, one after the other."""
        class_ids = joined(one.class_ids for one in images)
        order = np.argsort(class_ids, kind="stable")
        return cls(*(column[order] for column in (image_of_each(images), class_ids, boxes_xywh, *last)))

    def rows(self, chosen: slice, last: str) -> list[dict[str, Any]]:
        """Some of them as the library takes them; last: the name of that column."""
        names, columns = (*self._fields[:-1], last), [column[chosen].tolist() for column in self]
        # Numbers from 1: the library takes 0 for "not matched".
        numbered = enumerate(zip(*columns, strict=True), 1)
        return [{"id": number, "iscrowd": 0} | dict(zip(names, row, strict=True)) for number, row in numbered]


def _evaluate(
    truths: Sequence[Truth], predictions: Sequence[Predictions], num_classes: int, progress: Callable[[], None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The library's precision (T, R, K, 4 areas) at the last cap, and recall (T, K, 4 areas, 3 caps); -1 for nan."""
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    counted = list(map(_counted, predictions))
    areas, crowds = joined((one.areas for one in truths), float), joined((one.ignored for one in truths), bool)
    labels = _Boxes.of(truths, _boxes_xywh(truths), areas, crowds.astype(int))
    boxes_xywh, scores = _boxes_xywh(counted), joined((one.scores for one in counted), float)
    found = _Boxes.of(counted, boxes_xywh, boxes_xywh[:, 2] * boxes_xywh[:, 3], scores)
    starts = [np.searchsorted(boxes.category_id, np.arange(num_classes + 1)) for boxes in (labels, found)]
    ends = np.cumsum([0, *(len(truths) + np.diff(starts[0]) + np.diff(starts[1]))])
    precision, recall = np.full((10, 101, num_classes, 4), -1.0), np.full((10, num_classes, 4, 3), -1.0)
    first = stop = 0
    while (first := stop) < num_classes:
        progress()
        stop = max(first + 1, int(np.searchsorted(ends, ends[first] + _MOST_AT_ONCE, side="right")) - 1)
        of_labels, of_found = (slice(start[first], start[stop]) for start in starts)
        images = np.union1d(labels.image_id[of_labels], found.image_id[of_found]).tolist()
        if not images:  # the library would take none for "all of them"
            continue
        categories = [{"id": class_id, "name": str(class_id)} for class_id in range(first, stop)]
        common = {"images": [{"id": image} for image in images], "categories": categories}
        evaluation = COCOeval_faster(
            COCO(common | {"annotations": labels.rows(of_labels, "iscrowd")}),
            COCO(common | {"annotations": found.rows(of_found, "score")}),
            iouType="bbox",
            print_function=lambda *_: None,  # the library would report its progress on stdout
            separate_eval=True,
        )
        assert tuple(evaluation.params.areaRngLbl) == _AREA_NAMES
        assert tuple(evaluation.params.maxDets) == _MAX_DETECTIONS
        evaluation.evaluate()
        evaluation.accumulate()
        precision[:, :, first:stop] = np.asarray(evaluation.eval["precision"])[..., -1]
        recall[:, first:stop] = evaluation.eval["recall"]
    return precision, recall


def _counted(found: Predictions) -> Predictions:
    """The best 100 detections of each class, which are all that COCO's numbers look at, in the order given."""
    order = np.lexsort((-found.scores, found.class_ids))
    class_ids = found.class_ids[order]
    rank = np.arange(len(order)) - np.searchsorted(class_ids, class_ids)
    return found.chosen(np.sort(order[rank < _MAX_DETECTIONS[-1]]))


def _boxes_xywh(images: Sequence[Truth | Predictions]) -> NDArray[np.float64]:
    boxes_xywh = np.concatenate([np.zeros((0, 4)), *(one.boxes_xyxy for one in images)])
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    return boxes_xywh


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the defined values (-1 marks the others); nan where there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
