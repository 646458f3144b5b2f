"""What a detector's predictions say about each label, and how strongly each label is contradicted, from 0 to 1.

Each image is predicted as it is and mirrored. A label is compared with what is usual for labels of the same class and
similar size, as the same detector sees them. A contradiction that is common in its class counts less: it indicates a
weakness of the detector, or a habit of labelling, rather than a mistake. Where labels do not know, nothing contradicts
them: no label is missing in an ignored region, of a class that the image's source does not cover, or in an image whose
background counts less than 1; and a label is suspected only as much as it counts.

Legend: N labels of an image, D detections of an image, K classes, V views of an image, R rows of evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.boxes import LabelCoverage, Targets, nms
from anchorite.boxes.iou import pairwise_iou_xyxy, pairwise_overlap_xyxy
from anchorite.data import LetterboxedBatch, Record, letterboxed_batches
from anchorite.evaluate import batch_coverage, batch_targets, predictions_in_images
from anchorite.loss import DetectionLoss, LossConfig, break_down
from anchorite.predict import PredictConfig, TorchRuntime, batch_detections, require_finite

SuspectKind = Literal["class", "missing", "spurious", "box", "duplicate", "loss"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[Any]  # of EVIDENCE

# The confidence is far below the usual: how weak a label's own class is tells as much as how strong another is.
_LIMITS = PredictConfig(confidence=0.01, iou_threshold=0.6, max_detections=300, multi_label=True)
# Gains of 1 and no balance between levels or images: the cost of a box, whatever else is in its batch.
_PLAIN_LOSS = LossConfig(box_gain=1.0, class_gain=1.0)
_SAME_BOX = 0.5  # IoU from which a detection concerns a label, and two detections are of one object
_NEAR_BOX = 0.1  # IoU from which a detection may belong to a label whose box is badly placed
_NEAR_SCORE = 0.1  # below this, a detection is only a guess about where something is
_LEAST_MISSING_SCORE = 0.25
_EXPLAINED_IOU = 0.4
_EXPLAINED_COVER = 0.7  # share of the smaller of a detection and a label that they have in common
_IN_IGNORED = 0.5  # share of a detection inside an ignored box, about which the labels say nothing
_TWIN_IOU, _TWIN_FROM = 0.7, 0.6
_FEWEST = 20  # labels that make up a group; of fewer, nothing is usual
_LEAST_SPREAD_IOU, _LEAST_SPREAD_LOSS = 0.05, 0.1
_BOX_SPREADS, _LOSS_SPREADS = 3.0, 6.0  # distance from the usual at which the score is one half
_MOST_BY_LOSS = 0.5  # a high loss alone says that something is hard, or wrong, but not what
_COMMON = 5.0  # where a fifth of a class is contradicted in the same way, each of them counts half

# One row a label that is not ignored, or a confident detection that no label explains. label: its number in the record,
# -1 for a detection; class_id: of either; side: root of a label's share of the image.
# given, other: score of a label's own class and of the best other one, other_class, at its box, mean over the views.
# iou, found, found_xyxy: of the most likely detection of this label, whatever its class, zeros where nothing is near;
# of a detection its IoU with the nearest label, its mean score and its box.
# loss: mean over the views, NaN for none. twin: an earlier label with almost the same box, -1 for none, and twin_iou.
# weight: how much the label counts, 1 of a detection.
EVIDENCE = np.dtype(
    [
        *((name, np.int64) for name in ("image", "label", "class_id", "other_class", "twin")),
        *((name, np.float64) for name in ("side", "given", "other", "iou", "found", "loss", "twin_iou", "weight")),
        ("found_xyxy", np.float64, 4),
    ]
)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the detector finds in one view of an image, mapped back to pixels of the image as displayed.

    boxes_xyxy: (D, 4) float64; scores: (D,) float64, objectness times class probability; class_ids: (D,) int64; a box
    may occur several times, once a class. losses: (N,) float64, the mean loss of each label's anchor cells, 1 - CIoU
    plus the class term; NaN for labels that are ignored or that no anchor matches.
    """

    boxes_xyxy: Floats
    scores: Floats
    class_ids: Ints
    losses: Floats


def observe(
    runtime: TorchRuntime,
    records: Sequence[Record],
    image_size: int,
    batch_size: int = 16,
    *,
    mirrored: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, list[Observation]]]:
    """Yield (index of the record, an observation for each of V views), in the order of the batches.

    mirrored: predict each image's mirror image, too. Images are decoded one batch ahead and not stored. Raises
    InputError naming an image that cannot be decoded, DivergedError naming one for which the network's output is not
    finite.
    """
    detector, done = runtime.detector, 0
    criterion = DetectionLoss(detector.anchors, detector.num_classes, _PLAIN_LOSS).to(runtime.device)
    for batch in letterboxed_batches(records, image_size, batch_size, detector.strides[-1]):
        flips = (False, True) if mirrored else (False,)
        views = [_observe_batch(runtime, criterion, records, batch, flip) for flip in flips]
        yield from zip(batch.indices.tolist(), map(list, zip(*views, strict=True)), strict=True)
        done += len(batch.indices)
        if progress is not None:
            progress(done, len(records))


