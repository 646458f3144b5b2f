"""Plans of a whole batch are those of its samples, each made alone and number by number, to the last bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from anchorite.data.augment import SamplePlans
from anchorite.data.device import DRAWN, HELD, MAP, REACH, SEEN, plan_batch
from anchorite.data.random_numbers import rng_of, uniform_of
from anchorite.data.samples import SampleKey, TrainSamples
from tests.data.plan_cases import gathered, random_samples, slow_plan

SEEDS = range(30)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**63 - 1, 2**64, 2**100 + 2**70])
def test_random_numbers_are_those_of_numpys_generators(seed: int) -> None:
    rng = np.random.default_rng(seed)
    epochs = [0, 0, *rng.integers(0, 300, 6).tolist(), 2**32 - 1]
    indices = [0, 2**32 - 1, *rng.integers(0, 2**32, 6).tolist(), 0]
    for count in (1, 20, 33):
        expected = [rng_of(seed, *key).random(count) for key in zip(epochs, indices, strict=True)]
        assert np.array_equal(uniform_of(seed, epochs, indices, count), expected)


@cache
def planned(seed: int) -> tuple[TrainSamples, SamplePlans, SamplePlans]:
    """Samples, some of their plans, and what the oracle says of them."""
    rng = np.random.default_rng(seed)
    samples, side = random_samples(rng)
    places = rng.integers(0, len(samples), rng.integers(1, 12)).tolist()
    keys = [SampleKey(int(rng.integers(0, 4)), place + 1000 * (seed % 2), side) for place in places]
    expected = [slow_plan(samples, key, place) for key, place in zip(keys, places, strict=True)]
    found = samples.plan(keys, places if seed % 2 else None)
    return samples, found, gathered(expected, samples.store.sizes_hw)


def differing(plans: SamplePlans, others: SamplePlans) -> set[str]:
    """The names of arrays that are not equal, or not of one type."""
    arrays, expected = ({**vars(one), **one.warp._asdict(), "warp": 0} for one in (plans, others))
    return {
        name
        for name, array in expected.items()
        if not np.array_equal(arrays[name], array) or np.asarray(arrays[name]).dtype != np.asarray(array).dtype
    }


def test_plans_are_those_of_the_slow_loop() -> None:
    num_tiles = num_turned = num_mixed = 0
    for seed in SEEDS:
        _, found, expected = planned(seed)
        assert not differing(found, expected), seed
        num_tiles += len(found.sources)
        num_turned += int((~found.warp.is_straight).sum())
        num_mixed += int((found.num_layers == 2).sum())
    assert min(num_turned, num_tiles - num_turned, num_mixed) > 50


def test_one_of_many_plans_is_what_they_were_made_of() -> None:
    for seed in SEEDS:
        samples, found, _ = planned(seed)
        assert not differing(gathered(list(found), samples.store.sizes_hw), found), seed


def test_a_part_of_the_plans_is_those_of_its_samples() -> None:
    for seed in SEEDS:
        samples, found, _ = planned(seed)
        start, stop = sorted(np.random.default_rng(seed).choice(len(found) + 1, 2, replace=False).tolist())
        assert not differing(found.part(start, stop), gathered(list(found)[start:stop], samples.store.sizes_hw)), seed


def slow_numbers(samples: TrainSamples, plans: SamplePlans, shape: tuple[int, ...]) -> np.ndarray:
    """The columns of all tiles of a batch, (B, L, Q, 20) float32."""
    numbers = np.zeros(shape)
    for image, plan in enumerate(plans):
        for layer, tiles in enumerate(plan.layers):
            for row, tile in zip(numbers[image, layer], tiles, strict=False):
                height, width = samples.store.sizes_hw[tile.source]
                linear = np.linalg.inv(tile.warp.map[:2, :2])
                shift = linear @ (0.5 - tile.warp.map[:2, 2])[:, None] - 0.5
                row[MAP], row[SEEN] = np.concatenate([linear, shift], axis=1).ravel(), tile.warp.seen
                if not tile.warp.is_straight:
                    row[DRAWN] = -1 / 64, -1 / 64, width - 1 / 64, height - 1 / 64
                    row[HELD] = 0, 0, width - 1, height - 1
                    continue
                x0, y0, x1, y1 = tile.warp.crop
                x, y = (abs(row[0]) / 2, abs(row[4]) / 2) if tile.warp.averages else (0.5, 0.5)
                row[DRAWN] = -np.inf, -np.inf, np.inf, np.inf
                row[HELD] = x0 - 0.5 + x, y0 - 0.5 + y, x1 - 0.5 - x, y1 - 0.5 - y
                row[REACH] = (x, y) if tile.warp.averages else (0, 0)
    return numbers.astype(np.float32)


def test_what_the_device_paints_is_that_of_the_slow_loop() -> None:
    num_averaged = 0
    for seed in SEEDS:
        samples, plans, _ = planned(seed)
        num_images = len(plans) + seed % 3
        batch = plan_batch(plans, num_images)
        shape = batch.widths.shape
        assert shape[0] == num_images
        assert shape[1] == max(len(plan.layers) for plan in plans)
        assert shape[2] == (4 if max(len(layer) for plan in plans for layer in plan.layers) > 1 else 1)
        assert np.array_equal(batch.tiles.numpy(), slow_numbers(samples, plans, batch.tiles.shape))
        sources, widths = np.full(shape, -1), np.zeros(shape)
        colours = np.tile(np.array([1.0, 0.0, 1.0, 1.0]), (num_images, 1))
        for image, plan in enumerate(plans):
            hue, saturation, value = plan.jitter
            colours[image] = plan.share, round(hue * 180), saturation, value
            for layer, tiles in enumerate(plan.layers):
                for number, tile in enumerate(tiles):
                    sources[image, layer, number] = tile.source
                    widths[image, layer, number] = samples.store.sizes_hw[tile.source][1]
                    num_averaged += bool(tile.warp.averages)
        assert batch.sources == tuple(sources.ravel().tolist())
        assert np.array_equal(batch.widths.numpy(), widths)
        assert batch.colours.numpy().tobytes() == colours.astype(np.float32).tobytes()
        assert batch.jitters == any(plan.jitter != (0.0, 1.0, 1.0) for plan in plans)
    assert num_averaged > 20
