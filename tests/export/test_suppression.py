"""Suppression built into ONNX gives, for the same boxes and scores, the very detections that ours gives."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from anchorite.errors import InputError
from anchorite.export.nms_graph import suppression_model
from anchorite.export.onnx_format import OPSET
from anchorite.predict import PredictConfig, decoded_detections

NUM_CLASSES = 4


def crowded(num_images: int, num_cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(num_images, num_cells, 2, generator=generator) * 100
    sides = torch.rand(num_images, num_cells, 2, generator=generator) * 50
    scores = torch.rand(num_images, num_cells, NUM_CLASSES, generator=generator) ** 3
    return torch.cat([corners, corners + sides], dim=-1), scores


def run(limits: PredictConfig, boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model = suppression_model(limits, NUM_CLASSES, 10, OPSET)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    detections, counts = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
    return torch.from_numpy(detections), torch.from_numpy(counts)


@pytest.mark.parametrize(
    "limits",
    [
        PredictConfig(max_detections=50),
        PredictConfig(multi_label=True, confidence=0.01, max_detections=200),
        PredictConfig(multi_label=True, iou_threshold=0.7),
        PredictConfig(class_agnostic=True, max_detections=7),
        PredictConfig(confidence=1.0),
        PredictConfig(confidence=0.0, max_detections=20),
        PredictConfig(iou_threshold=0.0),
        PredictConfig(iou_threshold=1.0, max_detections=1000),
    ],
)
def test_it_is_exactly_ours(limits: PredictConfig) -> None:
    boxes, scores = crowded(3, 300)
    scores[1] = 0  # an image in which nothing is there
    detections, counts = run(limits, boxes, scores)
    expected = decoded_detections(boxes, scores, limits)
    assert counts.tolist() == expected.counts.tolist()
    assert detections.shape == (3, limits.max_detections, 6)
    for rows, count, of_image in zip(detections, counts.tolist(), expected.split(), strict=True):
        assert torch.equal(rows[:count, :4], of_image.boxes_xyxy)
        assert torch.equal(rows[:count, 4], of_image.scores)
        assert torch.equal(rows[:count, 5].long(), of_image.class_ids)
        assert not rows[count:].any()


def test_a_score_equal_to_the_confidence_counts() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60]]])
    scores = torch.zeros(1, 2, NUM_CLASSES)
    scores[0, :, 2] = torch.tensor([0.25, 0.2499999])
    detections, counts = run(PredictConfig(confidence=0.25), boxes, scores)
    assert counts.tolist() == [1]
    assert detections[0, 0].tolist() == [0, 0, 10, 10, 0.25, 2]


def test_what_cannot_be_built_in_is_refused() -> None:
    with pytest.raises(InputError, match="cannot both be built in"):
        suppression_model(PredictConfig(multi_label=True, class_agnostic=True), NUM_CLASSES, 10, OPSET)
