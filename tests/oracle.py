"""The objective as a slow loop over single numbers: what the package must agree with.

Written from the page of the objective alone and sharing no code with the package: Python floats (float64), one
candidate, one place, one class at a time. `dtype` makes the assignment's arithmetic that of another precision.

Legend: B images, L levels, A anchors, K classes, H, W, T targets, P candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Place = tuple[int, int, int, int]  # image, anchor, row, column
OFFSETS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))  # centre, left, up, right, down


class Candidate(NamedTuple):
    image: int
    anchor: int
    row: int
    column: int
    target: int
    class_index: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Settings:
    """The options of the objective, under the names of the package's LossConfig."""

    box_gain: float = 0.05
    objectness_gain: float = 1.0
    class_gain: float = 0.5
    ratio_limit: float = 4.0
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_pos_weight: float = 1.0
    objectness_pos_weight: float = 1.0
    objectness_iou_ratio: float = 1.0
    automatic_balance: bool = False
    collision: str = "last"
    box_iou: str = "ciou"


@dataclass(frozen=True)
class Unknown:
    """What labels do not know (section 6): weights (T,), sources (T,), regions (R, 5), covered (B or S, K), background
    (B,) or (B, h, w).
    """

    weights: np.ndarray | None = None
    sources: np.ndarray | None = None
    regions: np.ndarray | None = None
    covered: np.ndarray | None = None
    background: np.ndarray | None = None

    def weight(self, target: int) -> float:
        return 1.0 if self.weights is None else float(self.weights[target])

    def is_covered(self, one: Candidate, class_index: int) -> bool:
        row = one.image if self.sources is None else self.sources[one.target]
        return self.covered is None or bool(self.covered[row][class_index])

    def weight_of_background(self, place: Place, grid: tuple[int, int]) -> float:
        """What the objectness element weighs of a place that is neither a candidate nor ignored."""
        if self.background is None:
            return 1.0
        image, _, row, column = place
        of_image = self.background[image]
        if of_image.ndim == 0:
            return float(of_image)
        parts = (
            math.floor((index + 0.5) / cells * length)
            for index, cells, length in zip((row, column), grid, of_image.shape, strict=True)
        )
        return float(of_image[tuple(parts)])

    def ignored_places(self, anchors: np.ndarray, grid: tuple[int, int], ratio_limit: float) -> set[Place]:
        """The places of a level that some region takes: as an object would, or by half of the anchor's box."""
        height, width = grid
        ignored = set[Place]()
        for region in () if self.regions is None else self.regions:
            as_object = np.array([[region[0], 0, *region[1:]]])
            ignored |= {one[:4] for one in candidates(as_object, anchors, height, width, ratio_limit)}
            for anchor, row, column in np.ndindex(len(anchors), height, width):
                shared = 1.0
                for index, centre, side, cells, of_anchor in zip(
                    (column, row), region[1:3], region[3:5], (width, height), anchors[anchor], strict=True
                ):
                    low, high = centre * cells - side * cells / 2, centre * cells + side * cells / 2
                    shared *= max(min(high, index + 0.5 + of_anchor / 2) - max(low, index + 0.5 - of_anchor / 2), 0.0)
                if shared >= anchors[anchor][0] * anchors[anchor][1] / 2:
                    ignored.add((int(region[0]), anchor, row, column))
        return ignored


class Terms(NamedTuple):
    total: float
    box: float
    objectness: float
    classification: float
    balance_after: list[float]


def first_balance(num_levels: int) -> list[float]:
    return [4.0, 1.0, 0.4] if num_levels == 3 else [4.0, 1.0, 0.25, 0.06, 0.02][:num_levels]


# ---------------------------------------------------------------- assignment


def wanted_offsets(gx: float, gy: float, width: int, height: int) -> list[bool]:
    """Which of the five offsets a centre asks for."""
    from_right, from_bottom = width - gx, height - gy
    return [
        True,
        gx % 1 < 0.5 and gx > 1,
        gy % 1 < 0.5 and gy > 1,
        from_right % 1 < 0.5 and from_right > 1,
        from_bottom % 1 < 0.5 and from_bottom > 1,
    ]


def shape_fits(sides: Sequence[float], anchor: Sequence[float], ratio_limit: float) -> bool:
    worst = 0.0
    for side, reference in zip(sides, anchor, strict=True):
        ratio = side / reference
        worst = max(worst, ratio, 1 / ratio if ratio > 0 else math.inf)
    return worst < ratio_limit


