"""How well anchors fit the data, and fitting them: best possible recall, k-means, genetic refinement.

Legend: N boxes, L levels, A anchors per level, M = L*A anchors in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from anchorite.anchors.anchor_set import AnchorSet
from anchorite.errors import InputError

Sides = NDArray[np.float64]

_KMEANS_ROUNDS = 30


def best_possible_recall(wh_px: Float64[Sides, "N 2"], anchors: AnchorSet, ratio_limit: float = 4.0) -> float:
    """Share of boxes (N, 2) that at least one anchor of any level matches by the ratio test; 1 for no boxes.

    The ratio test is that of docs/objective.md, section 3; a box that no anchor matches is never learned.
    """
    if len(wh_px) == 0:
        return 1.0
    return float((_agreement(wh_px, _flat(anchors)).max(axis=1) > 1 / ratio_limit).mean())


def mean_agreement(wh_px: Float64[Sides, "N 2"], anchors: AnchorSet, ratio_limit: float = 4.0) -> float:
    """Mean over boxes of the best anchor's agreement min(r, 1/r) in 0..1, counted as 0 where none matches."""
    return _fitness(wh_px, _flat(anchors), ratio_limit)


def fit_anchors(
    wh_px: Float64[Sides, "N 2"],
    strides: Sequence[int],
    num_anchors: int = 3,
    ratio_limit: float = 4.0,
    generations: int = 1000,
    seed: int = 0,
) -> AnchorSet:
    """Anchors fitted to boxes (N, 2) in pixels of the network input: k-means, then genetic refinement.

    Anchors are sorted by area and assigned to the levels from fine to coarse. The same input and seed give the same
    anchors. Raises InputError when there are fewer distinct boxes than anchors.
    """
    wanted = len(strides) * num_anchors
    boxes = wh_px[(wh_px >= 2).all(axis=1)]
    distinct = len(np.unique(boxes, axis=0))
    if distinct < wanted:
        raise InputError(f"anchors: {wanted} anchors cannot be fitted to {distinct} distinct boxes of 2 px and more")
    generator = np.random.default_rng(seed)
    found = _refine(boxes, _kmeans(boxes, wanted, generator), ratio_limit, generations, generator)
    by_area = found[np.argsort(found.prod(axis=1), kind="stable")].round(1)
    rows = by_area.reshape(len(strides), 2 * num_anchors).tolist()
    return AnchorSet.from_rows(rows, strides)


def _flat(anchors: AnchorSet) -> Sides:
    return np.array(anchors.sizes_px, dtype=np.float64).reshape(-1, 2)


def _agreement(wh_px: Sides, anchors_px: Sides) -> Sides:
    """(N, M) min over both axes of min(r, 1/r), r = side / anchor: 1 for an equal shape, 1/4 at a ratio of 4."""
    ratio = wh_px[:, None, :] / anchors_px[None, :, :]
    agreement: Sides = np.minimum(ratio, 1 / np.maximum(ratio, 1e-12)).min(axis=2)
    return agreement


def _fitness(wh_px: Sides, anchors_px: Sides, ratio_limit: float) -> float:
    best = _agreement(wh_px, anchors_px).max(axis=1, initial=0)
    return float(np.where(best > 1 / ratio_limit, best, 0).mean()) if len(best) else 1.0


def _kmeans(boxes: Sides, wanted: int, generator: np.random.Generator) -> Sides:
    """Lloyd's algorithm in log sides, where equal distances are equal ratios; k-means++ start."""
    points = np.log(boxes)
    centres = points[generator.integers(len(points))][None]
    while len(centres) < wanted:
        nearest = ((points[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)
        centres = np.concatenate([centres, points[generator.choice(len(points), p=nearest / nearest.sum())][None]])
    for _ in range(_KMEANS_ROUNDS):
        owner = ((points[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        moved = [points[owner == k].mean(axis=0) if (owner == k).any() else centres[k] for k in range(wanted)]
        centres = np.array(moved)
    sides: Sides = np.exp(centres)
    return sides


def _refine(
    boxes: Sides, anchors_px: Sides, ratio_limit: float, generations: int, generator: np.random.Generator
) -> Sides:
    """Keep random multiplicative changes that raise the fitness."""
    best, best_fitness = anchors_px, _fitness(boxes, anchors_px, ratio_limit)
    for _ in range(generations):
        touched = generator.random(best.shape) < 0.5
        change = np.exp(generator.normal(0, 0.1, best.shape) * touched)
        candidate = np.maximum(best * change, 2.0)
        fitness = _fitness(boxes, candidate, ratio_limit)
        if fitness > best_fitness:
            best, best_fitness = candidate, fitness
    return best
