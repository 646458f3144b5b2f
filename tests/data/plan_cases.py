"""Plans of samples, one tile at a time: a slow oracle, and plans made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anchorite.data.augment import AugmentConfig, Jitter, Map, SamplePlan, SamplePlans, Tile, Warp, plan_warp, scaling
from anchorite.data.dataset import Record
from anchorite.data.images import fitted_size, letterbox_transform
from anchorite.data.random_numbers import rng_of
from anchorite.data.samples import SampleConfig, SampleKey, TrainSamples


class Sizes:
    """A store that knows the sizes of images and has none."""

    def __init__(self, sizes_hw: Sequence[tuple[int, int]], stored_sizes_hw: Sequence[tuple[int, int]]) -> None:
        nothing = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), ()
        self.records = [Record(Path(f"{n}.png"), width, height, *nothing) for n, (height, width) in enumerate(sizes_hw)]
        self.sizes_hw = list(stored_sizes_hw)

    def image(self, index: int) -> np.ndarray:
        raise AssertionError(f"planning asked for image {index}")


def random_samples(rng: np.random.Generator) -> tuple[TrainSamples, int]:
    """Samples of images of any sizes, each augmentation off, on or as it comes, and the side of a canvas."""
    side = int(rng.choice([32, 97, 320, 333]))
    sizes_hw = [tuple(rng.integers(1, 900, 2).tolist()) for _ in range(rng.integers(1, 30))]
    stored = [fitted_size(size, int(rng.choice([side, 40, 1000]))) for size in sizes_hw]
    names = (
        "mosaic",
        "mixup",
        "flip_horizontal",
        "flip_vertical",
        "translation",
        "scale",
        "hue",
        "saturation",
        "value",
    )
    highest = dict.fromkeys(names, 1.0) | {
        "translation": 0.9,
        "scale": 0.9,
        "hue": 0.5,
        "saturation": 0.9,
        "value": 0.9,
    }
    if rng.random() < 0.5:
        highest |= {"rotation": 180.0, "shear": 40.0}
    options: dict[str, Any] = {
        name: high * float(rng.choice([0.0, 1.0, rng.random()])) for name, high in highest.items()
    }
    options["close_mosaic_epochs"] = int(rng.integers(0, 3))
    seed = int(rng.choice([0, 7, 2**32 - 1, 2**32, 2**63 - 1]))
    config = SampleConfig(AugmentConfig(**options), side, seed, num_epochs=4)
    return TrainSamples(Sizes(sizes_hw, stored), config), side  # type: ignore[arg-type]


def one_warp(source_map: Map, size_hw: tuple[int, int], size: int) -> Warp | None:
    """The warp of one image (height, width) by a map (3, 3); None where nothing of it can be seen."""
    warp = plan_warp(source_map[None], np.array([size_hw[::-1]]), size).at(0)
    return warp if (warp.seen[:2] < warp.seen[2:]).all() else None


def gathered(plans: Sequence[SamplePlan], sizes_hw: Sequence[tuple[int, int]]) -> SamplePlans:
    """The arrays of plans, for sources of these (height, width)."""
    placed = [
        (sample, layer, tile)
        for sample, plan in enumerate(plans)
        for layer, tiles in enumerate(plan.layers)
        for tile in tiles
    ]
    numbers = np.array([(sample, layer, tile.source) for sample, layer, tile in placed], np.int64).reshape(-1, 3)
    sizes_wh = np.array([sizes_hw[tile.source][::-1] for *_, tile in placed], np.int64).reshape(-1, 2)
    warps = [tile.warp for *_, tile in placed]
    warp = Warp(
        np.array([one.map for one in warps]).reshape(-1, 3, 3),
        np.array([one.seen for one in warps], np.int64).reshape(-1, 4),
        np.array([one.crop for one in warps], np.int64).reshape(-1, 4),
        np.array([one.averages for one in warps], bool),
    )
    return SamplePlans(
        plans[0].size,
        np.array([len(plan.layers) for plan in plans]),
        np.array([plan.share for plan in plans]),
        np.array([plan.jitter for plan in plans]),
        *(numbers[:, 0], numbers[:, 1], numbers[:, 2]),
        sizes_wh,
        warp,
    )


def slow_plan(samples: TrainSamples, key: SampleKey, place: int) -> SamplePlan:
    """`TrainSamples.plan` of one sample, number by number."""
    config, sizes_hw = samples.config.augment, samples.store.sizes_hw
    rng, is_open = rng_of(samples.config.seed, key.epoch, key.record_index), samples.config.has_mosaic(key.epoch)
    mosaic, mixup, other_mosaic, other, *jitter = rng.random(7).tolist()
    layers, share = [_slow_layer(rng, samples, place, is_open and mosaic < config.mosaic, key.size)], 1.0
    if is_open and mixup < config.mixup:
        layers.append(_slow_layer(rng, samples, int(other * len(sizes_hw)), other_mosaic < config.mosaic, key.size))
        share = float(rng.beta(32.0, 32.0))
    hue, saturation, value = (2.0 * number - 1.0 for number in jitter)
    gains = Jitter(hue * config.hue, 1.0 + saturation * config.saturation, 1.0 + value * config.value)
    return SamplePlan(key.size, tuple(layers), share, gains)


def _slow_layer(
    rng: np.random.Generator, samples: TrainSamples, index: int, is_mosaic: bool, size: int
) -> tuple[Tile, ...]:
    config, sizes_hw = samples.config.augment, samples.store.sizes_hw
    uniform = rng.random(13).tolist()
    rotation, shear_x, shear_y, zoom, shift_x, shift_y = (2.0 * number - 1.0 for number in uniform[2:8])
    middle, factor = size if is_mosaic else size / 2, 1.0 + zoom * config.scale
    whole = scaling(factor, factor, -middle * factor, -middle * factor)
    turn, lean_x, lean_y = (
        math.radians(number * most)
        for number, most in ((rotation, config.rotation), (shear_x, config.shear), (shear_y, config.shear))
    )
    if turn or lean_x or lean_y:
        cosine, sine = math.cos(turn), math.sin(turn)
        shear = np.array([[1.0, math.tan(lean_x), 0.0], [math.tan(lean_y), 1.0, 0.0], [0.0, 0.0, 1.0]])
        whole = shear @ np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ whole
    whole = scaling(1.0, 1.0, *((0.5 + shift * config.translation) * size for shift in (shift_x, shift_y))) @ whole
    flip_x, flip_y = uniform[8] < config.flip_horizontal, uniform[9] < config.flip_vertical
    whole = scaling(-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, size * flip_x, size * flip_y) @ whole
    placed = []
    for number, source in enumerate((index, *(int(number * len(sizes_hw)) for number in uniform[10:]))):
        height, width = sizes_hw[source]
        scale = size / max(height, width)
        left = (0.5 + uniform[0]) * size - (0 if number % 2 else width * scale)
        top = (0.5 + uniform[1]) * size - (0 if number >= 2 else height * scale)
        placed.append((source, scaling(scale, scale, left, top)))
    if not is_mosaic:
        fit = letterbox_transform(sizes_hw[index], (size, size))
        placed = [(index, scaling(*fit.scale_xy, *map(float, fit.pad_left_top)))]
    warps = [(source, _slow_warp(whole @ step, sizes_hw[source], size)) for source, step in placed]
    return tuple(Tile(source, warp) for source, warp in warps if warp is not None)


def _slow_warp(source_map: Map, size_hw: tuple[int, int], size: int) -> Warp | None:
    height, width = size_hw
    if source_map[0, 1] or source_map[1, 0]:
        corners = np.array([[x, y, 1] for x in (0, width) for y in (0, height)]) @ source_map[:2].T
        left, top = (max(0, math.floor(low)) for low in corners.min(axis=0))
        right, bottom = (min(size, math.ceil(high)) for high in corners.max(axis=0))
        warp = Warp(source_map, np.array([left, top, right, bottom]), np.zeros(4, np.int64), np.array(False))
        return warp if left < right and top < bottom else None
    along_x = _slow_axis(source_map[0, 0], source_map[0, 2], width, size)
    along_y = _slow_axis(source_map[1, 1], source_map[1, 2], height, size)
    if along_x is None or along_y is None:
        return None
    (scale_x, shift_x, left, right, x0, x1), (scale_y, shift_y, top, bottom, y0, y1) = along_x, along_y
    averages = (right - left) * (bottom - top) * 4 < (x1 - x0) * (y1 - y0)
    seen, crop = np.array([left, top, right, bottom]), np.array([x0, y0, x1, y1])
    return Warp(scaling(scale_x, scale_y, shift_x, shift_y), seen, crop, np.array(averages))


def _slow_axis(scale: float, shift: float, side: int, size: int) -> tuple[float, float, int, int, int, int] | None:
    """Scale, shift, canvas interval and source interval."""
    lowest, highest = sorted((shift, shift + scale * side))
    start, stop = round(max(0.0, lowest)), round(min(float(size), highest))
    if stop <= start:
        return None
    first, last = sorted(((start - shift) / scale, (stop - shift) / scale))
    crop_start = min(max(0, round(first)), side - 1)
    crop_stop = max(min(side, round(last)), crop_start + 1)
    snapped = math.copysign((stop - start) / (crop_stop - crop_start), scale)
    return snapped, (start if scale > 0 else stop) - snapped * crop_start, start, stop, crop_start, crop_stop