def candidates(
    rows: np.ndarray, anchors: np.ndarray, height: int, width: int, ratio_limit: float = 4.0, dtype: type = np.float64
) -> list[Candidate]:
    """The candidates of one level in canonical order; rows (T, 6), anchors (A, 2) in cells."""
    rows, anchors, found = rows.astype(dtype), anchors.astype(dtype), []
    for number, (shift_x, shift_y) in enumerate(OFFSETS):
        for anchor in range(len(anchors)):
            for target, (image, class_index, cx, cy, w, h) in enumerate(rows):
                gx, gy = cx * dtype(width), cy * dtype(height)
                sides = w * dtype(width), h * dtype(height)
                if not shape_fits(sides, anchors[anchor], dtype(ratio_limit)):
                    continue
                if not wanted_offsets(gx, gy, width, height)[number]:
                    continue
                column = min(max(int(gx - dtype(shift_x)), 0), width - 1)
                row = min(max(int(gy - dtype(shift_y)), 0), height - 1)
                box = (float(gx - dtype(column)), float(gy - dtype(row)), float(sides[0]), float(sides[1]))
                found.append(Candidate(int(image), anchor, row, column, target, int(class_index), box))
    return found


# ---------------------------------------------------------------- the terms


def sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def decoded(logits: Sequence[float], anchor: Sequence[float]) -> tuple[float, float, float, float]:
    """Centre relative to the cell's corner, and sides, in cells."""
    tx, ty, tw, th = (float(value) for value in logits)
    return (
        2 * sigmoid(tx) - 0.5,
        2 * sigmoid(ty) - 0.5,
        (2 * sigmoid(tw)) ** 2 * float(anchor[0]),
        (2 * sigmoid(th)) ** 2 * float(anchor[1]),
    )


def aspect_term(a: Sequence[float], b: Sequence[float]) -> float:
    return 4 / math.pi**2 * (math.atan2(b[2], b[3]) - math.atan2(a[2], a[3])) ** 2


def aspect_weight(a: Sequence[float], b: Sequence[float], eps: float = 1e-7) -> float:
    """CIoU's alpha."""
    v = aspect_term(a, b)
    return v / (v - iou(a, b, "iou", eps) + 1 + eps)


def iou(
    a: Sequence[float], b: Sequence[float], kind: str = "ciou", eps: float = 1e-7, alpha: float | None = None
) -> float:
    """One of the IoU family for two boxes cx, cy, w, h; `alpha` holds CIoU's weight at a given value."""
    left, right = max(a[0] - a[2] / 2, b[0] - b[2] / 2), min(a[0] + a[2] / 2, b[0] + b[2] / 2)
    top, bottom = max(a[1] - a[3] / 2, b[1] - b[3] / 2), min(a[1] + a[3] / 2, b[1] + b[3] / 2)
    inter = max(right - left, 0.0) * max(bottom - top, 0.0)
    union = a[2] * a[3] + b[2] * b[3] - inter + eps
    plain = inter / union
    if kind == "iou":
        return plain
    outer_w = max(a[0] + a[2] / 2, b[0] + b[2] / 2) - min(a[0] - a[2] / 2, b[0] - b[2] / 2)
    outer_h = max(a[1] + a[3] / 2, b[1] + b[3] / 2) - min(a[1] - a[3] / 2, b[1] - b[3] / 2)
    if kind == "giou":
        outer = outer_w * outer_h + eps
        return plain - (outer - union) / outer
    distance = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    near = plain - distance / (outer_w**2 + outer_h**2 + eps)
    if kind == "diou":
        return near
    return near - aspect_term(a, b) * (aspect_weight(a, b, eps) if alpha is None else alpha)


def binary_cross_entropy(logit: float, target: float, pos_weight: float = 1.0, gamma: float = 0.0) -> float:
    """One element of objectness or class loss, with the focal factor when gamma > 0."""
    logit = float(logit)
    value = pos_weight * target * softplus(-logit) + (1 - target) * softplus(logit)
    if gamma > 0:
        # 1 - p_t = 1 - t*p - (1-t)*(1-p), written so that nothing cancels.
        away = target * sigmoid(-logit) + (1 - target) * sigmoid(logit)
        value *= (target * 0.25 + (1 - target) * 0.75) * away**gamma
    return value


