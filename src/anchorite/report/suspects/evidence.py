"""What the looks at one image say about each of its labels, and what they found that no label explains. Pure functions.

Legend: N labelled boxes of an image, D detections, K classes, V looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.boxes.pairwise import pairwise_iou_xyxy, pairwise_overlap_xyxy
from anchorite.data import Record
from anchorite.report.suspects.looks import Look

Rows = NDArray[Any]  # structured, one row each
SAME_PLACE = 0.5  # IoU from which a detection speaks about a label, and two detections are of one object
_NEAR = 0.1  # IoU from which a detection may mean a label whose box is badly placed
_NEAR_SCORE = 0.1  # below this, a detection is no more than a guess about where something is
_LEAST_MISSING_SCORE = 0.25
_EXPLAINED_IOU = 0.4
_EXPLAINED_COVER = 0.7  # share of the smaller of a detection and a label that they have in common
_IN_IGNORED = 0.5  # share of a detection inside an ignored box, about which nothing is said
_TWIN_IOU = 0.7


# One row a label that is not ignored. label: its number in the record; class_id; side: root of its share of the image.
# given, other: score of its own class and of the best other one, other_class, seen at its place, mean over the looks.
# iou, found, found_xyxy: of the likeliest detection for this label, whatever its class; zeros where nothing is near.
# loss: mean over the looks, NaN for none. twin: an earlier label with almost the same box, -1 for none, and twin_iou.
LABEL_FIELDS = np.dtype(
    [
        ("image", np.int64),
        ("label", np.int64),
        ("class_id", np.int64),
        ("side", np.float64),
        ("given", np.float64),
        ("other", np.float64),
        ("other_class", np.int64),
        ("iou", np.float64),
        ("found", np.float64),
        ("found_xyxy", np.float64, 4),
        ("loss", np.float64),
        ("twin", np.int64),
        ("twin_iou", np.float64),
    ]
)

# One row a confident detection that no label explains. score: mean over the looks; iou: with the nearest label.
UNLABELLED_FIELDS = np.dtype(
    [
        ("image", np.int64),
        ("class_id", np.int64),
        ("score", np.float64),
        ("iou", np.float64),
        ("found_xyxy", np.float64, 4),
    ]
)


def weigh(record: Record, looks: Sequence[Look], num_classes: int, image: int = 0) -> tuple[Rows, Rows]:
    """The evidence about an image: LABEL_FIELDS of each label, UNLABELLED_FIELDS of each detection without one.

    image: the number that the rows are to carry.
    """
    overlaps = [iou_of(record.boxes_xyxy, look.boxes_xyxy) for look in looks]
    seen = np.mean([_seen(record, look, iou, num_classes) for look, iou in zip(looks, overlaps, strict=True)], axis=0)
    labels = np.zeros(len(seen), LABEL_FIELDS)
    own, rows = record.class_ids, np.arange(len(seen))
    labels["image"], labels["label"], labels["class_id"] = image, rows, own
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    labels["side"] = np.sqrt(sides.prod(axis=1) / (record.width * record.height))
    labels["given"] = seen[rows, own]
    seen[rows, own] = -1.0
    labels["other_class"] = seen.argmax(axis=1)
    labels["other"] = seen.max(axis=1, initial=0.0)
    _add_meant(labels, looks, overlaps)
    labels["loss"] = np.mean([look.losses for look in looks], axis=0)
    labels["twin"], labels["twin_iou"] = _twins(record)
    labels = labels[~record.ignored]
    return labels, _unlabelled(record, looks, labels, image)


def iou_of(boxes_xyxy: NDArray[np.float64], others_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union (N, M) of boxes (N, 4) with others (M, 4)."""
    iou: NDArray[np.float64] = pairwise_iou_xyxy(torch.tensor(boxes_xyxy), torch.tensor(others_xyxy)).numpy()
    return iou


def _seen(record: Record, look: Look, iou: NDArray[np.float64], num_classes: int) -> NDArray[np.float64]:
    """(N, K): the best score of each class at each label, from detections that no other label explains better."""
    same_class = record.class_ids[:, None] == look.class_ids
    own_iou = np.where(same_class & (iou >= SAME_PLACE), iou, 0.0).max(axis=0, initial=0.0)
    speaks = (iou >= SAME_PLACE) & (same_class | (iou > own_iou))
    seen = np.zeros((len(iou), num_classes))
    labels, predictions = np.nonzero(speaks)
    np.maximum.at(seen, (labels, look.class_ids[predictions]), look.scores[predictions])
    return seen


