"""Boxes against anchors: which no anchor matches, how far off they are, and what would match them.

The ratio test is the loss's own (`anchorite.loss.assign`); sides are in pixels of the letterboxed network input.
Legend: N boxes, L levels, M anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.anchors import AnchorSet, best_possible_recall, fit_anchors
from anchorite.boxes import Targets
from anchorite.data import DatasetIndex, Record, training_sides
from anchorite.errors import InputError
from anchorite.inspect.boxes import box_finding
from anchorite.inspect.findings import Finding
from anchorite.loss import assign

RATIO_LIMIT = 4.0
_LARGEST_SIZE = 4096  # px; a larger network input is no advice
_BLOCK = 20_000
_SMALL_PX = 2.0


@dataclass(frozen=True, slots=True)
class AnchorFit:
    """How the anchors fit the training boxes at an image size.

    recall: share of boxes that an anchor matches; level_recalls: the same for each level alone; fitted_recall: with
    anchors fitted to the data, None where there are too few distinct boxes. quantiles: 5, 50 and 95 % of the boxes'
    widths and of their heights, in pixels of the network input; None without boxes.
    """

    image_size: int
    num_boxes: int
    recall: float
    strides: tuple[int, ...]
    level_recalls: tuple[float, ...]
    fitted_recall: float | None
    width_quantiles: tuple[float, ...] | None
    height_quantiles: tuple[float, ...] | None


def network_sides(record: Record, image_size: int) -> NDArray[np.float64]:
    """(N, 2) widths and heights of a record's boxes in pixels of the network input."""
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    return np.asarray(sides * (image_size / max(record.width, record.height)), np.float64)


def levels_that_match(wh_px: NDArray[np.float64], anchors: AnchorSet, image_size: int) -> NDArray[np.bool_]:
    """(L, N) bool: on which levels an anchor answers for each of N boxes (N, 2), as the loss assigns them."""
    matched = np.zeros((anchors.num_levels, len(wh_px)), np.bool_)
    grid_sizes = [(image_size // stride, image_size // stride) for stride in anchors.strides]
    for start in range(0, len(wh_px), _BLOCK):
        sides = torch.from_numpy(wh_px[start : start + _BLOCK] / image_size)
        rows = torch.cat([torch.zeros(len(sides), 2), torch.full((len(sides), 2), 0.5), sides], dim=1).double()
        for level, candidates in enumerate(assign(Targets.from_rows(rows), anchors, grid_sizes, RATIO_LIMIT)):
            matched[level, start + candidates.target.unique().numpy()] = True
    return matched


def anchor_fit(records: Sequence[Record], anchors: AnchorSet, image_size: int) -> AnchorFit:
    """The fit of anchors to all training boxes of some records."""
    wh_px = training_sides(records, image_size)
    matched = levels_that_match(wh_px, anchors, image_size)
    quantiles = np.quantile(wh_px, (0.05, 0.5, 0.95), axis=0) if len(wh_px) else None
    return AnchorFit(
        image_size=image_size,
        num_boxes=len(wh_px),
        recall=_share(_on_any_level(matched)),
        strides=anchors.strides,
        level_recalls=tuple(_share(level) for level in matched),
        fitted_recall=_fitted_recall(wh_px, anchors),
        width_quantiles=None if quantiles is None else tuple(quantiles[:, 0].tolist()),
        height_quantiles=None if quantiles is None else tuple(quantiles[:, 1].tolist()),
    )


def _on_any_level(matched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(matched.any(axis=0), np.bool_)


def _share(matched: NDArray[np.bool_]) -> float:
    return float(matched.mean()) if len(matched) else 1.0


def _fitted_recall(wh_px: NDArray[np.float64], anchors: AnchorSet) -> float | None:
    """Best possible recall with fitted anchors, of at most 20 000 boxes, where the given ones miss any."""
    if best_possible_recall(wh_px, anchors, RATIO_LIMIT) == 1:
        return 1.0
    drawn = wh_px[np.random.default_rng(0).permutation(len(wh_px))[:_BLOCK]]
    try:
        fitted = fit_anchors(drawn, anchors.strides, anchors.num_anchors, RATIO_LIMIT)
    except InputError:
        return None
    return best_possible_recall(wh_px, fitted, RATIO_LIMIT)


def anchor_findings(dataset: DatasetIndex, anchors: AnchorSet, image_size: int) -> Iterator[Finding]:
    """Boxes that no anchor matches, and those thinner than 2 px of the network input."""
    for split, records in dataset.splits.items():
        sides = [network_sides(record, image_size) for record in records]
        matched = _on_any_level(levels_that_match(np.concatenate([np.zeros((0, 2)), *sides]), anchors, image_size))
        start = 0
        for record, wh_px in zip(records, sides, strict=True):
            is_matched, start = matched[start : start + len(wh_px)], start + len(wh_px)
            for index in np.flatnonzero(~record.ignored & (~is_matched | (wh_px.min(axis=1) < _SMALL_PX))):
                box = box_finding(dataset, split, record, int(index))
                width, height = wh_px[index].tolist()
                size = f"{box.class_name} of {width:.3g} x {height:.3g} px at {image_size} px"
                if min(width, height) < _SMALL_PX:
                    yield replace(box, kind="sub-pixel-box" if min(width, height) < 1 else "small-box", detail=size)
                if not is_matched[index]:
                    advice = what_would_match(width, height, anchors, image_size)
                    detail = f"{size} is {how_far_off(width, height, anchors)}; {advice}"
                    yield replace(box, kind="unmatched-box", detail=detail)


def how_far_off(width: float, height: float, anchors: AnchorSet) -> str:
    """In words, how a box that no anchor matches differs from the nearest anchor."""
    pairs = [pair for level in anchors.sizes_px for pair in level]
    nearest = min(pairs, key=lambda pair: max(_ratio(width, pair[0]), _ratio(height, pair[1])))
    by_width, by_height = _ratio(width, nearest[0]), _ratio(height, nearest[1])
    if by_width >= by_height:
        word = "wider" if width > nearest[0] else "narrower"
    else:
        word = "taller" if height > nearest[1] else "flatter"
    return f"{max(by_width, by_height):.1f} x {word} than the nearest anchor, {nearest[0]:g} x {nearest[1]:g}"


def what_would_match(width: float, height: float, anchors: AnchorSet, image_size: int) -> str:
    """In words, the nearest image sizes at which an anchor matches a box of these sides at `image_size`."""
    stride = anchors.strides[-1]
    larger: list[int] = []
    smaller: list[int] = []
    for anchor_width, anchor_height in (pair for level in anchors.sizes_px for pair in level):
        low = image_size * max(anchor_width / width, anchor_height / height) / RATIO_LIMIT
        high = image_size * min(anchor_width / width, anchor_height / height) * RATIO_LIMIT
        first, last = (math.floor(low / stride) + 1) * stride, (math.ceil(high / stride) - 1) * stride
        if first > last:
            continue
        if first > image_size:
            larger.append(first)
        if stride <= last < image_size:
            smaller.append(last)
    sizes = [f"{min(larger)} or more"] if larger and min(larger) <= _LARGEST_SIZE else []
    sizes += [f"{max(smaller)} or less"] if smaller else []
    fitted = "anchors fitted to the data"
    if not sizes:
        return f"only {fitted} can match it"
    return f"an image size of {' or '.join(sizes)}, or {fitted}, would match it"


def _ratio(side: float, anchor_side: float) -> float:
    return max(side / anchor_side, anchor_side / side)