# ---------------------------------------------------------------- the loss


def level_terms(
    logits: np.ndarray,
    held: np.ndarray,
    found: list[Candidate],
    anchors: np.ndarray,
    settings: Settings,
    unknown: Unknown,
) -> tuple[float, float, float]:
    """Box, objectness and class loss of one level, before gains and balance.

    What the objective takes as constant (CIoU's alpha, the objectness targets) is evaluated at `held`.
    """
    num_images, num_anchors, channels, height, width = logits.shape
    num_classes, kind = channels - 5, settings.box_iou
    places: dict[Place, tuple[float, float, float]] = {}  # IoU, target and weight
    box_sum = class_sum = 0.0
    for one in found:
        place = (one.image, one.anchor, one.row, one.column)
        here = (one.image, one.anchor, slice(None), one.row, one.column)
        box, held_box = (decoded(source[here][:4], anchors[one.anchor]) for source in (logits, held))
        alpha = aspect_weight(held_box, one.box) if kind == "ciou" else None
        weight = unknown.weight(one.target)
        box_sum += weight * (1 - iou(box, one.box, kind, alpha=alpha))
        ratio = settings.objectness_iou_ratio
        overlap = max(iou(held_box, one.box, kind), 0.0)
        if settings.collision == "last" or overlap >= places.get(place, (-1.0,))[0]:
            places[place] = overlap, (1 - ratio) + ratio * overlap, weight
        if num_classes > 1:
            for number in range(num_classes):
                smooth = settings.label_smoothing
                target = 1 - smooth / 2 if number == one.class_index else smooth / 2
                element = binary_cross_entropy(
                    logits[here][5 + number], target, settings.class_pos_weight, settings.focal_gamma
                )
                class_sum += weight * unknown.is_covered(one, number) * element
    objectness = 0.0
    ignored = unknown.ignored_places(anchors, (height, width), settings.ratio_limit)
    for place in np.ndindex(num_images, num_anchors, height, width):
        logit = logits[place[0], place[1], 4, place[2], place[3]]
        target, weight = 0.0, 0.0
        if place in places:
            _, target, weight = places[place]
        elif place not in ignored:
            weight = unknown.weight_of_background(place, (height, width))
        objectness += weight * binary_cross_entropy(logit, target, settings.objectness_pos_weight, settings.focal_gamma)
    count = max(len(found), 1)
    return (
        box_sum / count,
        objectness / (num_images * num_anchors * height * width),
        class_sum / (count * num_classes),
    )


EVERYTHING_KNOWN = Unknown()


def loss(
    logits: Sequence[np.ndarray],
    rows: np.ndarray,
    anchors_cells: np.ndarray,
    settings: Settings,
    strides: Sequence[int],
    balance: Sequence[float] | None = None,
    held: Sequence[np.ndarray] | None = None,
    unknown: Unknown = EVERYTHING_KNOWN,
) -> Terms:
    """The loss of a batch: logits L of (B, A, 5 + K, H, W), rows (T, 6), anchors_cells (L, A, 2)."""
    num_levels, num_images = len(logits), logits[0].shape[0]
    weights = list(first_balance(num_levels) if balance is None else balance)
    sums = [0.0, 0.0, 0.0]
    for level, level_logits in enumerate(logits):
        height, width = level_logits.shape[-2:]
        found = candidates(rows, anchors_cells[level], height, width, settings.ratio_limit)
        constants = level_logits if held is None else held[level]
        box, objectness, classification = level_terms(
            level_logits, constants, found, anchors_cells[level], settings, unknown
        )
        sums[0] += box
        sums[1] += objectness * weights[level]
        sums[2] += classification
        if settings.automatic_balance:
            # A level without a known place has a loss of 0, and its weight gains nothing.
            weights[level] = 0.9999 * weights[level] + (0.0001 / objectness if objectness else 0.0)
    if settings.automatic_balance:
        nearest = min(range(num_levels), key=lambda level: abs(strides[level] - 16))
        weights = [weight / weights[nearest] for weight in weights]
    gains = settings.box_gain, settings.objectness_gain, settings.class_gain
    box, objectness, classification = (gain * value for gain, value in zip(gains, sums, strict=True))
    return Terms((box + objectness + classification) * num_images, box, objectness, classification, weights)