@torch.inference_mode()
def _observe_batch(
    runtime: TorchRuntime, criterion: DetectionLoss, records: Sequence[Record], batch: LetterboxedBatch, flip: bool
) -> list[Observation]:
    images, rows = batch.images, batch_targets(records, batch).rows
    if flip:
        images, rows[:, 2] = images.flip(-1), 1 - rows[:, 2]
    of_batch = [records[index] for index in batch.indices.tolist()]
    logits = runtime.outputs(images)
    require_finite(logits, [record.path for record in of_batch])
    # Of each label, the sum of its anchor cells' box and class losses over all levels, and their number.
    sums, counts = torch.zeros(2, len(rows), dtype=torch.float64, device=runtime.device)
    # Each label as if it counted 1, but without the classes that its source does not cover.
    unknown = batch_coverage(records, batch)
    coverage = LabelCoverage(covered_classes=unknown.covered_classes).to(runtime.device) if unknown else None
    for level in break_down(criterion, logits, Targets(rows).to(runtime.device), coverage):
        # Undo the division by the level's number of cells, so that a box costs the same in any batch.
        cost = (level.box + level.classification * criterion.num_classes).double() * len(level.iou)
        sums.index_add_(0, level.assignment.target, cost)
        counts.index_add_(0, level.assignment.target, torch.ones_like(cost))
    of_targets = iter(torch.where(counts > 0, sums / counts, torch.nan).tolist())
    losses = [np.array([np.nan if ignored else next(of_targets) for ignored in one.ignored]) for one in of_batch]
    found = batch_detections(logits, criterion.anchors, _LIMITS).cpu()
    boxes = found.boxes_xyxy.double()
    if flip:
        left, top, right, bottom = boxes.unbind(1)
        boxes = torch.stack([images.shape[-1] - right, top, images.shape[-1] - left, bottom], dim=1)
    in_images = predictions_in_images(replace(found, boxes_xyxy=boxes), batch.transforms)
    return [
        Observation(
            np.asarray(one.boxes_xyxy, np.float64), np.asarray(one.scores, np.float64), one.class_ids, of_labels
        )
        for one, of_labels in zip(in_images, losses, strict=True)
    ]


def evidence(record: Record, observations: Sequence[Observation], num_classes: int, image: int = 0) -> Rows:
    """The evidence about an image: a row a label that is not ignored, then one a detection without a label.

    image: the number that the rows are to have.
    """
    overlaps = [iou_of(record.boxes_xyxy, one.boxes_xyxy) for one in observations]
    pairs = list(zip(observations, overlaps, strict=True))
    labels = np.zeros(len(record.class_ids), EVIDENCE)
    rows = np.arange(len(labels))
    class_ids = np.where(record.ignored, 0, record.class_ids)  # of a region, which is no label, there may be none
    labels["image"], labels["label"], labels["class_id"], labels["twin"] = image, rows, class_ids, -1
    labels["weight"] = record.weights
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    labels["side"] = np.sqrt(sides.prod(axis=1) / (record.width * record.height))
    seen = np.mean([_seen(record, one, iou, num_classes) for one, iou in pairs], axis=0)
    labels["given"] = seen[rows, class_ids]
    seen[rows, class_ids] = -1.0
    labels["other_class"] = seen.argmax(axis=1)
    labels["other"] = seen.max(axis=1, initial=0.0)
    # Of the likeliest detections: the score over all views, the IoU over those that found something, the best box.
    scores, ious, boxes = map(np.stack, zip(*(_likeliest(one, iou) for one, iou in pairs), strict=True))
    labels["found"] = scores.mean(axis=0)
    labels["iou"] = ious.sum(axis=0) / np.maximum((scores > 0).sum(axis=0), 1)
    labels["found_xyxy"] = boxes[scores.argmax(axis=0), rows]
    labels["loss"] = np.mean([one.losses for one in observations], axis=0)
    if len(labels):
        among = np.tril(iou_of(record.boxes_xyxy, record.boxes_xyxy), -1)
        among[:, record.ignored] = 0.0
        most = among.max(axis=1)
        labels["twin"] = np.where(most >= _TWIN_IOU, among.argmax(axis=1), -1)
        labels["twin_iou"] = np.where(most >= _TWIN_IOU, most, 0.0)
    labels = labels[~record.ignored]
    return np.concatenate([labels, _unlabelled(record, observations, labels, image)])


