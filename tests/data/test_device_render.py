"""What the device paints is what OpenCV draws, and asks nothing of the host."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anchorite.data import device as device_module
from anchorite.data.augment import AugmentConfig, Jitter, SamplePlan, Tile, jitter_colours, scaling
from anchorite.data.device import blended, jittered, plan_batch, render
from anchorite.data.images import FILL
from tests.data.colour_cases import JITTERS
from tests.data.device_cases import (
    COLOURLESS,
    EVERYTHING,
    SIZE,
    STRAIGHT,
    TURNED,
    Case,
    drawn,
    keys_of,
    make_case,
    needs_cuda,
    painted,
)
from tests.data.plan_cases import gathered, one_warp
from tests.shared import shared_path

NEUTRAL = Jitter(0.0, 1.0, 1.0)


def differences(case: Case, epochs: int = 4, size: int = SIZE) -> np.ndarray:
    keys = keys_of(case, epochs, size)
    ours = painted(case, case.samples.plan(keys))
    return np.abs(ours.astype(int) - drawn(case, keys))


@pytest.mark.parametrize("size", [SIZE, 96, 224])
def test_straight_tiles_are_painted_as_opencv_draws_them_but_for_rounding(tmp_path: Path, size: int) -> None:
    difference = differences(make_case(tmp_path, STRAIGHT), size=size)
    assert difference.max() <= 1
    assert difference.mean() < 0.15


def test_without_augmentation_every_pixel_is_equal(tmp_path: Path) -> None:
    assert differences(make_case(tmp_path, AugmentConfig.none())).max() == 0


def test_shrinking_much_averages_areas_as_opencv_does(tmp_path: Path) -> None:
    config = AugmentConfig(**COLOURLESS, scale=0.9)
    case = make_case(tmp_path, config)
    keys = keys_of(case, 12, size=64)
    plans = case.samples.plan(keys)
    averaged = [plan for plan in plans if any(tile.warp.averages for tile in plan.layers[0])]
    assert len(averaged) > 20
    assert plan_batch(plans).taps > 6
    difference = np.abs(painted(case, plans).astype(int) - drawn(case, keys))
    assert difference.max() <= 1
    assert difference.mean() < 0.15


def test_turned_tiles_differ_by_opencvs_coarse_fractions_and_along_their_edges_alone(tmp_path: Path) -> None:
    difference = differences(make_case(tmp_path, TURNED), epochs=8).max(axis=-1)
    # Dark noise of 60 levels, a 64th of a pixel off along both axes; rectangles' edges: 255 / 64 along both.
    assert np.quantile(difference, 0.999) <= 9
    assert difference.mean() < 1.0
    assert (difference > 16).mean() < 2e-4, "a canvas pixel just on a tile's edge, drawn by one of the two"


def test_all_together_is_close(tmp_path: Path) -> None:
    difference = differences(make_case(tmp_path, EVERYTHING), epochs=8)
    assert difference.mean() < 1.5
    assert (difference > 24).mean() < 2e-3


@pytest.mark.parametrize("name", ["bccd", "cards"])
def test_photographs_are_close(name: str) -> None:
    from anchorite.data import open_dataset
    from tests.data.device_cases import case_of

    records = open_dataset(shared_path(f"datasets/{name}")).splits["train"][:12]
    difference = differences(case_of(records, AugmentConfig()), epochs=2)
    assert difference.mean() < 0.5
    assert (difference > 4).mean() < 1e-3
    assert difference.max() <= 24


@pytest.mark.parametrize("config", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_painted_rectangles_lie_where_their_boxes_say(tmp_path: Path, config: AugmentConfig) -> None:
    case = make_case(tmp_path, config.model_copy(update={"min_side_px": 0.0}))
    plans = case.samples.plan(keys_of(case, 8))
    images, rows = painted(case, plans), case.samples.labels(plans).rows
    num_targets = 0
    for place, image in enumerate(images):
        bright = image > 200
        for _, class_id, cx, cy, width, height in rows[rows[:, 0] == place]:
            x0, x1 = (cx - width / 2) * SIZE, (cx + width / 2) * SIZE
            y0, y1 = (cy - height / 2) * SIZE, (cy + height / 2) * SIZE
            inner = image[int(y0) + 2 : max(0, int(y1) - 1), int(x0) + 2 : max(0, int(x1) - 1), int(class_id)]
            if inner.size and config is STRAIGHT:
                assert np.median(inner) > 200
            num_targets += 1
            bright[max(0, int(y0) - 1) : int(y1) + 2, max(0, int(x0) - 1) : int(x1) + 2, int(class_id)] = False
        assert not bright.any(), "a rectangle without a target of its class"
    assert num_targets > 60


def colours() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (50, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize("jitter", JITTERS)
def test_colours_are_jittered_as_opencvs_uint8_hsv(jitter: Jitter) -> None:
    expected, source = colours(), torch.from_numpy(colours()).float()
    jitter_colours(expected, jitter)
    numbers = (torch.tensor(float(number)) for number in (round(jitter.hue * 180), jitter.saturation, jitter.value))
    ours = torch.stack(jittered(source.unbind(-1), *numbers), dim=-1).numpy()  # type: ignore[arg-type]
    difference = np.abs(ours - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.02, "OpenCV drops fractions on the way back"


def test_grey_stays_grey() -> None:
    grey = torch.arange(256.0)
    red, green, blue = jittered((grey, grey, grey), torch.tensor(20.0), torch.tensor(1.7), torch.tensor(1.0))
    expected = np.stack([np.arange(256, dtype=np.uint8).reshape(1, 256)] * 3, axis=-1)
    jitter_colours(expected, Jitter(20 / 180, 1.7, 1.0))
    for channel in (red, green, blue):
        assert torch.equal(channel, red)
        assert np.abs(channel.numpy() - expected[0, :, 0]).max() <= 1


def test_blends_are_opencvs() -> None:
    first, second = colours(), colours()[::-1].copy()
    expected = cv2.addWeighted(first, 0.37, second, 0.63, 0.0)
    channels = [tuple(torch.from_numpy(image).float().unbind(-1)) for image in (first, second)]
    ours = torch.stack(blended(channels[0], channels[1], torch.tensor(0.37)), dim=-1).numpy()  # type: ignore[arg-type]
    assert np.abs(ours - expected).max() <= 1
    assert (ours != expected).mean() < 0.01


def test_a_later_tile_covers_an_earlier_one_and_nothing_else_is_touched(tmp_path: Path) -> None:
    case = make_case(tmp_path, STRAIGHT)
    under, over = (one_warp(scaling(0.5, 0.5, x, 20.0), (96, 160), SIZE) for x in (10.0, 50.0))
    assert under is not None
    assert over is not None
    sizes_hw = case.store.images.sizes_hw
    tiles = (Tile(1, under), Tile(2, over))
    plans = [SamplePlan(SIZE, (layer,), 1.0, NEUTRAL) for layer in (tiles, tiles[:1], tiles[1:], ())]
    both, first, second, nothing = painted(case, gathered(plans, sizes_hw))
    assert sizes_hw[1] != sizes_hw[2]
    assert (nothing == FILL).all()
    covered = np.zeros((SIZE, SIZE), bool)
    left, top, right, bottom = over.seen.tolist()
    covered[top:bottom, left:right] = True
    assert np.array_equal(both[covered], second[covered])
    assert np.array_equal(both[~covered], first[~covered])
    assert (second[~covered] == FILL).all()


def test_the_number_of_images_painted_at_once_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, EVERYTHING)
    plans = case.samples.plan(keys_of(case, 1))
    whole = painted(case, plans)
    for pixels in (1, 4 * SIZE**2):
        monkeypatch.setattr(device_module, "_PIXELS_AT_ONCE", {"cpu": pixels})
        assert np.array_equal(painted(case, plans), whole)


class Operators(TorchDispatchMode):
    """Collects the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().removeprefix("aten::").split(".")[0])
        return func(*args, **(kwargs or {}))


