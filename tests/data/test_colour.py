"""Colour jitter against a plain conversion by the definition of HSV."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest

from anchorite.data import augment
from anchorite.data.augment import NO_JITTER, Jitter, Scratch, jitter_colours
from tests.data.colour_cases import JITTERS


def picture(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_definition(image: np.ndarray, jitter: Jitter) -> np.ndarray:
    changed = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        jittered = (hue + jitter.hue) % 1, min(1, saturation * jitter.saturation), min(1, value * jitter.value)
        changed[place] = np.rint(np.array(colorsys.hsv_to_rgb(*jittered)) * 255)
    return changed


@pytest.mark.parametrize("jitter", JITTERS)
def test_pixels_change_as_hsv_is_defined(jitter: Jitter) -> None:
    image = picture()
    expected = by_definition(image, jitter).astype(int)
    jitter_colours(image, jitter)
    # uint8 HSV has 180 hues: a step is up to 4 levels of a channel.
    assert np.abs(image - expected).max() <= 9
    assert np.abs(image - expected).mean() < 2


def test_no_jitter_changes_nothing() -> None:
    image = picture()
    jitter_colours(image, Jitter(0.0, 1.0, 1.0))
    assert np.array_equal(image, picture())


def test_grey_stays_grey_and_black_black() -> None:
    image = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 100, 200)])
    for plane in image:
        jitter_colours(plane, Jitter(0.3, 1.7, 1.1))
    assert image[:, 0, 0].tolist() == [[0, 0, 0], [110, 110, 110], [220, 220, 220]]


@pytest.mark.parametrize("strip_pixels", [1, 700, 1000, 10**9])
def test_strips_do_not_show(strip_pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture()
    jitter_colours(whole, Jitter(0.1, 1.2, 0.8))
    monkeypatch.setattr(augment, "STRIP_PIXELS", strip_pixels)
    in_strips = picture()
    jitter_colours(in_strips, Jitter(0.1, 1.2, 0.8))
    assert np.array_equal(in_strips, whole)


def test_a_view_into_a_batch_is_changed_in_place() -> None:
    batch = np.stack([picture(40, 40), picture(40, 40)])
    jitter_colours(batch[1], Jitter(0.0, 1.0, 0.5))
    assert np.array_equal(batch[0], picture(40, 40))
    assert batch[1].max() <= 128
    assert cv2.cvtColor(batch[1], cv2.COLOR_RGB2HSV)[..., 2].max() == 128


def test_the_result_can_go_elsewhere_and_memory_be_used_again() -> None:
    scratch = Scratch()
    for size in ((50, 70), (20, 30), (60, 80)):  # fits, fits with room, does not fit
        for jitter in (Jitter(0.1, 1.2, 0.8), NO_JITTER):
            in_place, source, out = picture(*size), picture(*size), np.zeros((*size, 3), np.uint8)
            jitter_colours(in_place, jitter)
            jitter_colours(source, jitter, out, scratch)
            assert np.array_equal(out, in_place)
            assert np.array_equal(source, picture(*size))