def iou_of(boxes_xyxy: Floats, others_xyxy: Floats) -> Floats:
    """Intersection over union (N, M) of boxes (N, 4) with others (M, 4)."""
    iou: Floats = pairwise_iou_xyxy(torch.tensor(boxes_xyxy), torch.tensor(others_xyxy)).numpy()
    return iou


def _seen(record: Record, one: Observation, iou: Floats, num_classes: int) -> Floats:
    """(N, K): the best score of each class at each label, from detections that no other label explains better."""
    same_class = record.class_ids[:, None] == one.class_ids
    own_iou = np.where(same_class & (iou >= _SAME_BOX), iou, 0.0).max(axis=0, initial=0.0)
    labels, detections = np.nonzero((iou >= _SAME_BOX) & (same_class | (iou > own_iou)))
    seen = np.zeros((len(iou), num_classes))
    np.maximum.at(seen, (labels, one.class_ids[detections]), one.scores[detections])
    return seen


def _likeliest(one: Observation, iou: Floats) -> tuple[Floats, Floats, Floats]:
    """Score (N,), IoU (N,) and box (N, 4) of the detection that most likely belongs to each label, which is near it and
    nearer to no other; zeros for none."""
    fits = (iou >= _NEAR_BOX) & (iou >= iou.max(axis=0, initial=0.0)) & (one.scores >= _NEAR_SCORE)
    # A last column stands for nothing, the likeliest only where no detection fits.
    likelihood = np.pad(np.where(fits, one.scores * iou, 0.0), ((0, 0), (0, 1)), constant_values=1e-9)
    best = likelihood.argmax(axis=1)
    scores, boxes = np.append(one.scores, 0.0), np.vstack([one.boxes_xyxy, np.zeros(4)])
    return scores[best], np.pad(iou, ((0, 0), (0, 1)))[np.arange(len(iou)), best], boxes[best]


def _unlabelled(record: Record, observations: Sequence[Observation], labels: Rows, image: int) -> Rows:
    """Confident detections of any view, each object once, that no label of the image explains; none where labels may
    be missing."""
    if record.source.background_weight < 1:
        return np.zeros(0, EVIDENCE)
    strong = np.concatenate([one.scores for one in observations]) >= _LEAST_MISSING_SCORE
    boxes = np.concatenate([one.boxes_xyxy for one in observations])[strong]
    class_ids = np.concatenate([one.class_ids for one in observations])[strong]
    # The best score with which each view has the class of each box there.
    agreeing = [
        np.where((class_ids[:, None] == one.class_ids) & (iou_of(boxes, one.boxes_xyxy) >= _SAME_BOX), one.scores, 0.0)
        for one in observations
    ]
    scores = np.mean([of_view.max(axis=1, initial=0.0) for of_view in agreeing], axis=0)
    with_labels = iou_of(boxes, record.boxes_xyxy)
    # A label is there, or it is a part of a label of its class, or lies in an ignored region.
    common = pairwise_overlap_xyxy(torch.tensor(boxes), torch.tensor(record.boxes_xyxy))[0].numpy()
    own, theirs = (np.prod(one[:, 2:] - one[:, :2], axis=1) for one in (boxes, record.boxes_xyxy))
    part = (common > 0) & (common >= _EXPLAINED_COVER * np.minimum(own[:, None], theirs))
    same_class = class_ids[:, None] == record.class_ids
    in_ignored = record.ignored & (common > 0) & (common >= _IN_IGNORED * own[:, None])
    explained = ((with_labels >= _EXPLAINED_IOU) | (part & same_class) | in_ignored).any(axis=1)
    explained |= scores < _LEAST_MISSING_SCORE
    if record.source.covered is not None:
        explained |= ~np.array(record.source.covered)[class_ids]
    # What belongs to a badly placed label is reported there, and not again as a missing label.
    placed = labels["found_xyxy"][(labels["found"] > 0) & (labels["given"] + labels["other"] < _NEAR_SCORE)]
    explained |= iou_of(boxes, placed).max(axis=1, initial=0.0) >= _SAME_BOX
    distinct = nms(torch.tensor(boxes), torch.tensor(scores), None, _EXPLAINED_IOU, len(boxes)).tolist()
    chosen = [index for index in distinct if not explained[index]]
    rows = np.zeros(len(chosen), EVIDENCE)
    rows["image"], rows["label"], rows["twin"], rows["weight"] = image, -1, -1, 1
    rows["class_id"], rows["found"], rows["found_xyxy"] = class_ids[chosen], scores[chosen], boxes[chosen]
    rows["iou"] = with_labels[chosen].max(axis=1, initial=0.0)
    return rows


