"""Warped pixels and mapped boxes agree, for every map that augmentation can compose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.data.augment import Map, draw_warped, map_boxes, scaling, turning, visible_boxes
from tests.data.plan_cases import one_warp

SIZE = 200
factors = st.one_of(st.floats(0.3, 3.0), st.floats(-3.0, -0.3))
shifts = st.floats(-150.0, 250.0)
angles = st.floats(-180.0, 180.0)
shears = st.floats(-20.0, 20.0)


def turned_by(*angles: float) -> Map:
    return turning(np.array([angles]))[0]


def painted_box(canvas: np.ndarray) -> np.ndarray | None:
    """The box around the bright half of an anti-aliased rectangle."""
    rows, columns = np.nonzero(canvas[..., 0] >= 128)
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)


def source_with_box(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(80, 240, 2).tolist()
    x0, y0 = int(rng.integers(0, width - 45)), int(rng.integers(0, height - 45))
    x1, y1 = int(rng.integers(x0 + 40, width + 1)), int(rng.integers(y0 + 40, height + 1))
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    return image, np.array([[x0, y0, x1, y1]], np.float64)


def check_painted_box_is_where_the_map_says(source_map: Map, seed: int, tolerance: float) -> None:
    image, boxes_xyxy = source_with_box(seed)
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    warp = one_warp(source_map, image.shape[:2], SIZE)
    if warp is None:
        return
    draw_warped(image, warp, canvas)
    mapped = map_boxes(warp.map, boxes_xyxy)
    cut, keep = visible_boxes(mapped, warp.seen[None].astype(np.float64), 0.0, 6.0)
    if keep[0]:
        found = painted_box(canvas)
        assert found is not None
        assert np.abs(found - cut[0]).max() <= tolerance
    left, top, right, bottom = warp.seen.tolist()
    canvas[top:bottom, left:right] = 0
    assert not canvas.any(), "drawn outside of what is said to be seen"


@settings(max_examples=300, deadline=None)
@given(factors, factors, shifts, shifts, st.integers(0, 2**32 - 1))
def test_resized_and_flipped_pixels_agree_with_boxes(
    scale_x: float, scale_y: float, shift_x: float, shift_y: float, seed: int
) -> None:
    check_painted_box_is_where_the_map_says(scaling(scale_x, scale_y, shift_x, shift_y), seed, 1.0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([90.0, 180.0, 270.0, -90.0]), st.floats(0.5, 2.0), shifts, shifts, st.integers(0, 2**32 - 1))
def test_quarter_turns_agree_with_boxes(angle: float, zoom: float, shift_x: float, shift_y: float, seed: int) -> None:
    turned = scaling(1.0, 1.0, shift_x + 90, shift_y + 90) @ turned_by(angle, 0.0, 0.0) @ scaling(zoom, zoom, -90, -90)
    # A turned tile lacks its outermost half pixel, which zoom enlarges.
    check_painted_box_is_where_the_map_says(turned, seed, max(1.0, 0.5 + zoom / 2))


@settings(max_examples=60, deadline=None)
@given(angles, shears, shears, st.floats(1.0, 2.0), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_turn_moves_the_centre_of_the_painted_area_as_the_map_does(
    angle: float, shear_x: float, shear_y: float, zoom: float, flip: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = np.zeros((100, 140, 3), np.uint8)
    x0, y0 = int(rng.integers(30, 80)), int(rng.integers(30, 50))
    image[y0 : y0 + 21, x0 : x0 + 30] = 255
    step = scaling(-zoom if flip else zoom, zoom) @ turned_by(angle, shear_x, shear_y) @ scaling(1, 1, -70, -50)
    source_map = scaling(1.0, 1.0, 300, 300) @ step
    canvas = np.zeros((600, 600, 3), np.uint8)
    warp = one_warp(source_map, (100, 140), 600)
    assert warp is not None
    draw_warped(image, warp, canvas)
    weights = canvas[..., 0].astype(np.float64)
    middles = np.arange(600) + 0.5
    centre = np.array([weights.sum(axis=0) @ middles, weights.sum(axis=1) @ middles]) / weights.sum()
    expected = source_map @ [x0 + 15, y0 + 10.5, 1]
    assert np.abs(centre - expected[:2]).max() < 0.15
    area = weights.sum() / 255
    assert area == pytest.approx(30 * 21 * abs(np.linalg.det(source_map)), rel=0.03)


@settings(max_examples=60, deadline=None)
@given(angles, shears, st.floats(0.5, 2.0))
def test_a_mapped_box_is_the_upright_box_around_its_mapped_corners(angle: float, shear: float, zoom: float) -> None:
    box_map = scaling(-zoom, zoom, 3, 4) @ turned_by(angle, shear, -shear)
    boxes_xyxy = np.array([[1.0, 2.0, 11.0, 7.0], [5.0, 5.0, 5.5, 40.0]])
    for box, mapped in zip(boxes_xyxy, map_boxes(box_map, boxes_xyxy), strict=True):
        corners = np.array([[box[x], box[y], 1.0] for x in (0, 2) for y in (1, 3)]) @ box_map[:2].T
        np.testing.assert_allclose(mapped, [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-9)
    stacked = np.stack([box_map, scaling(2.0, 2.0)])
    np.testing.assert_allclose(map_boxes(stacked, boxes_xyxy)[1], boxes_xyxy[1] * 2)
    np.testing.assert_allclose(map_boxes(stacked, boxes_xyxy)[0], map_boxes(box_map, boxes_xyxy)[0])


@settings(max_examples=200, deadline=None)
@given(factors, shifts, st.integers(1, 400))
def test_snapping_moves_the_map_by_less_than_a_pixel_inside_the_canvas(scale: float, shift: float, side: int) -> None:
    warp = one_warp(scaling(scale, 1.0, shift, 0.0), (SIZE, side), SIZE)
    if warp is None:
        start, stop = sorted((shift, shift + scale * side))
        assert round(max(0.0, start)) >= round(min(SIZE, stop))
        return
    left, _, right, _ = warp.seen.tolist()
    assert warp.is_straight
    for place, source in ((left, warp.crop[0]), (right, warp.crop[2])) if scale > 0 else ((left, warp.crop[2]),):
        assert warp.map[0, 0] * source + warp.map[0, 2] == pytest.approx(place, abs=1e-9)
        assert abs(scale * source + shift - place) <= max(1.0, abs(scale))


def test_a_whole_image_without_scaling_is_copied_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    canvas = np.zeros((100, 100, 3), np.uint8)
    warp = one_warp(scaling(1.0, 1.0, 10.0, 20.0), (60, 80), 100)
    assert warp is not None
    draw_warped(image, warp, canvas)
    assert np.array_equal(canvas[20:80, 10:90], image)
    flipped = one_warp(scaling(-1.0, -1.0, 90.0, 80.0), (60, 80), 100)
    assert flipped is not None
    draw_warped(image, flipped, canvas)
    assert np.array_equal(canvas[20:80, 10:90], image[::-1, ::-1])


def test_the_turned_path_equals_the_straight_one_but_for_rounding() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8), (0, 0), 4)
    straight, turned = np.zeros((2, 100, 100, 3), np.uint8)
    zoomed = scaling(1.5, 1.5, -30.0, -30.0)  # both rectangles fall on whole pixels, so that nothing is snapped
    for canvas, shear in ((straight, 0.0), (turned, 1e-9)):
        sheared = zoomed.copy()
        sheared[0, 1] = shear
        warp = one_warp(sheared, (120, 120), 100)
        assert warp is not None
        assert warp.is_straight == (not shear)
        draw_warped(image, warp, canvas)
    inner = np.abs(straight.astype(int) - turned)[2:-2, 2:-2]
    assert inner.max() <= 2


def test_boxes_are_cut_and_dropped_by_area_and_side() -> None:
    seen = np.array([[10.0, 10.0, 50.0, 50.0]])
    boxes = np.array(
        [
            [20.0, 20.0, 30.0, 30.0],  # whole
            [0.0, 20.0, 20.0, 40.0],  # half seen
            [-90.0, 20.0, 20.0, 40.0],  # a tenth less a little
            [48.5, 20.0, 50.0, 40.0],  # too thin
            [60.0, 60.0, 70.0, 70.0],  # outside on both axes: two negative sides make a positive area
            [50.0, 20.0, 60.0, 40.0],  # only touching
        ]
    )
    cut, keep = visible_boxes(boxes, np.repeat(seen, 6, axis=0), min_visible=0.1, min_side_px=2.0)
    assert keep.tolist() == [True, True, False, False, False, False]
    assert cut[:2].tolist() == [[20, 20, 30, 30], [10, 20, 20, 40]]
    everything = visible_boxes(boxes, np.repeat(seen, 6, axis=0), 0.0, 0.0)[1]
    assert everything.tolist() == [True, True, True, True, False, False]
