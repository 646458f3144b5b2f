from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.boxes import Detections
from anchorite.predict.drawing import PALETTE, ascii_name, class_color, draw, place_labels


def detections_of(boxes, image_size, names=("cat", "dog"), class_ids=None):
    return Detections(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.3, len(boxes)),
        class_ids=torch.zeros(len(boxes), dtype=torch.int64) if class_ids is None else torch.tensor(class_ids),
        class_names=names,
        image_size=image_size,
    )


def grey(height, width):
    return np.full((height, width, 3), 114, np.uint8)


def test_the_given_image_is_left_alone_and_nothing_is_drawn_for_nothing():
    image = grey(100, 120)
    assert np.array_equal(draw(image, detections_of([], (100, 120))), image)
    drawn = draw(image, detections_of([[20, 40, 60, 90]], (100, 120)))
    assert (image == 114).all()
    assert drawn.shape == image.shape
    assert (drawn != 114).any()


def test_the_box_is_where_the_pixels_say_in_the_colour_of_its_class():
    image = grey(400, 600)
    drawn = draw(image, detections_of([[100, 200, 300, 350]], (400, 600), class_ids=[1]))
    in_color = (drawn == class_color(1)).all(axis=-1)
    # Away from the label, which lies above the box.
    rows, columns = np.nonzero(in_color & (np.arange(400)[:, None] > 210))
    assert abs(rows.max() - 349) <= 1
    assert abs(columns.min() - 100) <= 1
    assert abs(columns.max() - 299) <= 1
    assert (drawn[230:340, 130:270] == 114).all()


def test_read_only_and_strided_images_can_be_drawn_on():
    image = grey(80, 80)[:, ::-1]
    image.flags.writeable = False
    assert draw(image, detections_of([[5, 30, 60, 70]], (80, 80))).shape == (80, 80, 3)


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=25),
    name=st.sampled_from(["cat", "a rather long name of a class that does not end", ""]),
)
def test_labels_stay_inside_free_of_each_other_and_leave_most_of_the_image_visible(height, width, corners, name):
    boxes = [[min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height] for a, b, c, d in corners]
    detections = detections_of(boxes, (height, width), names=(name,))
    labels = place_labels(detections, height, width)
    covered = np.zeros((height, width), int)
    for label in labels:
        x0, y0, x1, y1 = label.rectangle
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert x0 <= label.origin[0] < x1
        assert y0 < label.origin[1] <= y1
        covered[y0:y1, x0:x1] += 1
    assert covered.max() <= 1
    assert covered.mean() <= 1 / 3
    draw(grey(height, width), detections)


def test_a_label_goes_above_its_box_below_at_the_top_edge_and_grows_with_the_image():
    (middle,) = place_labels(detections_of([[100, 200, 200, 300]], (480, 640)), 480, 640)
    assert middle.text == "cat 0.90"
    assert middle.rectangle[3] == 200
    (top,) = place_labels(detections_of([[100, 0, 200, 100]], (480, 640)), 480, 640)
    assert top.rectangle[1] < 100
    (large,) = place_labels(detections_of([[1000, 2000, 2000, 3000]], (4800, 6400)), 4800, 6400)
    assert large.rectangle[3] - large.rectangle[1] > 5 * (middle.rectangle[3] - middle.rectangle[1])


def test_where_the_full_text_has_no_room_the_score_stands_alone():
    # The first four take the spots above, below and inside, each more than half as wide as the box.
    detections = detections_of([[0, 100, 200, 160]] * 6, (300, 200), names=("quite a name",))
    texts = [label.text for label in place_labels(detections, 300, 200)]
    assert texts == ["quite a name 0.90", "quite a name 0.78", "quite a name 0.66", "quite a name 0.54", "0.42", "0.30"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("traffic light", "traffic light"),
        ("Gr\u00f6\u00dfe", "Grosse"),
        ("\u017c\u00f3\u0142w", "zolw"),
        ("\u72ac", "class 7"),
        ("\u0441\u043e\u0431\u0430\u043a\u0430", "class 7"),
        ("a\nb", "class 7"),
        ("\udcff", "class 7"),
        ("", "class 7"),
        ("  ", "class 7"),
        ("\u0301", "class 7"),
    ],
)
def test_names_are_written_in_ascii_or_by_number(name, expected):
    assert ascii_name(name, 7) == expected


def test_colours_differ_and_repeat():
    assert len(set(PALETTE)) == len(PALETTE) == 16
    assert class_color(16) == class_color(0)