ASKING = {"nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "equal", "is_nonzero", "lift_fresh"}
ASKING |= {"_to_cpu", "scalar_tensor", "tensor", "repeat_interleave", "nonzero_static"}


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(scale=0.4)], ids=["everything", "averaging"])
def test_painting_asks_the_device_for_nothing(tmp_path: Path, config: AugmentConfig) -> None:
    case = make_case(tmp_path, config)
    plan = plan_batch(case.samples.plan(keys_of(case, 2, 64)))
    assert (plan.taps > 2) == (config is not EVERYTHING)
    pixels, starts = case.store.stage(plan.sources)
    tables = [torch.from_numpy(starts).view(plan.widths.shape), plan.tiles, plan.widths, plan.colours]
    without_numbers = [table.to("meta") for table in (pixels, *tables)]
    with Operators() as operators:
        images = render(*without_numbers, plan.size, plan.taps, plan.jitters)  # type: ignore[call-arg]
    assert images.is_meta, "made without any number being known"
    assert images.shape == (12, 3, 64, 64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not operators.names & ASKING
    assert "index" in operators.names, "the watch sees what runs"


def test_cuda_paints_the_same_and_never_waits(tmp_path: Path) -> None:
    needs_cuda()
    case = make_case(tmp_path, EVERYTHING)
    plans = case.samples.plan(keys_of(case, 2))
    plan = plan_batch(plans)
    pixels, starts = case.store.stage(plan.sources)
    tables = [torch.from_numpy(starts).view(plan.widths.shape), plan.tiles, plan.widths, plan.colours]
    there = [table.cuda() for table in (pixels, *tables)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = render(*there, plan.size, plan.taps, plan.jitters)  # type: ignore[call-arg]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = np.abs(images.permute(0, 2, 3, 1).cpu().numpy().astype(int) - painted(case, plans))
    assert (difference > 1).mean() < 1e-3


def test_few_shapes_occur_however_many_tiles_are_seen(tmp_path: Path) -> None:
    case = make_case(tmp_path, STRAIGHT.model_copy(update={"translation": 0.6}))
    plans = [case.samples.plan([key]) for key in keys_of(case, 10)]
    assert {len(plan[0].layers[0]) for plan in plans} >= {1, 2, 4}, "some tiles lie outside of the canvas"
    shapes = {plan_batch(plan).tiles.shape for plan in plans}
    assert shapes == {(1, 1, 1, 20), (1, 1, 4, 20)}
    single = make_case(tmp_path, AugmentConfig.none())
    plan = plan_batch(single.samples.plan(keys_of(single, 1)))
    assert plan.tiles.shape == (6, 1, 1, 20)
