"""Training samples: which images share a canvas, how each gets there, and where its boxes end up.

Every random number of a sample is a pure function of (seed, epoch, index), so any worker makes the same sample, and any
sample can be made again alone. A mosaic never exists at double size: its four tiles are placed around a point of a
virtual canvas twice as wide, the global map is composed with each tile's placement, and each tile is drawn once,
straight onto the final canvas.

Legend: B samples, N boxes of a sample, T boxes of several samples, S side of the canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data.augment import (
    AugmentConfig,
    Images,
    Jitter,
    Map,
    SamplePlan,
    Scratch,
    Tile,
    map_boxes,
    paint,
    plan_warp,
    scaling,
    turning,
    visible_boxes,
)
from anchorite.data.dataset import as_split
from anchorite.data.images import letterbox_transform

Report = Callable[[int], object]
MIXUP_CONCENTRATION = 32.0  # of the Beta distribution: blends stay near half and half


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


def rng_of(seed: int, epoch: int, *index: int, stream: tuple[int, ...] = ()) -> np.random.Generator:
    """The random numbers of one sample of an epoch, or of one purpose (stream) of the epoch itself.

    All are independent of each other.
    """
    # Samples have no spawn_key: no stream is one of theirs.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, *index), spawn_key=stream)))


def draw_tiles(
    rng: np.random.Generator,
    index: int,
    sizes_hw: Sequence[tuple[int, int]],
    config: AugmentConfig,
    is_mosaic: bool,
    size: int,
) -> list[tuple[int, Map]]:
    """Choose one canvas: the images on it, `index` first, and the map of each one's pixels onto the canvas.

    sizes_hw: of all images. The same number of random numbers is taken whatever is switched on.
    """
    uniform = rng.random(13).tolist()
    rotation, shear_x, shear_y, zoom, shift_x, shift_y = (2.0 * number - 1.0 for number in uniform[2:8])
    indices = (index, *(int(number * len(sizes_hw)) for number in uniform[10:13])) if is_mosaic else (index,)
    # The global map, from the virtual canvas (2S wide for a mosaic, else S) to the final one. Each step applies to all
    # before it; without a turn the matrix stays exactly diagonal, the fast case.
    middle, factor = size if is_mosaic else size / 2, 1.0 + zoom * config.scale
    whole = scaling(factor, factor, -middle * factor, -middle * factor)
    angles = rotation * config.rotation, shear_x * config.shear, shear_y * config.shear
    if any(angles):
        whole = turning(*angles) @ whole
    whole = scaling(1.0, 1.0, *((0.5 + shift * config.translation) * size for shift in (shift_x, shift_y))) @ whole
    flip_x, flip_y = uniform[8] < config.flip_horizontal, uniform[9] < config.flip_vertical
    whole = scaling(-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, size * flip_x, size * flip_y) @ whole
    if not is_mosaic:
        fit = letterbox_transform(sizes_hw[index], (size, size))
        return [(index, whole @ scaling(*fit.scale_xy, *map(float, fit.pad_left_top)))]
    centre_x, centre_y = (0.5 + uniform[0]) * size, (0.5 + uniform[1]) * size  # where the four tiles meet
    tiles = []
    for number, tile in enumerate(indices):  # upper left, upper right, lower left, lower right
        height, width = sizes_hw[tile]
        scale = size / max(height, width)
        left = centre_x if number % 2 else centre_x - width * scale
        top = centre_y if number >= 2 else centre_y - height * scale
        tiles.append((tile, whole @ scaling(scale, scale, left, top)))
    return tiles


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


class TrainSamples:
    """Augmented training samples by `SampleKey`, from the images and labels of a store. Ignored boxes are no targets.

    It can be pickled where workers are spawned.
    """

    def __init__(self, store: Images, config: SampleConfig) -> None:
        self.store, self.config = store, config
        table = as_split(store.records).table()
        boxes = table.boxes[~table.boxes["ignored"]]
        owners = table.image_of_box()[~table.boxes["ignored"]]
        sizes_wh = np.array(store.sizes_hw, np.int64).reshape(-1, 2)[:, ::-1]
        scales = sizes_wh / np.stack([table.images["width"], table.images["height"]], axis=1)
        # Flat arrays: workers touch no Python object a record, so forked pages stay shared.
        self._boxes_xyxy = boxes["xyxy"] * np.tile(scales, 2)[owners]  # in the stored images' pixels
        self._class_ids = boxes["class_id"].astype(np.float64)
        self._starts = np.cumsum([0, *np.bincount(owners, minlength=len(self))])

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
    ) -> NDArray[np.float32]:
        """Draw samples of one side into `pixels` (B, S, S, 3); the `rows` (T, 6) of their targets.

        report: called with the index of each record before work on it begins. places: as `place` of `plan`, of each.
        """
        plans, scratch = [], Scratch()
        for canvas, key, place in zip(pixels, keys, places or [key.record_index for key in keys], strict=True):
            report(key.record_index)
            plans.append(self.plan(key, place))
            paint(plans[-1], self.store, canvas, scratch)
        return self.rows(plans)

    def plan(self, key: SampleKey, place: int | None = None) -> SamplePlan:
        """What a sample will show, from its random numbers alone: no pixel is touched.

        place: that of its record in the store, where it is not the record's index.
        """
        rng, first = rng_of(self.config.seed, key.epoch, key.record_index), key.record_index if place is None else place
        config, size, sizes_hw = self.config.augment, key.size, self.store.sizes_hw

        def layer(index: int, is_mosaic: bool) -> tuple[Tile, ...]:
            """The tiles of one canvas that can be seen, in the order of drawing."""
            tiles = draw_tiles(rng, index, sizes_hw, config, is_mosaic, size)
            warps = [(source, plan_warp(step, sizes_hw[source], size)) for source, step in tiles]
            return tuple(Tile(source, warp) for source, warp in warps if warp is not None)

        is_open = self.config.has_mosaic(key.epoch)
        mosaic, mixup, other_mosaic, other, *jitter = rng.random(7).tolist()
        layers, share = [layer(first, is_open and mosaic < config.mosaic)], 1.0
        if is_open and mixup < config.mixup:
            layers.append(layer(int(other * len(self)), other_mosaic < config.mosaic))
            share = float(rng.beta(MIXUP_CONCENTRATION, MIXUP_CONCENTRATION))
        hue, saturation, value = (2.0 * number - 1.0 for number in jitter)
        gains = Jitter(hue * config.hue, 1.0 + saturation * config.saturation, 1.0 + value * config.value)
        return SamplePlan(size, tuple(layers), share, gains)

    def rows(self, plans: Sequence[SamplePlan]) -> NDArray[np.float32]:
        """The targets (T, 6) of plans of one size, each cut to what is seen of its tile: its plan, class, box in 0..1.

        Their order is that of the plans, layers, tiles and labels.
        """
        shown = [(number, tile) for number, plan in enumerate(plans) for layer in plan.layers for tile in layer]
        spans = [np.arange(*self._starts[tile.source : tile.source + 2]) for _, tile in shown]
        counts = list(map(len, spans))
        if not sum(counts):
            return np.zeros((0, 6), np.float32)
        labels = np.concatenate(spans)
        maps = np.stack([tile.warp.map for _, tile in shown]).repeat(counts, axis=0)
        seen_xyxy = np.array([tile.warp.seen for _, tile in shown], np.float64).repeat(counts, axis=0)
        numbers = np.array([number for number, _ in shown]).repeat(counts)
        boxes_xyxy = map_boxes(maps, self._boxes_xyxy[labels])
        config, size = self.config.augment, plans[0].size
        boxes_xyxy, keep = visible_boxes(boxes_xyxy, seen_xyxy, config.min_visible, config.min_side_px)
        lows, highs = boxes_xyxy[keep, :2], boxes_xyxy[keep, 2:]
        columns = (
            numbers[keep, None],
            self._class_ids[labels[keep], None],
            (lows + highs) / (2 * size),
            (highs - lows) / size,
        )
        return np.concatenate(columns, axis=1, dtype=np.float32)
