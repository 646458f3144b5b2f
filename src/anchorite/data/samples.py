"""Training samples: which images share a canvas, how each gets there, and where its boxes end up.

Every random number of a sample is a pure function of (seed, epoch, index), so any worker makes the same sample, and any
sample can be made again alone. The samples of a batch are planned together, as arrays: one by one, they would hold
Python's lock for longer than the step of a fast accelerator can spare. A mosaic never exists at double size: its four
tiles are placed around a point of a virtual canvas twice as wide, the global map is composed with each tile's
placement, and each tile is drawn once, straight onto the final canvas.

Legend: B samples, N canvases, M tiles of them, T boxes, R ignore regions of them, S side of the canvas in pixels, h, w
cells of a grid over it, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.augment import (
    AugmentConfig,
    Images,
    Map,
    SamplePlan,
    SamplePlans,
    Scratch,
    map_boxes,
    paint,
    plan_warp,
    scaling,
    seen_extents,
    turning,
    visible_boxes,
)
from anchorite.data.dataset import ONE_SOURCE, LabelSource, Split, as_split
from anchorite.data.random_numbers import rng_of, uniform_of

Report = Callable[[int], object]
MIXUP_CONCENTRATION = 32.0  # of the Beta distribution: blends stay near half and half
# Of the tiles of a mosaic, upper left, upper right, lower left, lower right: whether each lies, along x and y, before
# the point where they meet.
_BEFORE = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
_OF_CANVAS, _OF_SAMPLE = 13, 7  # random numbers of a canvas, and of a sample beside those of its canvases
# Side of a cell of the grid of background weights, in pixels: the finest usual stride, so that its anchor cells get the
# weight at their very middle, and those of coarser ones that of a place 4 px from it.
CELL_PX = 8


# A sample of a shard that a batch is made with: the index of its record, the number of its shard, its position there,
# and its row of the `ShardTable`.
PoolMember = tuple[int, ...]


class SampleKey(NamedTuple):
    """What names a sample: epoch, index of its (first) record, and the canvas side in pixels.

    pool: in a stream, what the tiles of all samples of the batch come from: its own in their order, then others.
    """

    epoch: int
    record_index: int
    size: int
    pool: tuple[PoolMember, ...] = ()


def draw_tiles(
    uniform: NDArray[np.float64],
    indices: NDArray[np.int64],
    is_mosaic: NDArray[np.bool_],
    sizes_wh: NDArray[np.int64],
    config: AugmentConfig,
    size: int,
) -> tuple[NDArray[np.int64], Map]:
    """Choose N canvases: the images on them (N, Q), and the map of each one's pixels onto its canvas (N, Q, 3, 3).

    uniform: (N, 13) random numbers in 0..1, all of which have their use whatever is switched on; indices: (N,), of
    first images; is_mosaic: (N,), whether there are three more of them, the other tiles are void; sizes_wh: (R, 2) of
    all images.
    """
    either_way = 2.0 * uniform[:, 2:8] - 1.0  # rotation, shear along x and y, zoom, shift along x and y
    # The global map, from the virtual canvas (2S wide for a mosaic, else S) to the final one. Each step applies to all
    # before it; without a turn the matrix stays exactly diagonal, the fast case.
    factors = 1.0 + either_way[:, 3] * config.scale
    shifts = -np.where(is_mosaic, size, size / 2) * factors
    whole = scaling(factors, factors, shifts, shifts)
    if config.rotation or config.shear:
        whole = turning(either_way[:, :3] * (config.rotation, config.shear, config.shear)) @ whole
    whole[:, :2, 2] += (0.5 + either_way[:, 4:] * config.translation) * size
    flips = uniform[:, 8:10] < (config.flip_horizontal, config.flip_vertical)
    whole[:, :2] *= np.where(flips, -1.0, 1.0)[..., None]
    whole[:, :2, 2] += size * flips

    others = (uniform[:, 10:] * len(sizes_wh)).astype(np.int64)
    sources = np.concatenate([indices[:, None], others], axis=1)[:, : 4 if is_mosaic.any() else 1]
    sides, is_mosaic = sizes_wh[sources], is_mosaic[:, None, None]
    scales = size / np.maximum(sides[..., :1], sides[..., 1:])
    shown = sides * scales
    fitted = np.minimum(size, np.maximum(1, np.rint(shown)))  # as `letterbox_transform` does it, for one image
    centres = (0.5 + uniform[:, None, :2]) * size  # where the four tiles meet
    lefts_tops = np.where(is_mosaic, centres - _BEFORE[: sources.shape[1]] * shown, (size - fitted) // 2)
    scales = np.where(is_mosaic, scales, fitted / sides)
    return sources, whole[:, None] @ scaling(scales[..., 0], scales[..., 1], lefts_tops[..., 0], lefts_tops[..., 1])


class SampleConfig(NamedTuple):
    """How training samples are made of images, on canvases of `image_size` pixels.

    num_epochs: how long the run is, for the last `close_mosaic_epochs` of them to see neither mosaic nor mixup; None
    keeps both throughout.
    """

    augment: AugmentConfig
    image_size: int
    seed: int
    num_epochs: int | None = None

    def has_mosaic(self, epoch: int) -> bool:
        """Whether mosaic and mixup are still on in an epoch (from 0)."""
        return self.num_epochs is None or epoch < self.num_epochs - self.augment.close_mosaic_epochs


class SampleLabels(NamedTuple):
    """The labels of the samples of a batch: what `Targets` and `LabelCoverage` are made of, which see.

    rows: (T, 6) float32; weights: (T,) float32; sources: (T,) int64; ignore_regions: (R, 5) float32; covered: (S, K)
    bool; background: (B, h, w) float32. All but the rows are None where `LabelParts` has none.
    """

    rows: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None
    sources: NDArray[np.int64] | None = None
    ignore_regions: NDArray[np.float32] | None = None
    covered: NDArray[np.bool_] | None = None
    background: NDArray[np.float32] | None = None


class LabelParts(NamedTuple):
    """What the labels of a split have beside their boxes: chosen once, so that every batch of a run has the same.

    weights: whether any object counts less than 1; regions: whether any box is ignored; background: whether the
    background counts less than 1 anywhere; sources: where labels come from; covered: (S, K) bool, the classes that each
    source covers, or None where each covers all.
    """

    weights: bool = False
    regions: bool = False
    background: bool = False
    sources: tuple[LabelSource, ...] = (ONE_SOURCE,)
    covered: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, split: Split) -> LabelParts:
        """Those of a split, as it tells them without reading its records."""
        sources = split.sources()
        num_classes = max((len(one.covered) for one in sources if one.covered is not None), default=0)
        covered = np.array([(True,) * num_classes if one.covered is None else one.covered for one in sources], bool)
        background = any(one.background_weight != 1 for one in sources)
        has_covered = None if covered.all() else covered
        return cls(split.num_weighted() > 0, split.num_ignored() > 0, background, sources, has_covered)

    def no_labels(self, size: int) -> SampleLabels:
        """The labels of no sample, for canvases of `size` pixels."""
        return SampleLabels(
            np.zeros((0, 6), np.float32),
            np.zeros(0, np.float32) if self.weights else None,
            None if self.covered is None else np.zeros(0, np.int64),
            np.zeros((0, 5), np.float32) if self.regions else None,
            self.covered,
            np.zeros((0, *cells_of(size)), np.float32) if self.background else None,
        )


def cells_of(size: int) -> tuple[int, int]:
    """Rows and columns of the grid of background weights over a canvas of `size` pixels."""
    return (-(-size // CELL_PX),) * 2


class TrainSamples:
    """Augmented training samples by `SampleKey`, from the images and labels of a store.

    Ignored boxes are no targets, but regions. parts: those of the split that the records are of, None: they are all of
    it. It can be pickled where workers are spawned.
    """

    def __init__(self, store: Images, config: SampleConfig, parts: LabelParts | None = None) -> None:
        self.store, self.config = store, config
        table = as_split(store.records).table()
        self.parts = LabelParts.of(table) if parts is None else parts
        owners, ignored = table.image_of_box(), table.boxes["ignored"]
        self._sizes_wh = np.array(store.sizes_hw, np.int64).reshape(-1, 2)[:, ::-1]
        scales = self._sizes_wh / np.stack([table.images["width"], table.images["height"]], axis=1)
        boxes_xyxy = table.boxes["xyxy"] * np.tile(scales, 2)[owners]  # in the stored images' pixels
        # Flat arrays: workers touch no Python object a record, so forked pages stay shared.
        self._boxes_xyxy, self._regions_xyxy = boxes_xyxy[~ignored], boxes_xyxy[ignored]
        self._starts, self._region_starts = (
            np.cumsum([0, *np.bincount(owners[chosen], minlength=len(self))]) for chosen in (~ignored, ignored)
        )
        self._class_ids = table.boxes["class_id"][~ignored].astype(np.float64)
        self._weights = table.boxes["weight"][~ignored]
        numbers = np.array([self.parts.sources.index(source) for source in table.label_sources], np.int64)
        self._source_ids = numbers[table.images["source_id"]]  # of each record
        counts = np.array([source.background_weight for source in table.label_sources], np.float32)
        self._background_weights = counts[table.images["source_id"]]

    def __len__(self) -> int:
        return len(self.store.sizes_hw)

    def image_path(self, index: int) -> Path:
        """The image of a record, for messages."""
        return self.store.records[index].path

    def draw_batch(
        self,
        keys: Sequence[SampleKey],
        pixels: NDArray[np.uint8],
        report: Report = lambda index: None,
        places: Sequence[int] | None = None,
    ) -> SampleLabels:
        """Draw samples of one side into `pixels` (B, S, S, 3); their `labels`.

        report: called with the index of each record before work on it begins. places: as of `plan`.
        """
        plans, scratch = self.plan(keys, places), Scratch()
        for plan, canvas, key in zip(plans, pixels, keys, strict=True):
            report(key.record_index)
            paint(plan, self.store, canvas, scratch)
        return self.labels(plans)

    def plan(self, keys: Sequence[SampleKey], places: Sequence[int] | None = None) -> SamplePlans:
        """What samples of one size will show, from their random numbers alone: no pixel is touched.

        places: those of their records in the store, where they are not the records' indices.
        """
        config, size, num_samples = self.config.augment, keys[0].size, len(keys)
        epochs, records = [key.epoch for key in keys], [key.record_index for key in keys]
        # Which numbers are whose does not depend on what is switched on.
        count = _OF_SAMPLE + (2 if config.mixup else 1) * _OF_CANVAS
        numbers = uniform_of(self.config.seed, epochs, records, count)
        is_open = np.array([self.config.has_mosaic(epoch) for epoch in epochs])
        has_mixup = is_open & (numbers[:, 1] < config.mixup)
        shares, num_layers = np.ones(num_samples), 2 if has_mixup.any() else 1
        for sample in np.flatnonzero(has_mixup).tolist():
            rng = rng_of(self.config.seed, epochs[sample], records[sample])
            rng.random(count)
            shares[sample] = rng.beta(MIXUP_CONCENTRATION, MIXUP_CONCENTRATION)
        jitters = (2.0 * numbers[:, 4:7] - 1.0) * (config.hue, config.saturation, config.value) + (0.0, 1.0, 1.0)

        seconds = (numbers[:, 3] * len(self)).astype(np.int64)
        indices = np.stack([records if places is None else places, seconds], axis=1)[:, :num_layers].ravel()
        is_mosaic = (is_open[:, None] & (numbers[:, 0:3:2] < config.mosaic))[:, :num_layers].ravel()
        uniform = numbers[:, _OF_SAMPLE : _OF_SAMPLE + num_layers * _OF_CANVAS].reshape(-1, _OF_CANVAS)
        sources, maps = draw_tiles(uniform, indices, is_mosaic, self._sizes_wh, config, size)
        sides = self._sizes_wh[sources]
        warp = plan_warp(maps.reshape(-1, 3, 3), sides.reshape(-1, 2), size)
        shown = (warp.seen[:, 0] < warp.seen[:, 2]) & (warp.seen[:, 1] < warp.seen[:, 3])
        shown = shown.reshape(num_samples, num_layers, -1)
        shown[:, :, 1:] &= is_mosaic.reshape(num_samples, num_layers, 1)
        shown[:, 1:] &= has_mixup[:, None, None]
        samples, layers, _ = np.nonzero(shown)
        tiles = np.flatnonzero(shown)
        tables = samples, layers, sources.ravel()[tiles], sides.reshape(-1, 2)[tiles], warp.at(tiles)
        return SamplePlans(size, 1 + has_mixup, shares, jitters, *tables)

    def labels(self, plans: SamplePlans) -> SampleLabels:
        """The labels of samples, each box cut to what is seen of its tile, in 0..1 of the canvas.

        Their order is that of the samples, layers, tiles and boxes. An ignore region stays however little of it is
        seen.
        """
        config, parts, size, records = self.config.augment, self.parts, plans.size, plans.sources
        maps, seen_xyxy = plans.warp.map, plans.warp.seen.astype(np.float64)
        found, tiles = _in_tiles(self._starts, records)
        boxes_xyxy = map_boxes(maps[tiles], self._boxes_xyxy[found])
        boxes_xyxy, keep = visible_boxes(boxes_xyxy, seen_xyxy[tiles], config.min_visible, config.min_side_px)
        found, tiles = found[keep], tiles[keep]
        rows = _normalised(boxes_xyxy[keep], size, plans.samples[tiles], self._class_ids[found])
        weights = self._weights[found] if parts.weights else None
        sources = None if parts.covered is None else self._source_ids[records[tiles]]
        regions = None
        if parts.regions:
            found, tiles = _in_tiles(self._region_starts, records)
            boxes_xyxy = seen_extents(maps[tiles], self._regions_xyxy[found], seen_xyxy[tiles])
            remain = np.flatnonzero((boxes_xyxy[:, :2] < boxes_xyxy[:, 2:]).all(axis=1))
            regions = _normalised(boxes_xyxy[remain], size, plans.samples[tiles[remain]])
        background = np.stack(list(map(self._background, plans))) if parts.background else None
        return SampleLabels(rows, weights, sources, regions, parts.covered, background)

    def _background(self, plan: SamplePlan) -> NDArray[np.float32]:
        """(h, w) how much the background counts at the middle of each cell of a grid over the canvas.

        That is what the tile that is seen there says, 1 where there is none, and the smaller number of two layers.
        """
        grids = np.ones((len(plan.layers), *cells_of(plan.size)), np.float32)
        pitch = plan.size / grids.shape[-1]
        middles = (np.arange(grids.shape[-1]) + 0.5) * pitch
        for grid, layer in zip(grids, plan.layers, strict=True):
            for record, warp in layer:
                left, top, right, bottom = (math.ceil(edge / pitch - 0.5) for edge in warp.seen.tolist())
                part, weight = grid[top:bottom, left:right], self._background_weights[record]
                if warp.is_straight:
                    part[:] = weight
                    continue
                # The middle of a cell is on the image where it lies within half of its sides from the middle of it.
                (x_of_x, x_of_y, shift_x), (y_of_x, y_of_y, shift_y) = cv2.invertAffineTransform(warp.map[:2]).tolist()
                half_height, half_width = (side / 2 for side in self.store.sizes_hw[record])
                across, down = middles[left:right], middles[top:bottom, None]
                is_over = np.abs(across * x_of_x + (down * x_of_y + (shift_x - half_width))) < half_width
                is_over &= np.abs(across * y_of_x + (down * y_of_y + (shift_y - half_height))) < half_height
                part[is_over] = weight
        return grids.min(axis=0)


def _in_tiles(starts: NDArray[np.int64], records: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The boxes (T,) of the record of each tile, one behind the other, and (T,) the tile of each.

    starts: where the boxes of each record begin.
    """
    counts = starts[records + 1] - starts[records]
    tiles = np.repeat(np.arange(len(records)), counts)
    return np.arange(len(tiles)) + (starts[records + 1] - np.cumsum(counts))[tiles], tiles


def _normalised(boxes_xyxy: NDArray[np.float64], size: int, *columns: NDArray[np.generic]) -> NDArray[np.float32]:
    """Rows of these columns and the boxes (N, 4) as cx, cy, w, h in 0..1 of a canvas of `size` pixels."""
    lows, highs = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    parts = (*(column[:, None] for column in columns), (lows + highs) / (2 * size), (highs - lows) / size)
    return np.concatenate(parts, axis=1, dtype=np.float32)
