"""Generated cases for the tests of the heart: boxes where assignments decide, logits, options.

Legend: B images, L levels, A anchors, K classes, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import LabelCoverage, Targets
from anchorite.loss import DetectionLoss, LossConfig, LossTerms
from tests import oracle


@dataclass(frozen=True)
class Case:
    """One batch with its anchors and options; everything float64."""

    anchors: AnchorSet
    grids: tuple[tuple[int, int], ...]
    num_images: int
    num_classes: int
    rows: np.ndarray
    logits: tuple[np.ndarray, ...]
    settings: oracle.Settings = field(default_factory=oracle.Settings)
    unknown: oracle.Unknown = oracle.EVERYTHING_KNOWN

    @property
    def anchors_cells(self) -> np.ndarray:
        strides = np.array(self.anchors.strides, dtype=np.float64)
        return np.array(self.anchors.sizes_px, dtype=np.float64) / strides[:, None, None]

    def with_settings(self, **options: object) -> Case:
        return replace(self, settings=replace(self.settings, **options))

    def targets(self, dtype: torch.dtype = torch.float64, spare: int | None = None) -> Targets:
        """Compact targets, or padded ones with `spare` unused rows."""
        unknown = self.unknown
        weights = None if unknown.weights is None else torch.from_numpy(unknown.weights).to(dtype)
        sources = None if unknown.sources is None else torch.from_numpy(unknown.sources)
        targets = Targets.from_rows(torch.from_numpy(self.rows).to(dtype), weights, sources=sources)
        return targets if spare is None else targets.padded(len(targets) + spare)

    def coverage(self, dtype: torch.dtype = torch.float64, spare: int | None = None) -> LabelCoverage | None:
        """What the labels do not know, with `spare` unused regions."""
        unknown = self.unknown
        arrays = unknown.regions, unknown.covered, unknown.background
        if all(array is None for array in arrays):
            return None
        tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
        regions, covered, background = tensors
        regions = None if regions is None else regions.to(dtype)
        coverage = LabelCoverage(regions, covered, None if background is None else background.to(dtype))
        return coverage if spare is None or regions is None else coverage.padded(len(regions) + spare)

    def leaves(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        return [torch.from_numpy(level).to(dtype).clone().requires_grad_() for level in self.logits]

    def criterion(self, **extra: object) -> DetectionLoss:
        return DetectionLoss(self.anchors, self.num_classes, LossConfig(**{**asdict(self.settings), **extra}))

    def package_terms(self, spare: int | None = None) -> LossTerms:
        return self.criterion()(self.leaves(), self.targets(spare=spare), self.coverage(spare=spare))

    def oracle_terms(
        self, balance: Sequence[float] | None = None, logits: Sequence[np.ndarray] | None = None
    ) -> oracle.Terms:
        """The terms by the slow loop; logits: others than its own, at which what is constant stays."""
        return oracle.loss(
            self.logits if logits is None else logits,
            self.rows,
            self.anchors_cells,
            self.settings,
            self.anchors.strides,
            balance,
            held=self.logits,
            unknown=self.unknown,
        )


def random_anchors(rng: np.random.Generator, num_levels: int, num_anchors: int) -> AnchorSet:
    first = int(rng.choice([4, 8, 16]))
    strides = tuple(first * 2**level for level in range(num_levels))
    if rng.random() < 0.5:
        cells = rng.choice([0.5, 1.0, 1.25, 2.0, 3.0], (num_levels, num_anchors, 2))
    else:
        cells = np.exp(rng.uniform(-1, 1.5, (num_levels, num_anchors, 2)))
    sizes = cells * np.array(strides, dtype=np.float64)[:, None, None]
    return AnchorSet(tuple(tuple((float(w), float(h)) for w, h in row) for row in sizes), strides)


def random_centre(rng: np.random.Generator, sizes: list[int]) -> float:
    """A centre coordinate, often where a decision falls: borders and middles of cells, edges, just beside them."""
    cells = int(rng.choice(sizes))
    mode = rng.integers(7)
    if mode <= 2:
        return float(rng.uniform(0, 1))
    if mode == 3:
        return float(rng.integers(0, cells + 1) / cells)
    if mode == 4:
        return float((rng.integers(0, cells) + 0.5) / cells)
    if mode == 5:
        border = rng.integers(0, 2 * cells + 1) / (2 * cells)
        return float(np.nextafter(border, rng.choice([-1.0, 2.0])))
    return float(rng.choice([0.0, 1.0, -0.1, 1.1, -2.0, 3.0, 1e-9]))


def random_side(rng: np.random.Generator, anchors_px: np.ndarray, input_px: int) -> float:
    """A normalised side: near an anchor, exactly at the ratio limit, or zero, tiny, oversize."""
    anchor = float(rng.choice(anchors_px))
    mode = rng.integers(8)
    if mode <= 5:
        return anchor / input_px * float(np.exp(rng.uniform(-1.6, 1.6)))
    if mode == 6:
        return anchor / input_px * float(rng.choice([4.0, 0.25, 1.0, 2.0]))
    return float(rng.choice([0.0, 1e-12, 1e-3, 1.0, 3.0]))


def random_rows(
    rng: np.random.Generator, anchors: AnchorSet, grids: tuple[tuple[int, int], ...], num_images: int, num_classes: int
) -> np.ndarray:
    """(T, 6) targets: unsorted, with images left empty, with duplicates."""
    count = int(rng.choice([0, 1, 2, 3, 5, 8]))
    input_h, input_w = (grids[0][axis] * anchors.strides[0] for axis in (0, 1))
    sizes = np.array(anchors.sizes_px)
    rows = np.zeros((count, 6))
    for row in rows:
        row[0], row[1] = rng.integers(num_images), rng.integers(num_classes)
        row[2] = random_centre(rng, [width for _, width in grids])
        row[3] = random_centre(rng, [height for height, _ in grids])
        row[4] = random_side(rng, sizes[..., 0].ravel(), input_w)
        row[5] = random_side(rng, sizes[..., 1].ravel(), input_h)
    if count > 2 and rng.random() < 0.5:
        rows[-1, 2:] = rows[0, 2:]
        rows[-1, 0] = rows[0, 0]
    return rows


def random_settings(rng: np.random.Generator) -> oracle.Settings:
    return oracle.Settings(
        box_gain=float(rng.uniform(0.01, 2)),
        objectness_gain=float(rng.uniform(0.1, 2)),
        class_gain=float(rng.uniform(0.1, 2)),
        ratio_limit=float(rng.choice([4.0, 4.0, 2.0, 8.0, 1.05])),
        label_smoothing=float(rng.choice([0.0, 0.0, 0.1])),
        focal_gamma=float(rng.choice([0.0, 0.0, 1.5, 0.5])),
        class_pos_weight=float(rng.choice([1.0, 0.5])),
        objectness_pos_weight=float(rng.choice([1.0, 2.0])),
        objectness_iou_ratio=float(rng.choice([1.0, 1.0, 0.5, 0.0])),
        automatic_balance=bool(rng.random() < 0.25),
        collision=str(rng.choice(["last", "last", "best"])),
        box_iou=str(rng.choice(["ciou", "ciou", "ciou", "diou", "giou", "iou"])),
    )


def random_case(seed: int) -> Case:
    """A small case that is a pure function of its seed."""
    rng = np.random.default_rng(seed)
    num_levels, num_anchors, num_classes = (int(rng.integers(1, high + 1)) for high in (5, 4, 5))
    num_images = int(rng.integers(1, 4))
    anchors = random_anchors(rng, num_levels, num_anchors)
    height, width = (int(value) for value in rng.integers(1, 8, 2))
    grids = tuple((max(height >> level, 1), max(width >> level, 1)) for level in range(num_levels))
    settings = random_settings(rng)
    # Automatic balance divides by a level's loss: of a few saturated places that would be a few roundings, no value.
    scale = float(rng.choice([0.5, 2.0] if settings.automatic_balance else [0.5, 2.0, 8.0]))
    logits = tuple(scale * rng.standard_normal((num_images, num_anchors, 5 + num_classes, h, w)) for h, w in grids)
    rows = random_rows(rng, anchors, grids, num_images, num_classes)
    return Case(anchors, grids, num_images, num_classes, rows, logits, settings)


def partly_unknown_case(seed: int) -> Case:
    """`random_case` with some, often all, of what labels may not know."""
    case, rng = random_case(seed), np.random.default_rng([seed, 6])
    num_objects, num_images, num_classes = len(case.rows), case.num_images, case.num_classes
    weights = rng.choice([0.0, 0.25, 1.0, 0.7], num_objects)
    covered = rng.random((3, num_classes)) < 0.6
    sources = rng.integers(3, size=num_objects)
    if rng.random() < 0.5:  # one row an image
        covered, sources = rng.random((num_images, num_classes)) < 0.6, None
    of_objects = case.rows[:, 0].astype(int) if sources is None else sources
    covered[of_objects, case.rows[:, 1].astype(int)] = True
    regions = random_rows(rng, case.anchors, case.grids, num_images, num_classes)[:, [0, 2, 3, 4, 5]]
    if num_objects:
        regions = np.concatenate([regions, case.rows[:1, [0, 2, 3, 4, 5]]])  # an object's own box
    if rng.random() < 0.1:
        regions = np.concatenate([regions, [[0, 0.5, 0.5, 1.0, 1.0]]])
    sides = () if rng.random() < 0.5 else tuple(rng.integers(1, 9, 2).tolist())
    background = rng.choice([0.0, 0.5, 1.0], (num_images, *sides))
    is_given = rng.random(4) < 0.7
    parts = {"weights": weights, "regions": regions, "covered": covered, "background": background}
    given = {name: array for (name, array), here in zip(parts.items(), is_given, strict=True) if here}
    if "covered" in given and sources is not None:
        given["sources"] = sources
    return replace(case, unknown=oracle.Unknown(**given))