def _meant(look: Look, iou: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the detection that most likely means each label: near it, and nearer to no other; -1 for none."""
    fits = (iou >= _NEAR) & (iou >= iou.max(axis=0, initial=0.0)) & (look.scores >= _NEAR_SCORE)
    if not fits.size:
        return np.full(len(iou), -1)
    return np.where(fits.any(axis=1), np.where(fits, look.scores * iou, -1.0).argmax(axis=1), -1)


def _add_meant(labels: Rows, looks: Sequence[Look], overlaps: Sequence[NDArray[np.float64]]) -> None:
    """Write the likeliest detections: score over all looks, IoU over those that found something, the best one's box."""
    count, best = np.zeros(len(labels)), np.zeros(len(labels))
    for look, iou in zip(looks, overlaps, strict=True):
        meant = _meant(look, iou)
        rows = np.nonzero(meant >= 0)[0]
        scores = look.scores[meant[rows]]
        labels["found"][rows] += scores / len(looks)
        labels["iou"][rows] += iou[rows, meant[rows]]
        count[rows] += 1
        better = scores > best[rows]
        best[rows[better]] = scores[better]
        labels["found_xyxy"][rows[better]] = look.boxes_xyxy[meant[rows[better]]]
    labels["iou"] /= np.maximum(count, 1)


def _twins(record: Record) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each label the earlier one, not ignored, that overlaps it most, by 0.7 or more (-1: none), and their IoU."""
    if not len(record.class_ids):
        return np.zeros(0, np.int64), np.zeros(0)
    iou = np.tril(iou_of(record.boxes_xyxy, record.boxes_xyxy), -1)
    iou[:, record.ignored] = 0.0
    most = iou.max(axis=1)
    return np.where(most >= _TWIN_IOU, iou.argmax(axis=1), -1), np.where(most >= _TWIN_IOU, most, 0.0)


def _unlabelled(record: Record, looks: Sequence[Look], labels: Rows, image: int) -> Rows:
    """Confident detections of any look, each object once, that no label of the image explains."""
    boxes = np.concatenate([look.boxes_xyxy for look in looks])
    class_ids = np.concatenate([look.class_ids for look in looks])
    strong = np.concatenate([look.scores for look in looks]) >= _LEAST_MISSING_SCORE
    boxes, class_ids = boxes[strong], class_ids[strong]
    scores = np.mean([_support(boxes, class_ids, look) for look in looks], axis=0)
    chosen = np.argsort(-scores, kind="stable")
    boxes, class_ids, scores = boxes[chosen], class_ids[chosen], scores[chosen]
    with_labels = iou_of(boxes, record.boxes_xyxy)
    explained = _explained(boxes, class_ids, record, with_labels) | (scores < _LEAST_MISSING_SCORE)
    # What is meant by a badly placed label is told there, and not a second time as a missing one.
    placed = labels["found_xyxy"][(labels["found"] > 0) & (labels["given"] + labels["other"] < _NEAR_SCORE)]
    explained |= iou_of(boxes, placed).max(axis=1, initial=0.0) >= SAME_PLACE
    among = iou_of(boxes, boxes) >= _EXPLAINED_IOU
    kept: list[int] = []
    for index in range(len(boxes)):
        if not among[index, kept].any():
            kept.append(index)
    kept = [index for index in kept if not explained[index]]
    rows = np.zeros(len(kept), UNLABELLED_FIELDS)
    rows["image"], rows["class_id"], rows["score"] = image, class_ids[kept], scores[kept]
    rows["iou"] = with_labels[kept].max(axis=1, initial=0.0)
    rows["found_xyxy"] = boxes[kept]
    return rows


def _support(boxes: NDArray[np.float64], class_ids: NDArray[np.int64], look: Look) -> NDArray[np.float64]:
    """(D,) the best score with which a look, too, sees the class of each box there."""
    agrees = (class_ids[:, None] == look.class_ids) & (iou_of(boxes, look.boxes_xyxy) >= SAME_PLACE)
    return np.where(agrees, look.scores, 0.0).max(axis=1, initial=0.0)


def _explained(
    boxes: NDArray[np.float64], class_ids: NDArray[np.int64], record: Record, iou: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(D,) whether a label lies there, or a part of one of its class is meant, or the place is ignored."""
    of_detections, of_labels = torch.from_numpy(boxes), torch.tensor(record.boxes_xyxy)
    common = pairwise_overlap_xyxy(of_detections, of_labels)[0].numpy()
    own, theirs = _areas(boxes), _areas(record.boxes_xyxy)
    part = (common > 0) & (common >= _EXPLAINED_COVER * np.minimum(own[:, None], theirs))
    same_class = class_ids[:, None] == record.class_ids
    in_ignored = record.ignored & (common > 0) & (common >= _IN_IGNORED * own[:, None])
    explained: NDArray[np.bool_] = ((iou >= _EXPLAINED_IOU) | (part & same_class) | in_ignored).any(axis=1)
    return explained


def _areas(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    return areas
