from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from anchorite.anchors import AnchorSet, decode_level
from anchorite.boxes import nms
from anchorite.evaluate import ValidationConfig
from anchorite.predict import PredictConfig, postprocess
from anchorite.predict.postprocess import _least_logit, batch_detections, detections_from_logits
from tests.boxes.slow_nms import slow_nms
from tests.predict.fakes import plant, silent_logits

P5 = AnchorSet.coco_p5()


def plain_detections(logits, anchors, config):
    """Everything decoded, every score compared, one image and one place after another."""
    found = []
    for image in range(logits[0].shape[0]):
        boxes, scores, class_ids = [], [], []
        for number, level in enumerate(logits):
            decoded, others = decode_level(
                level[image : image + 1].float(), anchors.cells()[number], anchors.strides[number]
            )
            for (cx, cy, w, h), place in zip(decoded[0].tolist(), others[0], strict=True):
                by_class = (place[0].sigmoid() * place[1:].sigmoid()).tolist()
                best = [place[1:].tolist().index(max(place[1:].tolist()))]
                for class_id in range(len(by_class)) if config.multi_label else best:
                    if by_class[class_id] >= config.confidence:
                        boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
                        scores.append(by_class[class_id])
                        class_ids.append(class_id)
        first = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: config.max_candidates]
        boxes, scores, class_ids = ([values[i] for i in first] for values in (boxes, scores, class_ids))
        kept = slow_nms(
            boxes, scores, None if config.class_agnostic else class_ids, config.iou_threshold, config.max_detections
        )
        found.append([(boxes[i], scores[i], class_ids[i]) for i in kept])
    return found


