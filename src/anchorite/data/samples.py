"""Training samples: which images share a canvas, how each gets there, and where its boxes end up.

Every random number of a sample is a pure function of (seed, epoch, index), so any worker makes the same sample, and any
sample can be made again alone. A mosaic never exists at double size: its four tiles are placed around a point of a
virtual canvas twice as wide, the global map is composed with each tile's placement, and each tile is drawn once,
straight onto the final canvas.

Legend: N boxes of a sample, T of several samples, S side of the canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from anchorite.data.affine import Map, map_boxes, plan_warp, scaling, turning, visible_boxes
from anchorite.data.augment_config import AugmentConfig
from anchorite.data.batches import SampleKey
from anchorite.data.colour import Jitter
from anchorite.data.letterbox import letterbox_transform
from anchorite.data.plans import Images, SamplePlan, Tile, paint
from anchorite.data.records import Record, as_split
from anchorite.data.scratch import Scratch

MIXUP_CONCENTRATION = 32.0  # of the Beta distribution: blends stay near half and half
_NO_ROWS = np.zeros((0, 6), np.float32)


class Scene(NamedTuple):
    """The random choices of one canvas: records of its tiles (one, or four), where they meet, and the global map.

    centre: the mosaic's meeting point as fractions of S, 0.5..1.5. turn: rotation and shears in degrees. zoom: factor.
    shift: fractions of S. flips: horizontal, vertical.
    """

    indices: tuple[int, ...]
    centre: tuple[float, float]
    turn: tuple[float, float, float]
    zoom: float
    shift: tuple[float, float]
    flips: tuple[bool, bool]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample, independent of every other's."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


def draw_scene(rng: np.random.Generator, index: int, num_records: int, config: AugmentConfig, is_mosaic: bool) -> Scene:
    """The choices of one canvas; always takes the same number of random numbers."""
    uniform = rng.random(13).tolist()
    tiles = (index, *(int(number * num_records) for number in uniform[10:13])) if is_mosaic else (index,)
    rotation, shear_x, shear_y, zoom, shift_x, shift_y = (2.0 * number - 1.0 for number in uniform[2:8])
    return Scene(
        indices=tiles,
        centre=(0.5 + uniform[0], 0.5 + uniform[1]),
        turn=(rotation * config.rotation, shear_x * config.shear, shear_y * config.shear),
        zoom=1.0 + zoom * config.scale,
        shift=(shift_x * config.translation, shift_y * config.translation),
        flips=(uniform[8] < config.flip_horizontal, uniform[9] < config.flip_vertical),
    )


def global_map(scene: Scene, size: int) -> Map:
    """The map from the scene's own canvas (2S wide for a mosaic, else S) to the final one: zoom, turn, shift, flip."""
    middle = size if len(scene.indices) > 1 else size / 2
    # Each step applies to all before it; without a turn the matrix stays exactly diagonal, the fast case.
    step = scaling(scene.zoom, scene.zoom, -middle * scene.zoom, -middle * scene.zoom)
    if any(scene.turn):
        step = turning(*scene.turn) @ step
    step = scaling(1.0, 1.0, (0.5 + scene.shift[0]) * size, (0.5 + scene.shift[1]) * size) @ step
    flip_x, flip_y = scene.flips
    return scaling(-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, size * flip_x, size * flip_y) @ step


def tile_placements(scene: Scene, sizes_hw: Sequence[tuple[int, int]], size: int) -> list[Map]:
    """The maps of the tiles' stored pixels onto the scene's canvas: around its meeting point, or one in the middle.

    Each tile is scaled so that its longer side is `size`.
    """
    if len(sizes_hw) == 1:
        fit = letterbox_transform(sizes_hw[0], (size, size))
        return [scaling(*fit.scale_xy, *map(float, fit.pad_left_top))]
    centre_x, centre_y = scene.centre[0] * size, scene.centre[1] * size
    placements = []
    for place, (height, width) in enumerate(sizes_hw):  # upper left, upper right, lower left, lower right
        scale = size / max(height, width)
        left = centre_x if place % 2 else centre_x - width * scale
        top = centre_y if place >= 2 else centre_y - height * scale
        placements.append(scaling(scale, scale, left, top))
    return placements


class SizedImages(Images, Protocol):
    """Images of known (height, width) `sizes_hw`, each scaled from its record's size by `scale` along x and y."""

    sizes_hw: list[tuple[int, int]]

    def __len__(self) -> int: ...
    def scale(self, index: int) -> tuple[float, float]: ...