def score_evidence(rows: Rows) -> tuple[dict[SuspectKind, Floats], dict[str, Floats]]:
    """(R,) scores of each kind, already weighted by how common that contradiction is in its class, and by how much the
    label counts; what was usual.

    class: the best other class is seen, and the label's own is not: other * (1 - given).
    missing: the score of a detection without a label.
    spurious: how much weaker anything there is seen than is usual.
    box: something is found, but its overlap with the label is far below the usual.
    duplicate: an earlier label has almost the same box, from 0 at IoU 0.6 to 1.
    loss: the loss is far above the usual; at most 0.5, since it says no more than that. It raises class, spurious, box.

    The second mapping has what was usual for labels like each one, (R,) found, iou and loss, 0 where unknown.
    """
    is_label, class_ids, loss = rows["label"] >= 0, rows["class_id"], rows["loss"]
    groups = group_of(np.where(is_label, class_ids, -1), rows["side"])
    seen = np.maximum(np.maximum(rows["given"], rows["other"]), rows["found"])
    usual_seen, _ = _usual(seen, groups, is_label)
    usual_iou, spread_iou = _usual(rows["iou"], groups, is_label & (rows["found"] > 0))
    usual_loss, spread_loss = _usual(loss, groups, is_label & ~np.isnan(loss))
    below = (usual_iou - rows["iou"]) / np.maximum(spread_iou, _LEAST_SPREAD_IOU)
    above = np.where(np.isnan(loss), 0.0, loss - usual_loss) / np.maximum(spread_loss, _LEAST_SPREAD_LOSS)
    raw: dict[SuspectKind, Floats] = {
        "class": rows["other"] * (1 - rows["given"]),
        "missing": rows["found"],
        "spurious": np.clip(usual_seen - seen, 0, 1),
        "box": rows["found"] * _certainty(below, _BOX_SPREADS),
        "duplicate": np.clip((rows["twin_iou"] - _TWIN_FROM) / (1 - _TWIN_FROM), 0, 1),
        "loss": _MOST_BY_LOSS * _certainty(above, _LOSS_SPREADS),
    }
    scores = {
        kind: weighted(np.where(is_label == (kind != "missing"), of_kind, 0.0), class_ids, class_ids[is_label])
        for kind, of_kind in raw.items()
    }
    for kind in ("class", "spurious", "box"):
        both = 1 - (1 - scores[kind]) * (1 - scores["loss"])
        scores[kind] = np.where(scores[kind] >= scores["loss"], both, scores[kind])  # a weaker one says nothing more
    scores = {kind: of_kind * rows["weight"] for kind, of_kind in scores.items()}
    return scores, {"found": usual_seen, "iou": usual_iou, "loss": usual_loss}


def weighted(scores: Floats, class_ids: Ints, class_ids_of_labels: Ints) -> Floats:
    """Scores divided by 1 + 5 * share; share: of how many labels of its class there is half of this score or more."""
    result = np.zeros(len(scores))
    for class_id in np.unique(class_ids).tolist():
        members = np.nonzero(class_ids == class_id)[0]
        of_class = scores[members]
        num_labels = max(_FEWEST, int((class_ids_of_labels == class_id).sum()))
        # A single one is not common, however small its class.
        num_alike = len(of_class) - np.searchsorted(np.sort(of_class), of_class / 2) - 1
        result[members] = of_class / (1 + _COMMON * num_alike / num_labels)
    return result


def group_of(class_ids: Ints, sides: Floats) -> Ints:
    """(N,) number of each label's group: class and third of its sizes; or class; or 0, all, where there are too few."""
    groups = np.zeros(len(class_ids), np.int64)
    for class_id in np.unique(class_ids).tolist():
        members = np.nonzero(class_ids == class_id)[0]
        if len(members) >= _FEWEST:
            order = members[np.argsort(sides[members], kind="stable")]
            for part in np.array_split(order, 3 if len(members) >= 3 * _FEWEST else 1):
                groups[part] = groups.max() + 1
    return groups


def _usual(values: Floats, groups: Ints, counted: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Median of each label's group, and its spread: a standard deviation that outliers do not change; 0 for none. The
    few wrong labels that are searched for must not change what they are compared with."""
    usual, spread = np.zeros(len(values)), np.zeros(len(values))
    for group in np.unique(groups):
        members = groups == group
        source = values[counted & members] if group else values[counted]
        if len(source):
            median = float(np.median(source))
            usual[members] = median
            spread[members] = 1.4826 * float(np.median(np.abs(source - median)))
    return usual, spread


def _certainty(spreads: Floats, half_way: float) -> Floats:
    """From 0 for what is usual or better, through 1/2 at `half_way` spreads, to 1."""
    certainty: Floats = 1 - 0.5 ** ((np.maximum(spreads, 0) / half_way) ** 2)
    return certainty
