"""Head and loss, forward and backward, against plain PyTorch: time, peak memory, and growth with the classes.

Features as the neck of size n leaves them at 640 px, 16 images; gradients of features, weights and biases. The
yardstick (`DenseLoss`) is written from docs/objective.md alone: every logit of every anchor and cell is computed, the
map is reordered so that these logits lie side by side, objects are assigned with boolean masks, and matched logits are
gathered. It shares nothing with anchorite.loss, and tests hold both to equal loss and gradients.

Legend: B images, L levels, A anchors, K classes, H, W grid rows and columns, T objects, M matches of object and anchor,
P candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from anchorite.benchmark import Figure, Sample, detector_of, interleaved, targets_for
from anchorite.boxes import LabelCoverage, Targets
from anchorite.data.store import spendable_memory
from anchorite.loss import DetectionLoss, LossConfig
from benchmarks.measure import (
    Comparison,
    Floor,
    Outcome,
    Predictors,
    Settings,
    Target,
    cost,
    faster,
    features_for,
    in_fresh_process,
    memory_rate,
    peak_extra_bytes,
    predictors_of,
)

FASTER_WITH_8, FASTER_WITH_100 = 12.0, 5.0
MEMORY_SHARE, GROWTH_OF_CLASSES = 0.15, 5.0
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
_ROUNDS, _SLOW_ROUNDS = 15, 3
_CLASSES, _MANY_CLASSES = 80, 1000
Work = Callable[[], object]
_BALANCE = (4.0, 1.0, 0.4)
_EPS = 1e-7


def benchmark_loss(settings: Settings) -> Outcome:
    """Ours against the dense way with 8 and 100 objects an image, and over the number of classes."""
    batch, image_size = (2, 64) if settings.quick else (16, 640)
    comparisons: list[Comparison] = []
    figures: list[Figure] = []
    for precision in PRECISIONS:
        for objects, at_least in ((8, FASTER_WITH_8), (100, FASTER_WITH_100)):
            found = _against_dense(settings, (batch, image_size), precision, objects, at_least)
            comparisons += found
        comparisons.append(_partly_unknown(settings, (batch, image_size), precision))
        of_classes, more = _over_classes(settings, (batch, image_size), precision)
        comparisons.append(of_classes)
        figures += more
    facts = {"batch": batch, "image_size": image_size, "classes": _CLASSES, "model": "n"}
    return Outcome("loss", tuple(comparisons), tuple(figures), facts)


def _against_dense(
    settings: Settings, sizes: tuple[int, int], precision: str, objects: int, at_least: float
) -> list[Comparison]:
    """Time and memory of one precision and number of objects."""
    batch, image_size = sizes
    ours, dense, features = make_works(settings.device, batch, image_size, precision, objects, _CLASSES)
    works: dict[str, Work] = {"matched cells": ours, "dense way": dense}
    samples = interleaved(works, settings.rounds_or(_ROUNDS), device=settings.device)
    name = f"{precision}, {objects} objects an image"
    time_compared = faster("matched cells", "dense way", samples, f"time, {name}", at_least)
    found = [replace(time_compared, floor=_floor(features, settings))]
    # Apart from this process, whose allocator keeps holes of all that has run in it.
    peaks = in_fresh_process(peaks_of_both, settings.device, batch, image_size, precision, objects)
    if peaks[0] is not None and peaks[1] is not None:
        gradients = sum(feature.nbytes for feature in features)
        found.append(
            Comparison(
                f"peak memory, {name}",
                Figure("matched cells", float(peaks[0]), "B"),
                Figure("dense way", float(peaks[1]), "B"),
                "cost",
                target=Target("at most", MEMORY_SHARE),
                floor=Floor(float(gradients), "the gradients of the features, which have to be handed on"),
            )
        )
    return found


def peaks_of_both(
    device: torch.device, batch: int, image_size: int, precision: str, objects: int
) -> tuple[int | None, int | None]:
    """Peak extra bytes of ours and of the dense way, with the allocator as it is in any process."""
    ours, dense, _ = make_works(device, batch, image_size, precision, objects, _CLASSES)
    return peak_extra_bytes(ours, device), peak_extra_bytes(dense, device)


def make_works(
    device: torch.device, batch: int, image_size: int, precision: str, objects: int, num_classes: int
) -> tuple[Work, Work, list[Tensor]]:
    """Ours and the dense way over the same features, weights and targets; each returns loss and gradients."""
    detector = detector_of("n", num_classes, device)
    predictors = predictors_of(detector)
    dtype = PRECISIONS[precision]
    features = features_for(detector, batch, image_size, dtype or torch.float32, device)
    targets = targets_for(batch, objects, num_classes, device)
    config = LossConfig().scaled(detector.anchors.num_levels, num_classes, image_size)
    criterion = DetectionLoss(detector.anchors, num_classes, config).to(device)
    plain = DenseLoss(detector.anchors.cells(device=device), config)
    wanted = [*features, *(parameter for predictor in predictors for parameter in predictor.parameters())]

    def ours() -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = criterion(detector.head.matched(features), targets).total
        return loss, *torch.autograd.grad(loss, wanted)

    def dense() -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = dense_logits(features, predictors, detector.anchors.num_anchors)
        loss = plain(logits, targets.rows)
        return loss, *torch.autograd.grad(loss, wanted)

    return ours, dense, features


def _partly_unknown(settings: Settings, sizes: tuple[int, int], precision: str) -> Comparison:
    """What weights, 8 ignore regions an image, covered classes and a grid of background weights cost, 8 objects."""
    (batch, image_size), device, dtype = sizes, settings.device, PRECISIONS[precision]
    detector = detector_of("n", _CLASSES, device)
    features = features_for(detector, batch, image_size, dtype or torch.float32, device)
    targets = targets_for(batch, 8, _CLASSES, device)
    criterion = DetectionLoss(detector.anchors, _CLASSES, LossConfig()).to(device)
    regions = targets_for(batch, 8, _CLASSES, device, seed=4).rows[:, [0, 2, 3, 4, 5]]
    covered = torch.ones(batch, _CLASSES, dtype=torch.bool, device=device)
    grid = torch.full((batch, image_size // 8, image_size // 8), 0.5, device=device)
    weighted = Targets.from_rows(targets.rows, torch.full((len(targets),), 0.5, device=device))
    given = {"everything known": (targets, None), "partly": (weighted, LabelCoverage(regions, covered, grid))}

    def work(of_batch: tuple[Targets, LabelCoverage | None]) -> Work:
        def run() -> tuple[Tensor, ...]:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = criterion(detector.head.matched(features), *of_batch).total
            return torch.autograd.grad(loss, [*features, *detector.head.parameters()])

        return run

    works = {name: work(one) for name, one in given.items()}
    samples = interleaved(works, settings.rounds_or(_ROUNDS), device=device)
    return cost("partly", "everything known", samples, f"weights, regions, coverage, {precision}", None)


def _floor(features: list[Tensor], settings: Settings) -> Floor:
    """Seconds that the bytes take which no way of computing this can do without moving."""
    anchors = 3
    places = sum(feature.shape[0] * anchors * feature.shape[2] * feature.shape[3] for feature in features)
    of_features = 3 * sum(feature.nbytes for feature in features)
    # Logits written and read, targets read, gradients written and read.
    of_maps = 5 * places * 4
    rate = memory_rate(of_features + of_maps, settings.device, rounds=settings.rounds_or(_ROUNDS))
    what = (
        f"{(of_features + of_maps) / 1e6:.0f} MB (features read twice, their gradients written once, objectness maps) "
        f"at {rate / 1e9:.1f} GB/s as measured for as many bytes"
    )
    return Floor((of_features + of_maps) / rate, what)


def _over_classes(settings: Settings, sizes: tuple[int, int], precision: str) -> tuple[Comparison, list[Figure]]:
    """Ours with 1 to 1000 classes, 8 objects an image; the dense way as far as it fits."""
    ours: dict[str, Work] = {}
    dense: dict[str, Work] = {}
    for num_classes in (1, 10, _CLASSES, _MANY_CLASSES):
        work, dense_work, features = make_works(settings.device, *sizes, precision, 8, num_classes)
        ours[f"{num_classes} classes"] = work
        if num_classes in (1, _CLASSES) or (num_classes == _MANY_CLASSES and _fits(features, num_classes, settings)):
            dense[f"{num_classes} classes"] = dense_work
    taken = interleaved(ours, settings.rounds_or(_ROUNDS), device=settings.device)
    taken_dense: dict[str, Sample] = {}
    for name, work in dense.items():
        rounds = settings.rounds_or(_SLOW_ROUNDS if name.startswith(f"{_MANY_CLASSES} ") else _ROUNDS)
        taken_dense |= interleaved({name: work}, min(rounds, _ROUNDS), warm_up=1, device=settings.device)
    growth = cost(
        f"{_MANY_CLASSES} classes",
        "1 classes",
        taken,
        f"growth from 1 to {_MANY_CLASSES} classes, {precision}",
        GROWTH_OF_CLASSES,
    )
    figures = [Figure.of(f"matched cells, {precision}, {name}", sample) for name, sample in taken.items()]
    figures += [Figure.of(f"dense way, {precision}, {name}", sample) for name, sample in taken_dense.items()]
    return growth, figures


def _fits(features: list[Tensor], num_classes: int, settings: Settings) -> bool:
    """Whether the dense way's maps, of which it holds about six at once, fit the memory at hand."""
    places = sum(feature.shape[0] * 3 * feature.shape[2] * feature.shape[3] for feature in features)
    needed = 6 * places * (5 + num_classes) * features[0].element_size()
    if settings.device.type == "cuda":
        return needed < torch.cuda.mem_get_info(settings.device)[0]
    spendable = spendable_memory()
    return spendable is None or needed < spendable