class TrainSamples(Dataset[tuple[Tensor, Tensor, int]]):
    """Augmented training samples by `SampleKey`, from the images of a store and the labels of its records.

    num_epochs: how long the run is, for the last `close_mosaic_epochs` of them to see neither mosaic nor mixup; None
    keeps both throughout. Ignored boxes are never targets.
    """

    def __init__(
        self,
        store: SizedImages,
        records: Sequence[Record],
        config: AugmentConfig,
        image_size: int,
        seed: int,
        num_epochs: int | None = None,
    ) -> None:
        assert len(store) == len(records), "one record an image"
        self.store, self.config, self.image_size, self.seed, self.num_epochs = (
            store,
            config,
            image_size,
            seed,
            num_epochs,
        )
        self._records = as_split(records)
        labels = self._records.labels()
        keep = ~labels.ignored
        owners = np.repeat(np.arange(len(records)), labels.counts)[keep]
        scales = np.array([store.scale(index) * 2 for index in range(len(records))]).reshape(-1, 4)
        # Flat arrays: workers touch no Python object a record, so forked pages stay shared.
        self._boxes_xyxy = labels.boxes_xyxy[keep] * scales[owners]  # in the stored images' pixels
        self._class_ids = labels.class_ids[keep].astype(np.float64)
        self._starts = np.cumsum([0, *np.bincount(owners, minlength=len(records))]).tolist()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: tuple[int, ...] | SampleKey) -> tuple[Tensor, Tensor, int]:
        """The image (3, S, S) uint8 RGB, its rows (N, 5) float32 (class, cx, cy, w, h in 0..1), its record's index."""
        key = SampleKey(*key)
        canvas = np.empty((self.side(key), self.side(key), 3), np.uint8)
        rows = self.draw(key, canvas)
        return torch.from_numpy(canvas).permute(2, 0, 1), torch.from_numpy(rows), key.record_index

    def side(self, key: SampleKey) -> int:
        """The canvas side S of a sample, in pixels."""
        return key.size or self.image_size

    def has_mosaic(self, epoch: int) -> bool:
        """Whether mosaic and mixup are still on in an epoch (from 0)."""
        return self.num_epochs is None or epoch < self.num_epochs - self.config.close_mosaic_epochs

    def place(self, index: int) -> Path:
        """The image of a record, for messages."""
        return self._records[index].path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The image of each record, for messages."""
        return tuple(self._records.paths())

    def draw_batch(
        self, keys: Sequence[SampleKey], pixels: NDArray[np.uint8], note: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """Draw each sample into its place of `pixels` (B, S, S, 3); the `rows` (T, 6) of their targets.

        `note` is called with the index of the record in hand.
        """
        plans, scratch = [], Scratch()
        for place, key in enumerate(keys):
            note(key.record_index)
            plans.append(self.plan(key))
            paint(plans[-1], self.store, pixels[place], scratch)
        return self.rows(plans)

    def draw(self, key: SampleKey, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Draw a sample over all of `canvas` (S, S, 3) uint8; its rows (N, 5) are class, cx, cy, w, h in 0..1."""
        plan = self.plan(key)
        paint(plan, self.store, canvas)
        return self.rows([plan])[:, 1:]

    def plan(self, key: SampleKey) -> SamplePlan:
        """What a sample will show, from its random numbers alone: no pixel is touched."""
        return self.plan_from(sample_rng(self.seed, key.epoch, key.record_index), key)

    def plan_from(self, rng: np.random.Generator, key: SampleKey) -> SamplePlan:
        """`plan` by other random numbers than the sample's own."""
        config, size = self.config, self.side(key)
        is_open = self.has_mosaic(key.epoch)
        mosaic, mixup, other_mosaic, other, *jitter = rng.random(7).tolist()
        layers, share = [self._tiles(rng, key.record_index, is_open and mosaic < config.mosaic, size)], 1.0
        if is_open and mixup < config.mixup:
            layers.append(self._tiles(rng, int(other * len(self)), other_mosaic < config.mosaic, size))
            share = float(rng.beta(MIXUP_CONCENTRATION, MIXUP_CONCENTRATION))
        hue, saturation, value = (2.0 * number - 1.0 for number in jitter)
        gains = Jitter(hue * config.hue, 1.0 + saturation * config.saturation, 1.0 + value * config.value)
        return SamplePlan(size, tuple(layers), share, gains)

    def _tiles(self, rng: np.random.Generator, index: int, is_mosaic: bool, size: int) -> tuple[Tile, ...]:
        """The tiles of one canvas that can be seen, in the order of drawing."""
        scene = draw_scene(rng, index, len(self), self.config, is_mosaic)
        whole = global_map(scene, size)
        sizes_hw = [self.store.sizes_hw[index] for index in scene.indices]
        warps = [
            plan_warp(whole @ placement, size_hw, size)
            for size_hw, placement in zip(sizes_hw, tile_placements(scene, sizes_hw, size), strict=True)
        ]
        return tuple(Tile(index, warp) for index, warp in zip(scene.indices, warps, strict=True) if warp is not None)

    def rows(self, plans: Sequence[SamplePlan]) -> NDArray[np.float32]:
        """The targets (T, 6) of plans of one size, each cut to what is seen of its tile: its plan, class, box in 0..1.

        Their order is that of the plans, layers, tiles and labels.
        """
        shown = [(place, tile) for place, plan in enumerate(plans) for layer in plan.layers for tile in layer]
        counts = [self._starts[tile.source + 1] - self._starts[tile.source] for _, tile in shown]
        if not sum(counts):
            return _NO_ROWS
        labels = np.concatenate(
            [np.arange(self._starts[tile.source], self._starts[tile.source + 1]) for _, tile in shown]
        )
        maps = np.stack([tile.warp.map for _, tile in shown]).repeat(counts, axis=0)
        seen_xyxy = np.array([tile.warp.seen for _, tile in shown], np.float64).repeat(counts, axis=0)
        places = np.array([place for place, _ in shown]).repeat(counts)
        config = self.config
        boxes = map_boxes(maps, self._boxes_xyxy[labels])
        cut_xyxy, keep = visible_boxes(boxes, seen_xyxy, config.min_visible, config.min_side_px)
        return _as_rows(places[keep], self._class_ids[labels[keep]], cut_xyxy[keep], plans[0].size)


def _as_rows(
    places: NDArray[np.int64], class_ids: NDArray[np.float64], boxes_xyxy: NDArray[np.float64], size: int
) -> NDArray[np.float32]:
    rows = np.empty((len(boxes_xyxy), 6), np.float32)
    rows[:, 0] = places
    rows[:, 1] = class_ids
    rows[:, 2:4] = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / (2 * size)
    rows[:, 4:6] = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / size
    return rows
