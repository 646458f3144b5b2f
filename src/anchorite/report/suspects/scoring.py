"""How much each label is contradicted, as one number from 0 to 1 for each kind of suspicion. Pure functions.

A label is held against what is usual for its like: labels of the same class and about the same size, seen by the same
detector. And a contradiction that is common in its class counts less: it tells of a weakness of the detector, or of a
habit of labelling, rather than of a slip.

Legend: N labels of the whole data set, U detections without a label.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.report.suspects.evidence import Rows

LabelKind = Literal["class", "spurious", "box", "duplicate", "loss"]
Kind = Literal["class", "missing", "spurious", "box", "duplicate", "loss"]
_FEWEST = 20  # labels that make up a group; fewer tell nothing of what is usual
_LEAST_SPREAD_IOU, _LEAST_SPREAD_LOSS = 0.05, 0.1
_BOX_SPREADS, _LOSS_SPREADS = 3.0, 6.0  # how far from usual is half way to certain
_MOST_BY_LOSS = 0.5  # a high loss alone says that something is hard, or wrong, but not what
_TWIN_FROM = 0.6
_COMMON = 5.0  # where a fifth of a class is contradicted alike, each of them counts half


class LabelScores(NamedTuple):
    """by_kind: (N,) scores of each kind; and what was usual for each label's like, (N,) each, 0 where unknown."""

    by_kind: dict[LabelKind, NDArray[np.float64]]
    usual_found: NDArray[np.float64]
    usual_iou: NDArray[np.float64]
    usual_loss: NDArray[np.float64]


def label_scores(labels: Rows) -> LabelScores:
    """Scores of N labels, LABEL_FIELDS rows, each already weighed by how common that contradiction is in its class.

    class: the best other class is seen, and the label's own is not: other * (1 - given).
    spurious: how much weaker anything there is seen than the label's like usually are.
    box: something is found, but its overlap with the label lies far below the usual.
    duplicate: an earlier label has almost the same box, from 0 at IoU 0.6 to 1.
    loss: the loss lies far above the usual; at most 0.5, since it says no more than that. It backs up the first three.
    """
    groups = group_of(labels["class_id"], labels["side"])
    has_loss = ~np.isnan(labels["loss"])
    found = np.maximum(np.maximum(labels["given"], labels["other"]), labels["found"])
    usual_found, _ = _usual(found, groups, np.ones_like(has_loss))
    usual_iou, spread_iou = _usual(labels["iou"], groups, labels["found"] > 0)
    usual_loss, spread_loss = _usual(labels["loss"], groups, has_loss)
    below = (usual_iou - labels["iou"]) / np.maximum(spread_iou, _LEAST_SPREAD_IOU)
    above = np.where(has_loss, labels["loss"] - usual_loss, 0.0) / np.maximum(spread_loss, _LEAST_SPREAD_LOSS)
    raw: dict[LabelKind, NDArray[np.float64]] = {
        "class": labels["other"] * (1 - labels["given"]),
        "spurious": np.clip(usual_found - found, 0, 1),
        "box": labels["found"] * _certainty(below, _BOX_SPREADS),
        "duplicate": np.clip((labels["twin_iou"] - _TWIN_FROM) / (1 - _TWIN_FROM), 0, 1),
        "loss": _MOST_BY_LOSS * _certainty(above, _LOSS_SPREADS),
    }
    class_ids = labels["class_id"]
    scores = {kind: weighed(of_kind, class_ids, class_ids) for kind, of_kind in raw.items()}
    for kind in ("class", "spurious", "box"):
        scores[kind] = corroborated(scores[kind], scores["loss"])
    return LabelScores(
        scores,
        usual_found,
        usual_iou,
        usual_loss,
    )


def missing_scores(unlabelled: Rows, labels: Rows) -> NDArray[np.float64]:
    """(U,) scores of UNLABELLED_FIELDS rows beside all labels: what was seen, weighed by how common that is."""
    return weighed(unlabelled["score"], unlabelled["class_id"], labels["class_id"])


def weighed(
    scores: NDArray[np.float64], class_ids: NDArray[np.int64], class_ids_of_labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores divided by 1 + 5 * share; share: of how many labels of its class there is half of this score or more."""
    result = np.zeros(len(scores))
    for class_id in np.unique(class_ids).tolist():
        members = np.nonzero(class_ids == class_id)[0]
        of_class = scores[members]
        num_labels = max(_FEWEST, int((class_ids_of_labels == class_id).sum()))
        ordered = np.sort(of_class)
        # One of a kind is not common, however small its class.
        num_alike = len(of_class) - np.searchsorted(ordered, of_class / 2) - 1
        result[members] = of_class / (1 + _COMMON * num_alike / num_labels)
    return result


def corroborated(scores: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores raised by the loss score of the same label, 1 - (1 - score) * (1 - loss), where they are the stronger."""
    raised: NDArray[np.float64] = np.where(scores >= losses, 1 - (1 - scores) * (1 - losses), scores)
    return raised


def group_of(class_ids: NDArray[np.int64], sides: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) number of each label's group: class and third of its sizes; or class; or 0, all, where there are too few."""
    groups = np.zeros(len(class_ids), np.int64)
    next_group = 1
    for class_id in np.unique(class_ids).tolist():
        members = np.nonzero(class_ids == class_id)[0]
        if len(members) < _FEWEST:
            continue
        parts = 3 if len(members) >= 3 * _FEWEST else 1
        order = members[np.argsort(sides[members], kind="stable")]
        for part in np.array_split(order, parts):
            groups[part] = next_group
            next_group += 1
    return groups


def _usual(
    values: NDArray[np.float64], groups: NDArray[np.int64], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of each label's group, and its spread: a standard deviation that outliers do not move; 0 for none.

    The few wrong labels that are looked for must not change what they are held against.
    """
    usual, spread = np.zeros(len(values)), np.zeros(len(values))
    for group in np.unique(groups):
        members = groups == group
        source = values[counted & members] if group else values[counted]
        if len(source):
            median = float(np.median(source))
            usual[members] = median
            spread[members] = 1.4826 * float(np.median(np.abs(source - median)))
    return usual, spread


def _certainty(spreads: NDArray[np.float64], half_way: float) -> NDArray[np.float64]:
    """From 0 for what is usual or better, through 1/2 at `half_way` spreads, to 1."""
    certainty: NDArray[np.float64] = 1 - 0.5 ** ((np.maximum(spreads, 0) / half_way) ** 2)
    return certainty
