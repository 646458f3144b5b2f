"""Letterboxing: boxes go there and back, and lie where the pixels lie."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.data.images import FILL, letterbox, letterbox_transform, rectangular_size

sides = st.integers(1, 3000)
network_sides = st.integers(32, 1600)


@given(st.tuples(sides, sides), st.tuples(network_sides, network_sides), st.integers(0, 2**32 - 1))
def test_boxes_go_to_the_network_and_back(source_size_hw: tuple[int, int], size_hw: tuple[int, int], seed: int) -> None:
    transform = letterbox_transform(source_size_hw, size_hw)
    height, width = source_size_hw
    boxes_xyxy = np.random.default_rng(seed).random((5, 4)) * [width, height, width, height]
    there = transform.to_network(boxes_xyxy)
    back = transform.to_source(there)
    np.testing.assert_allclose(back, boxes_xyxy, rtol=0, atol=1e-9)
    as_tensor = transform.to_source(transform.to_network(torch.from_numpy(boxes_xyxy)))
    np.testing.assert_array_equal(as_tensor.numpy(), back)


@given(st.tuples(sides, sides), st.tuples(network_sides, network_sides))
def test_the_image_fits_is_centred_and_keeps_its_aspect(
    source_size_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    transform = letterbox_transform(source_size_hw, size_hw)
    (height, width), (left, top) = transform.resized_size_hw, transform.pad_left_top
    assert 1 <= height <= size_hw[0]
    assert 1 <= width <= size_hw[1]
    assert height == size_hw[0] or width == size_hw[1]
    assert size_hw[0] - height - 2 * top in (0, 1)
    assert size_hw[1] - width - 2 * left in (0, 1)
    ratio = min(size_hw[0] / source_size_hw[0], size_hw[1] / source_size_hw[1])
    assert abs(height - source_size_hw[0] * ratio) <= 0.5 or height == 1
    assert abs(width - source_size_hw[1] * ratio) <= 0.5 or width == 1


def test_integer_tensors_become_floating_and_the_argument_stays() -> None:
    boxes_xyxy = torch.tensor([[0, 0, 10, 20]])
    transform = letterbox_transform((20, 10), (41, 41))
    assert transform.to_network(boxes_xyxy).tolist() == [[10.0, 0.0, 30.0, 41.0]]
    assert boxes_xyxy.tolist() == [[0, 0, 10, 20]]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(60, 300), st.integers(60, 300)),
    st.tuples(st.integers(64, 300), st.integers(64, 300)),
    st.integers(0, 2**32 - 1),
)
def test_painted_boxes_lie_where_the_transform_says(
    source_size_hw: tuple[int, int], size_hw: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = source_size_hw
    x0, y0 = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
    x1, y1 = int(rng.integers(x0 + 20, width + 1)), int(rng.integers(y0 + 20, height + 1))
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    network_image, transform = letterbox(image, size_hw, fill=0)
    rows, columns = np.nonzero(network_image[..., 1] >= 128)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = transform.to_network(np.array([[x0, y0, x1, y1]], np.float64))[0]
    assert np.abs(painted - expected).max() <= 1


def test_padding_has_the_fill_and_nothing_else_is_touched() -> None:
    image = np.full((10, 20, 3), 9, np.uint8)
    network_image, transform = letterbox(image, (20, 20))
    assert network_image.shape == (20, 20, 3)
    assert (network_image[:5] == FILL).all()
    assert (network_image[15:] == FILL).all()
    assert (network_image[5:15] == 9).all()
    assert transform.pad_left_top == (0, 5)


def test_the_rectangular_size_is_the_smallest_that_holds_the_image() -> None:
    assert rectangular_size((480, 640), 640, 32) == (480, 640)
    assert rectangular_size((960, 540), 640, 32) == (640, 384)
    assert rectangular_size((1, 5000), 640, 64) == (64, 640)
    assert rectangular_size((65, 768), 384, 32) == (64, 384)  # 32.5 x 384
    assert rectangular_size((100, 100), 320, 32) == (320, 320)


@given(st.tuples(sides, sides), st.integers(1, 20), st.sampled_from([32, 64]))
def test_in_the_rectangular_size_the_scale_is_that_of_the_long_side(
    source_size_hw: tuple[int, int], num_strides: int, stride: int
) -> None:
    long_side = num_strides * stride
    size_hw = rectangular_size(source_size_hw, long_side, stride)
    square = letterbox_transform(source_size_hw, (long_side, long_side))
    assert letterbox_transform(source_size_hw, size_hw).resized_size_hw == square.resized_size_hw
