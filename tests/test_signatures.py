"""The shapes and types that signatures state are enforced in tests, and in tests alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from anchorite.anchors import AnchorSet, decode_boxes, decode_level
from anchorite.boxes import Targets, cxcywh_to_xyxy, nms, paired_iou, pairwise_iou_xyxy
from anchorite.loss.terms import bce_sum, class_targets, weighted_sum

BOXES, ANCHORS = torch.zeros(3, 4), torch.ones(3, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cxcywh_to_xyxy(torch.zeros(3, 5)),
        lambda: cxcywh_to_xyxy(BOXES.long()),
        lambda: paired_iou(BOXES, BOXES[:2]),
        lambda: pairwise_iou_xyxy(BOXES, BOXES[0]),
        lambda: nms(BOXES, torch.zeros(2), None, 0.5, 10),
        lambda: nms(BOXES, torch.zeros(3), torch.zeros(3), 0.5, 10),
        lambda: decode_boxes(BOXES, torch.ones(2, 2)),
        lambda: decode_level(torch.zeros(1, 2, 6, 4, 4), ANCHORS, 8),
        lambda: Targets(torch.zeros(2, 5)),
        lambda: Targets(torch.zeros(2, 6), torch.ones(3, dtype=torch.bool)),
        lambda: class_targets(torch.zeros(3), 5, 0.0, torch.float32),
        lambda: bce_sum(BOXES, BOXES[:2], 1.0),
        lambda: weighted_sum(BOXES[:, 0], torch.zeros(2), torch.ones(3, dtype=torch.bool)),
        lambda: AnchorSet.coco_p5().pixels("float32"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_shape_or_type_is_an_error(call) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_anchors_may_be_broadcast_to_the_boxes() -> None:
    assert decode_boxes(torch.zeros(2, 3, 5, 4), torch.ones(3, 1, 2)).shape == (2, 3, 5, 4)


def test_nothing_is_checked_outside_of_tests() -> None:
    script = "import torch; from anchorite.boxes import cxcywh_to_xyxy as f; print(f(torch.ones(4).int()).tolist())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.5, 0.5, 1.5, 1.5]"