def random_logits(seed, num_classes, anchors=P5, num_images=2, height=96, width=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    levels = [
        torch.randn(num_images, anchors.num_anchors, 5 + num_classes, height // s, width // s, generator=generator) * 2
        for s in anchors.strides
    ]
    for level in levels:
        level[:, :, 4] -= 2
    return [level.to(dtype) for level in levels]


def check_equals_plain(logits, anchors, config):
    expected = plain_detections(logits, anchors, config)
    found = detections_from_logits(logits, anchors, config)
    assert len(found) == len(expected)
    for raw, rows in zip(found, expected, strict=True):
        assert raw.boxes_xyxy.dtype == torch.float32
        assert raw.scores.dtype == torch.float32
        assert raw.class_ids.tolist() == [row[2] for row in rows]
        torch.testing.assert_close(raw.scores, torch.tensor([row[1] for row in rows], dtype=torch.float32))
        torch.testing.assert_close(raw.boxes_xyxy, torch.tensor([row[0] for row in rows]).reshape(-1, 4))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_equals_the_plain_implementation(seed, num_classes, multi_label, class_agnostic):
    config = PredictConfig(confidence=0.2, multi_label=multi_label, class_agnostic=class_agnostic, max_detections=40)
    found = check_equals_plain(random_logits(seed, num_classes), P5, config)
    assert any(len(raw) > 0 for raw in found)


@pytest.mark.parametrize(
    "anchors",
    [AnchorSet.coco_p6(), AnchorSet.from_rows([[12, 14]], [8]), AnchorSet.from_rows([[9, 9, 20, 9]] * 2, [8, 32])],
)
def test_any_number_of_levels_and_anchors(anchors):
    logits = random_logits(5, 3, anchors, height=128, width=64)
    check_equals_plain(logits, anchors, PredictConfig(confidence=0.1, multi_label=True))


@pytest.mark.parametrize("max_candidates", [1, 5, 50])
def test_the_cap_keeps_the_best_candidates(max_candidates):
    config = PredictConfig(confidence=0.05, max_candidates=max_candidates, iou_threshold=0.2)
    check_equals_plain(random_logits(1, 2), P5, config)


def test_low_precision_logits_are_decoded_in_float32():
    logits = random_logits(2, 3, dtype=torch.bfloat16)
    check_equals_plain(logits, P5, PredictConfig(confidence=0.2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("multi_label", [False, True])
def test_logits_with_many_ties_rank_as_the_plain_implementation_ranks_them(seed, multi_label):
    # Whole numbers: scores repeat by the hundred, and are equal in bfloat16 and float32.
    logits = [level.round().to(torch.bfloat16) for level in random_logits(seed, 3)]
    config = PredictConfig(confidence=0.001, multi_label=multi_label, iou_threshold=0.4, max_candidates=120)
    check_equals_plain(logits, P5, config)


@pytest.mark.parametrize("confidence", [0.0, 1e-30, 1e-3, 0.5, 0.999, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_place_that_reaches_the_confidence_is_left_out(confidence, dtype):
    tiny = torch.logspace(-12, 0, 1001)
    ranges = [torch.linspace(low, high, 10_001) for low, high in ((-80, 80), (-7, -6.8), (6.8, 7), (9, 18))]
    logits = torch.cat([tiny, -tiny, *ranges]).to(dtype)
    reaches = logits.float().sigmoid() >= confidence
    assert (logits >= _least_logit(confidence))[reaches].all()
    assert not (logits >= _least_logit(confidence))[logits.float().sigmoid() < confidence * 0.3].any()


def test_a_batch_is_its_images_one_after_another():
    logits = random_logits(7, 3, num_images=5)
    for level in logits:
        level[2, :, 4] = -30.0  # nothing in this one
    config = PredictConfig(confidence=0.1, max_candidates=60)
    batch = batch_detections(logits, P5, config)
    singles = [detections_from_logits([level[i : i + 1] for level in logits], P5, config)[0] for i in range(5)]
    assert batch.counts.tolist() == [len(one) for one in singles]
    assert batch.counts[2] == 0
    for of_batch, single in zip(batch.cpu().split(), singles, strict=True):
        torch.testing.assert_close(of_batch.boxes_xyxy, single.boxes_xyxy)
        assert of_batch.class_ids.tolist() == single.class_ids.tolist()


def test_channels_last_views_give_the_same_bits():
    logits = random_logits(3, 3)
    config = PredictConfig(confidence=0.2)
    permuted = [level.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2) for level in logits]
    for one, other in zip(
        detections_from_logits(logits, P5, config), detections_from_logits(permuted, P5, config), strict=True
    ):
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy)
        assert one.class_ids.tolist() == other.class_ids.tolist()


def test_planted_boxes_come_back_in_their_images_best_first():
    logits = silent_logits(P5, num_classes=4, num_images=3, height=320, width=640)
    plant(logits, P5, 0, (100.5, 80.25, 131.0, 140.0), class_id=3, score=0.6)
    plant(logits, P5, 0, (300.0, 10.0, 600.0, 310.0), class_id=0, score=0.8)
    plant(logits, P5, 2, (-6.0, 3.0, 9.0, 17.0), class_id=1, score=0.7)
    first, second, third = detections_from_logits(logits, P5, PredictConfig())
    assert first.class_ids.tolist() == [0, 3]
    torch.testing.assert_close(first.scores, torch.tensor([0.8, 0.6]), rtol=1e-5, atol=1e-5)
    expected = torch.tensor([[300.0, 10.0, 600.0, 310.0], [100.5, 80.25, 131.0, 140.0]])
    torch.testing.assert_close(first.boxes_xyxy, expected, rtol=0, atol=1e-3)
    assert len(second) == 0
    assert second.boxes_xyxy.shape == (0, 4)
    torch.testing.assert_close(third.boxes_xyxy, torch.tensor([[-6.0, 3.0, 9.0, 17.0]]), rtol=0, atol=1e-3)


def test_one_class_still_multiplies_objectness_and_class():
    logits = silent_logits(P5, num_classes=1, num_images=1, height=64, width=64)
    logits[0][0, 1, 4, 3, 2] = 0.0
    logits[0][0, 1, 5, 3, 2] = 0.0
    found = detections_from_logits(logits, P5, PredictConfig(confidence=0.2))
    assert found[0].scores.tolist() == [0.25]


def test_a_score_equal_to_the_confidence_counts():
    logits = silent_logits(P5, num_classes=2, num_images=1, height=64, width=64)
    logits[1][0, 0, 4, 1, 1] = 0.0
    logits[1][0, 0, 5, 1, 1] = 40.0
    for multi_label in (False, True):
        config = PredictConfig(confidence=0.5, multi_label=multi_label)
        assert detections_from_logits(logits, P5, config)[0].scores.tolist() == [0.5]


def test_the_best_class_is_told_apart_where_probabilities_saturate():
    logits = silent_logits(P5, num_classes=3, num_images=1, height=64, width=64)
    logits[0][0, 0, 4:, 0, 0] = torch.tensor([30.0, 30.0, 40.0, 35.0])
    assert detections_from_logits(logits, P5, PredictConfig())[0].class_ids.tolist() == [1]


def test_classes_compete_only_when_asked_to():
    logits = silent_logits(P5, num_classes=2, num_images=1, height=64, width=64)
    plant(logits, P5, 0, (10, 10, 40, 40), class_id=0, score=0.9)
    plant(logits, P5, 0, (10, 10, 40, 40), class_id=1, score=0.8)
    config = PredictConfig(multi_label=True)
    assert detections_from_logits(logits, P5, config)[0].class_ids.tolist() == [0, 1]
    agnostic = PredictConfig(multi_label=True, class_agnostic=True)
    assert detections_from_logits(logits, P5, agnostic)[0].class_ids.tolist() == [0]


def test_extreme_logits_stay_finite():
    logits = [level.clamp(-1, 1) * 1e4 for level in random_logits(4, 2)]
    for raw in detections_from_logits(logits, P5, PredictConfig(confidence=0.001)):
        assert raw.boxes_xyxy.isfinite().all()
        assert raw.scores.isfinite().all()


def test_logits_that_are_not_numbers_find_nothing():
    logits = [torch.full_like(level, torch.nan) for level in random_logits(4, 2)]
    assert [len(raw) for raw in detections_from_logits(logits, P5, PredictConfig(confidence=0.0))] == [0, 0]


def test_of_many_classes_some_images_at_a_time_are_the_same(monkeypatch):
    logits, config = random_logits(4, 3, num_images=5), PredictConfig(confidence=0.05, multi_label=True)
    whole = batch_detections(logits, P5, config)
    sizes, likely = [], postprocess._likely_cells
    monkeypatch.setattr(postprocess, "_NUMBERS_CPU", sum(level[:2].numel() for level in logits))
    monkeypatch.setattr(postprocess, "_likely_cells", lambda *args: sizes.append(len(args[0][0])) or likely(*args))
    parts = batch_detections(logits, P5, config)
    assert sizes == [2, 1, 2]
    assert all(torch.equal(one, other) for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True))


def test_no_graph_is_kept():
    logits = [level.requires_grad_() for level in random_logits(0, 2)]
    assert not detections_from_logits(logits, P5, PredictConfig(confidence=0.01))[0].boxes_xyxy.requires_grad


def test_the_earlier_name_of_the_iou_threshold_is_read():
    assert PredictConfig(iou_limit=0.3) == PredictConfig(iou_threshold=0.3)
    assert ValidationConfig.model_validate({"iou_limit": 0.3}).iou_threshold == 0.3
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 3.0, 1.0]])
    assert len(nms(boxes, torch.tensor([0.9, 0.8]), None, iou_limit=0.4, max_detections=2)) == 2
    with pytest.raises(ValueError, match="iou_limit"):
        PredictConfig(iou_limit=0.3, iou_threshold=0.4)


@pytest.mark.parametrize(
    ("field", "value"), [("confidence", 1.5), ("iou_threshold", -0.1), ("max_detections", 0), ("max_candidates", 0)]
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValidationError, match=field):
        PredictConfig(**{field: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_finds_what_the_cpu_finds():
    logits = random_logits(6, 3)
    config = PredictConfig(confidence=0.2)
    on_cuda = detections_from_logits([level.cuda() for level in logits], P5, config)
    for one, other in zip(detections_from_logits(logits, P5, config), on_cuda, strict=True):
        assert one.class_ids.tolist() == other.class_ids.tolist()
        torch.testing.assert_close(one.boxes_xyxy, other.cpu().boxes_xyxy, rtol=1e-4, atol=1e-3)