@dataclass(frozen=True)
class Candidates:
    """Places of one level that answer for an object, (P,) indices, with what they should say: box (P, 4) in cells."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box: Tensor
    class_index: Tensor


def dense_logits(features: Sequence[Tensor], predictors: Predictors, num_anchors: int) -> list[Tensor]:
    """Logits of every level by place, (B, A, H, W, 5 + K), contiguous."""
    logits = []
    for feature, predictor in zip(features, predictors, strict=True):
        batch, _, height, width = feature.shape
        output = functional.conv2d(feature, predictor.weight, predictor.bias)
        by_anchor = output.view(batch, num_anchors, -1, height, width)
        logits.append(by_anchor.permute(0, 1, 3, 4, 2).contiguous())
    return logits


class DenseLoss:
    """The objective of three levels over logits (B, A, H, W, 5 + K), with the default options and given gains.

    anchors_cells: (3, A, 2). Called with logits and rows (T, 6): image, class, cx, cy, w, h, normalised; returns the
    total with the factor B. Box, objectness and classes are taken in float32, or in float64 for float64 logits.
    """

    def __init__(self, anchors_cells: Tensor, config: LossConfig) -> None:
        assert anchors_cells.shape[0] == len(_BALANCE)
        self.anchors_cells = anchors_cells
        self.config = config

    def __call__(self, logits: Sequence[Tensor], rows: Tensor) -> Tensor:
        box_loss = objectness_loss = class_loss = torch.zeros((), device=rows.device)
        for level, place_logits in enumerate(logits):
            anchors_cells = self.anchors_cells[level].to(rows)
            found = assign_by_masks(rows, anchors_cells, place_logits.shape[2:4], self.config.ratio_limit)
            goals = torch.zeros(place_logits.shape[:4], dtype=_loss_dtype(place_logits), device=rows.device)
            if len(found.image):
                matched = _in_loss_precision(place_logits[found.image, found.anchor, found.row, found.column])
                box, objectness, classes = matched.split((4, 1, matched.shape[1] - 5), dim=1)
                centres = box[:, :2].sigmoid() * 2 - 0.5
                sides = (box[:, 2:].sigmoid() * 2) ** 2 * anchors_cells[found.anchor].to(box)
                iou = complete_iou(torch.cat([centres, sides], dim=1), found.box.to(box))
                box_loss = box_loss + (1 - iou).mean()
                # Written in canonical order, so that the last of several candidates for a place stays.
                goals[found.image, found.anchor, found.row, found.column] = iou.detach().clamp(min=0)
                if classes.shape[1] > 1:
                    one_hot = torch.zeros_like(classes)
                    one_hot[torch.arange(len(classes), device=rows.device), found.class_index] = 1.0
                    class_loss = class_loss + functional.binary_cross_entropy_with_logits(classes, one_hot)
            everywhere = _in_loss_precision(place_logits[..., 4])
            objectness = functional.binary_cross_entropy_with_logits(everywhere, goals)
            objectness_loss = objectness_loss + _BALANCE[level] * objectness
        config = self.config
        summed = config.box_gain * box_loss + config.objectness_gain * objectness_loss + config.class_gain * class_loss
        return summed * logits[0].shape[0]


def assign_by_masks(rows: Tensor, anchors_cells: Tensor, grid_size: Sequence[int], ratio_limit: float) -> Candidates:
    """The candidates of one level in canonical order; rows (T, 6), anchors_cells (A, 2)."""
    height, width = grid_size
    num_anchors, num_rows = len(anchors_cells), len(rows)
    grid = rows.new_tensor([width, height])
    boxes = rows[:, 2:] * grid.repeat(2)
    ratio = boxes[None, :, 2:] / anchors_cells[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=2) < ratio_limit  # (A, T)
    of_match = torch.arange(num_rows, device=rows.device).expand(num_anchors, num_rows)[fits]  # (M,)
    anchor = torch.arange(num_anchors, device=rows.device)[:, None].expand(num_anchors, num_rows)[fits]
    centres = boxes[of_match, :2]
    near_start = (centres % 1 < 0.5) & (centres > 1)
    near_end = ((grid - centres) % 1 < 0.5) & (grid - centres > 1)
    holds = torch.ones_like(near_start[:, 0])
    answers = torch.stack([holds, near_start[:, 0], near_start[:, 1], near_end[:, 0], near_end[:, 1]])  # (5, M)
    shifts = rows.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
    shift = shifts[:, None].expand(5, len(of_match), 2)[answers]
    of_match = of_match.expand_as(answers)[answers]
    anchor = anchor.expand_as(answers)[answers]
    cells = (boxes[of_match, :2] - shift).long()
    column, row = cells[:, 0].clamp(0, width - 1), cells[:, 1].clamp(0, height - 1)
    box = torch.cat([boxes[of_match, :2] - torch.stack([column, row], dim=1), boxes[of_match, 2:]], dim=1)
    return Candidates(rows[of_match, 0].long(), anchor, row, column, box, rows[of_match, 1].long())


def complete_iou(boxes_cxcywh: Tensor, goals_cxcywh: Tensor) -> Tensor:
    """CIoU (P,) of boxes (P, 4) and (P, 4) at equal positions."""
    x1, y1, w1, h1 = boxes_cxcywh.unbind(dim=1)
    x2, y2, w2, h2 = goals_cxcywh.unbind(dim=1)
    left1, right1, top1, bottom1 = x1 - w1 / 2, x1 + w1 / 2, y1 - h1 / 2, y1 + h1 / 2
    left2, right2, top2, bottom2 = x2 - w2 / 2, x2 + w2 / 2, y2 - h2 / 2, y2 + h2 / 2
    overlap_x = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    overlap_y = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = overlap_x * overlap_y
    iou = intersection / (w1 * h1 + w2 * h2 - intersection + _EPS)
    hull_x = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_y = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    distance = ((x2 - x1) ** 2 + (y2 - y1) ** 2) / (hull_x**2 + hull_y**2 + _EPS)
    aspect = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)) ** 2
    with torch.no_grad():
        alpha = aspect / (aspect - iou + 1 + _EPS)
    return iou - distance - alpha * aspect


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _in_loss_precision(logits: Tensor) -> Tensor:
    return logits.to(_loss_dtype(logits))
