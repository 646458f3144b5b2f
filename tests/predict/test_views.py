from __future__ import annotations

import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.model import WeightsInfo
from anchorite.predict import PredictConfig, Predictor
from anchorite.predict.views import TTAView, ViewTransform, tta_views
from tests.predict.fakes import SquareFinder

P5 = AnchorSet.coco_p5()
INFO = WeightsInfo(size="n", class_names=("red", "green", "blue"), anchors=P5, image_size=320)


def found_through(view: ViewTransform, image: np.ndarray) -> torch.Tensor:
    """Boxes that a detector which is right by construction finds in a view, in pixels of the image."""
    runtime = Predictor(SquareFinder(P5), INFO, device="cpu").runtime
    inputs = torch.from_numpy(np.ascontiguousarray(view.network_input(image))).permute(2, 0, 1)[None]
    (raw,) = runtime.detections(runtime.outputs(inputs), PredictConfig()).split()
    return view.to_image(raw.boxes_xyxy)


# Scales of 1, 4/5 and 2, at which edges at multiples of 5 pixels stay sharp.
@pytest.mark.parametrize("long_side", [320, 256, 640])
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("size_hw", [(320, 320), (200, 320), (320, 270)])
def test_boxes_come_back_exactly(long_side, is_mirrored, size_hw):
    image = np.zeros((*size_hw, 3), np.uint8)
    box = (35, 60, 150, 185)
    image[box[1] : box[3], box[0] : box[2], 1] = 255
    view = ViewTransform.of((0, 0, size_hw[1], size_hw[0]), TTAView(long_side, is_mirrored), 32)
    assert max(view.size_hw) == long_side
    assert min(view.size_hw) % 32 == 0
    # To twice the side, pixels beside an edge are 3/4 bright and 1/4: not bright enough, half a pixel of the image.
    dim = 0.5 if long_side == 640 else 0.0
    expected = [box[0] + dim, box[1] + dim, box[2] - dim, box[3] - dim]
    assert found_through(view, image).numpy() == pytest.approx(np.array([expected]), abs=1e-3)


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_boxes_of_a_window_come_back_where_the_window_is(is_mirrored):
    image = np.zeros((700, 900, 3), np.uint8)
    image[:, :, 0] = 255  # beside the window all is bright
    window = (310, 205, 630, 465)
    image[205:465, 310:630] = 0
    image[300:400, 350:500, 2] = 255
    view = ViewTransform.of(window, TTAView(320, is_mirrored), 32)
    assert found_through(view, image).numpy() == pytest.approx(np.array([(350, 300, 500, 400)]), abs=1e-3)


def test_boxes_are_cut_to_the_window():
    view = ViewTransform.of((100, 50, 420, 210), TTAView(320), 32)
    boxes = torch.tensor([[-30.0, -5.0, 50.0, 400.0]])
    assert view.to_image(boxes).tolist() == [[100, 50, 150, 210]]


def test_a_mirrored_view_is_the_plain_one_seen_in_a_mirror_and_maps_every_box_back():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (211, 333, 3), np.uint8)
    plain, mirrored = (ViewTransform.of((0, 0, 333, 211), TTAView(256, flag), 32) for flag in (False, True))
    assert np.array_equal(plain.network_input(image)[:, ::-1], mirrored.network_input(image))
    lows = torch.from_numpy(rng.uniform(0, 150, (50, 2)))
    boxes = torch.cat([lows, lows + torch.from_numpy(rng.uniform(5, 60, (50, 2)))], dim=1)
    in_network = plain.transform.to_network(boxes)
    in_mirror = torch.stack([256 - in_network[:, 2], in_network[:, 1], 256 - in_network[:, 0], in_network[:, 3]], dim=1)
    assert torch.allclose(plain.to_image(in_network), boxes, rtol=0, atol=1e-9)
    assert torch.allclose(mirrored.to_image(in_mirror), boxes, rtol=0, atol=1e-9)


def test_looks_are_multiples_of_the_stride_each_once_and_the_plain_one_first():
    assert tta_views(320, 32, augment=False) == [TTAView(320)]
    sides = tta_views(320, 32, augment=True)
    assert sides[0] == TTAView(320)
    assert {look.image_size for look in sides} == {256, 320, 384}
    assert {look.image_size for look in tta_views(640, 64, augment=True)} == {512, 640, 768}
    assert tta_views(32, 32, augment=True) == [TTAView(32), TTAView(32, True)]  # 26.6 and 37.4 are rounded to 32, too
    assert tta_views(333, 32, augment=True)[0] == TTAView(333)  # what was asked for stays
    assert tta_views(640, 32, augment=True, is_fixed=True) == [TTAView(640), TTAView(640, True)]


def test_a_length_of_the_input_in_pixels_of_the_image():
    assert ViewTransform.of((0, 0, 640, 320), TTAView(320), 32).to_window_px(4) == 8
    assert ViewTransform.of((0, 0, 160, 160), TTAView(320), 32).to_window_px(4) == 2


def test_a_pair_is_the_size_of_every_input_and_is_scaled_side_by_side():
    view = ViewTransform.of((0, 0, 192, 192), TTAView((192, 320)), 32)
    assert view.size_hw == (192, 320)
    # A square image keeps its size, 64 px from either end.
    assert torch.equal(view.to_image(torch.tensor([[104.0, 50.0, 164.0, 120.0]])), torch.tensor([[40.0, 50, 100, 120]]))
    wide = ViewTransform.of((0, 0, 640, 320), TTAView((192, 320)), 32)
    assert (wide.size_hw, wide.transform.resized_size_hw) == ((192, 320), (160, 320))
    # 0.83 of 192 and 320 is 4.98 and 8.3 strides of 32, 1.17 of them 7.02 and 11.7.
    views = tta_views((192, 320), 32, augment=True)
    assert views[:2] == [TTAView((192, 320)), TTAView((192, 320), True)]
    assert {look.image_size for look in views[2:]} == {(160, 256), (224, 384)}
    assert [str(look) for look in views[:2]] == ["192 x 320 px", "192 x 320 px mirrored"]
