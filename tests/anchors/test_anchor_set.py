"""`AnchorSet`: the table view, pixels and cells, what it refuses, and the order of levels."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError

P5_ROWS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
P6_ROWS = [
    [19, 27, 44, 40, 38, 94],
    [96, 68, 86, 152, 180, 137],
    [140, 301, 303, 264, 238, 542],
    [436, 615, 739, 380, 925, 792],
]


def test_table_of_three_levels_goes_in_and_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rows in order are not remarked on
        anchors = AnchorSet.from_rows(P5_ROWS, (8, 16, 32))
    assert (anchors.num_levels, anchors.num_anchors) == (3, 3)
    assert anchors.to_rows() == P5_ROWS
    assert anchors.sizes_px[1] == ((30, 61), (62, 45), (59, 119))
    assert anchors.strides == (8, 16, 32)


def test_default_sets_are_those_of_the_specification() -> None:
    assert AnchorSet.coco_p5().to_rows() == P5_ROWS
    assert AnchorSet.coco_p5().strides == (8, 16, 32)
    assert AnchorSet.coco_p6().to_rows() == P6_ROWS
    assert AnchorSet.coco_p6().strides == (8, 16, 32, 64)


def test_pixels_and_cells() -> None:
    anchors = AnchorSet.coco_p5()
    pixels, cells = anchors.pixels(), anchors.cells()
    assert pixels.shape == cells.shape == (3, 3, 2)
    assert pixels.dtype == cells.dtype == torch.float32
    assert pixels[2, 1].tolist() == [156, 198]
    # By hand: 10/8, 13/8; 62/16, 45/16; 373/32, 326/32.
    assert cells[0, 0].tolist() == [1.25, 1.625]
    assert cells[1, 1].tolist() == [3.875, 2.8125]
    assert cells[2, 2].tolist() == [11.65625, 10.1875]
    assert anchors.cells(dtype=torch.float64).dtype == torch.float64


def test_cells_are_correctly_rounded_in_every_type() -> None:
    anchors = AnchorSet.from_rows([[10.1, 13.7], [33.3, 61.9]], (12, 24))
    assert anchors.cells(torch.float64)[0, 0].tolist() == [10.1 / 12, 13.7 / 12]
    assert torch.equal(anchors.cells(torch.float32), anchors.cells(torch.float64).float())


def test_one_level_and_one_anchor_are_enough() -> None:
    anchors = AnchorSet.from_rows([[16, 20]], (16,))
    assert (anchors.num_levels, anchors.num_anchors) == (1, 1)
    assert anchors.cells().tolist() == [[[1.0, 1.25]]]


def test_coarse_to_fine_rows_are_reversed_and_it_is_said() -> None:
    with pytest.warns(UserWarning, match="revers"):
        anchors = AnchorSet.from_rows(P5_ROWS[::-1], (8, 16, 32))
    assert anchors == AnchorSet.coco_p5()
    assert anchors.strides == (8, 16, 32)


def test_reversing_keeps_the_order_within_a_level() -> None:
    with pytest.warns(UserWarning, match="revers"):
        anchors = AnchorSet.from_rows([[90, 80, 70, 60], [9, 8, 7, 6]], (8, 16))
    assert anchors.to_rows() == [[9, 8, 7, 6], [90, 80, 70, 60]]


def test_mean_area_decides_not_the_first_anchor() -> None:
    # Mean areas (10*10 + 1*1) / 2 = 50.5 and (2*2 + 20*20) / 2 = 202: in order although the first anchors fall.
    rows = [[10, 10, 1, 1], [2, 2, 20, 20]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AnchorSet.from_rows(rows, (8, 16)).to_rows() == rows


@pytest.mark.parametrize(
    ("rows", "strides"),
    [
        ([[10, 13, 16], [30, 61, 62]], (8, 16)),  # odd
        ([[10, 13, 16, 30], [30, 61]], (8, 16)),  # unequal
        ([[10, 13], [30, 61]], (8, 16, 32)),  # too many strides
        ([[10, 13], [30, 61]], (8,)),  # too few
        ([], ()),
        ([[], []], (8, 16)),
        ([[0, 13], [30, 61]], (8, 16)),
        ([[10, 13], [30, -61]], (8, 16)),
        ([[10, math.nan], [30, 61]], (8, 16)),
        ([[10, 13], [30, math.inf]], (8, 16)),
        ([[10, 13], [30, 61]], (0, 16)),
        ([[10, 13], [30, 61]], (-8, 16)),
    ],
)
@pytest.mark.filterwarnings("ignore:anchors were given")
def test_bad_tables_are_refused(rows: list[list[float]], strides: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="anchors"):
        AnchorSet.from_rows(rows, strides)


def test_refusal_names_the_row_and_its_numbers() -> None:
    with pytest.raises(InputError, match=r"row 1 .*3 numbers.*\[30, 61, 62\]"):
        AnchorSet.from_rows([[10, 13], [30, 61, 62]], (8, 16))


def test_equal_sets_are_equal_keys_and_cannot_be_changed() -> None:
    one, same = (
        AnchorSet.coco_p5(),
        AnchorSet.from_rows([[float(side) for side in row] for row in P5_ROWS], [8, 16, 32]),
    )
    other = AnchorSet.from_rows(P5_ROWS, (4, 8, 16))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    assert copy.deepcopy(one) == one
    with pytest.raises(AttributeError):
        one.strides = (4, 8, 16)  # type: ignore[misc]
