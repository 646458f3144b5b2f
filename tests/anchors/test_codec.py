"""The codec: decoding by hand, encoding as its inverse, a whole level against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet, decode_boxes, decode_level, encode_boxes
from tests import oracle


def test_decoding_worked_by_hand() -> None:
    anchor = torch.tensor([1.25, 3.0], dtype=torch.float64)
    # sigmoid(0) = 1/2: centre 2/2 - 0.5 = 0.5, sides (2/2)^2 anchors.
    assert decode_boxes(torch.zeros(4, dtype=torch.float64), anchor).tolist() == [0.5, 0.5, 1.25, 3.0]
    # sigmoid(log 3) = 3/4: centre 1.0, side 1.5^2 = 2.25 anchors; sigmoid(-log 3) = 1/4: centre 0, side 0.25 anchors.
    log3 = math.log(3)
    box = decode_boxes(torch.tensor([log3, -log3, -log3, log3], dtype=torch.float64), anchor)
    assert box.tolist() == pytest.approx([1.0, 0.0, 0.25 * 1.25, 2.25 * 3.0], rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_range_is_from_half_a_cell_outside_and_up_to_four_anchors(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1e4] * 4, [1e4] * 4], dtype=dtype, requires_grad=True)
    boxes = decode_boxes(logits, torch.tensor([2.0, 5.0], dtype=dtype))
    assert boxes.tolist() == [[-0.5, -0.5, 0.0, 0.0], [1.5, 1.5, 8.0, 20.0]]
    (gradient,) = torch.autograd.grad(boxes.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_encoding_is_the_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 4, generator=generator, dtype=torch.float64)
    anchors = torch.rand(50, 2, generator=generator, dtype=torch.float64) + 0.5
    torch.testing.assert_close(encode_boxes(decode_boxes(logits, anchors), anchors), logits, rtol=1e-10, atol=1e-12)
    assert encode_boxes(torch.tensor([0.5, 0.5, 2.0, 3.0]), torch.tensor([2.0, 3.0])).tolist() == [0.0] * 4


def test_gradcheck() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    anchors = torch.rand(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(lambda one: decode_boxes(one, anchors), (logits,))


def test_level_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    num_images, num_anchors, num_classes, height, width, stride = 2, 3, 4, 2, 5, 16
    logits = rng.standard_normal((num_images, num_anchors, 5 + num_classes, height, width))
    anchors = np.exp(rng.standard_normal((num_anchors, 2)))
    boxes, others = decode_level(torch.from_numpy(logits), torch.from_numpy(anchors), stride)
    assert boxes.shape == (num_images, num_anchors * height * width, 4)
    assert others.shape == (num_images, num_anchors * height * width, 1 + num_classes)
    for place, (anchor, row, column) in enumerate(np.ndindex(num_anchors, height, width)):
        for image in range(num_images):
            here = logits[image, anchor, :, row, column]
            x, y, w, h = oracle.decoded(here[:4], anchors[anchor])
            expected = [(x + column) * stride, (y + row) * stride, w * stride, h * stride]
            np.testing.assert_allclose(boxes[image, place].numpy(), expected, rtol=1e-13, atol=1e-12)
            assert others[image, place].tolist() == here[4:].tolist()


def test_level_of_zeros_tiles_the_input() -> None:
    anchors = AnchorSet.coco_p5()
    boxes, _ = decode_level(torch.zeros(1, 3, 6, 2, 3), anchors.cells()[1], anchors.strides[1])
    # Level 1, stride 16: middles of the cells, row by row; sides those of the anchor in pixels.
    assert boxes[0, :6, :2].tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]
    assert boxes[0, :, 2:].view(3, 6, 2)[:, 0].tolist() == [[30, 61], [62, 45], [59, 119]]
