from __future__ import annotations

import json

import pytest
import torch

from anchorite.boxes import Detections


@pytest.fixture
def detections() -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]),
        scores=torch.tensor([0.75, 0.5]),
        class_ids=torch.tensor([1, 0]),
        class_names=("cat", "dog"),
        image_size=(50, 100),
        source="a.jpg",
    )


def test_indexing_and_iteration_agree(detections):
    assert [detections[0], detections[1]] == list(detections)
    assert detections[-1] == ((5.0, 6.0, 7.0, 8.0), 0.5, 0, "cat")
    with pytest.raises(IndexError):
        detections[2]


def test_to_dict_is_ready_for_json(detections):
    assert json.loads(json.dumps(detections.to_dict())) == {
        "source": "a.jpg",
        "width": 100,
        "height": 50,
        "detections": [
            {"class_name": "dog", "class_id": 1, "score": 0.75, "box_xyxy": [1.0, 2.0, 3.0, 4.0]},
            {"class_name": "cat", "class_id": 0, "score": 0.5, "box_xyxy": [5.0, 6.0, 7.0, 8.0]},
        ],
    }


def test_repr_counts_by_name(detections):
    assert repr(detections) == "Detections(a.jpg: 1 dog, 1 cat; image 100x50)"
