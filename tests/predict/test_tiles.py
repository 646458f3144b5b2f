from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorite.predict.views import ViewConfig, touches_seam


def windows(height, width, side, overlap):
    return ViewConfig(tile=side, tile_overlap=overlap, whole_image=False).windows(height, width)


def test_windows_by_hand():
    # 100 = 60 + 40: the second is moved inside, from 48 to 40. 60 is one window high.
    assert windows(60, 100, 60, 0.2) == [(0, 0, 60, 60), (40, 0, 100, 60)]
    assert windows(130, 50, 60, 0.0) == [(0, 0, 50, 60), (0, 60, 50, 120), (0, 70, 50, 130)]
    assert windows(40, 59, 60, 0.5) == [(0, 0, 59, 40)]
    # 0.2 * 640 is 128, whatever a binary fraction makes of it; 640 + 512 is reached by two windows exactly.
    assert windows(640, 1152, 640, 0.2) == [(0, 0, 640, 640), (512, 0, 1152, 640)]


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    side=st.integers(1, 320),
    overlap=st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.75, 0.99]),
)
def test_windows_cover_the_image_exactly_and_are_as_few_as_can_be(height, width, side, overlap):
    if height * width / side**2 / (1 - overlap) ** 2 > 5000:
        return  # thousands of windows tell no more
    found = windows(height, width, side, overlap)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in found:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert len(set(found)) == len(found)
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(window[axis], window[axis + 2]) for window in found})
        shared = [one[1] - other[0] for one, other in pairwise(spans)]
        assert all(share >= overlap * side - 1e-6 or share == side - 1 for share in shared)
        # One fewer, with just the overlap asked for, would not reach the end (a step is a pixel at least).
        step = max(1, int(side - overlap * side + 1e-6))
        assert len(spans) == 1 or side + (len(spans) - 2) * step < length
    assert len(found) == len({w[0] for w in found}) * len({w[1] for w in found})


@given(seed=st.integers(0, 2**31), side=st.integers(20, 90), overlap=st.sampled_from([0.2, 0.4, 0.6]))
def test_what_is_no_larger_than_the_overlap_is_whole_in_some_window(seed, side, overlap):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 400, 2)
    found = np.array(windows(height, width, side, overlap))
    sides = np.minimum(rng.uniform(0, overlap * side, (50, 2)), (width, height))
    lows = rng.uniform(0, 1, (50, 2)) * ((width, height) - sides)
    for low, high in zip(lows, lows + sides, strict=True):
        assert ((found[:, :2] <= low + 1e-9) & (found[:, 2:] >= high - 1e-9)).all(axis=1).any()


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((0, 0, 100, 100), []),  # the whole image has no inner edge
        ((0, 0, 60, 100), [2]),
        ((20, 0, 100, 100), [0]),
        ((0, 30, 100, 100), [1]),
        ((0, 0, 100, 70), [3]),
        ((20, 30, 60, 70), [0, 1, 2, 3]),
    ],
)
def test_boxes_at_inner_edges_are_told_from_those_at_edges_of_the_image(window, expected):
    left, top, right, bottom = window
    inside = [left + 5.0, top + 5.0, right - 5.0, bottom - 5.0]
    boxes = torch.tensor([inside] * 5)
    for edge in range(4):
        boxes[edge, edge] = window[edge] + (3.0 if edge < 2 else -3.0)
    touching = touches_seam(boxes, window, (100, 100), margin=4.0)
    assert touching.nonzero()[:, 0].tolist() == expected
    assert not touches_seam(boxes, window, (100, 100), margin=2.0).any()
