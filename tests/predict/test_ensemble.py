from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model import WeightsInfo
from anchorite.predict import Ensemble, Member, PredictConfig, Predictor, RawDetections, Runtime, ViewConfig
from anchorite.predict.frames import FLUSH
from anchorite.predict.views import TTAView, ViewTransform, class_map, merge_windows
from tests.predict.fakes import SquareFinder, plant, silent_logits
from tests.predict.test_predictor import INFO, P5, check_one, picture

PURPLE = WeightsInfo(size="n", class_names=("purple",), anchors=P5, image_size=320)


def finder(network: SquareFinder | None = None, info: WeightsInfo = INFO) -> Predictor:
    return Predictor(network or SquareFinder(P5), info, device="cpu")


def alone(predictor: Predictor, **settings: object) -> Ensemble:
    return Ensemble([Member(predictor)], ViewConfig(**settings))  # type: ignore[arg-type]


class Blind(SquareFinder):
    """Finds nothing."""

    def forward(self, images):
        return silent_logits(self.anchors, self.num_classes, images.shape[0], *images.shape[2:])


class Rolled(SquareFinder):
    """Answers with the class after the right one."""

    def forward(self, images):
        return super().forward(images.roll(1, dims=1))


class FixedSide:
    """A runtime that takes one side alone, and notes what it is asked for."""

    def __init__(self, inner: Runtime) -> None:
        self.inner, self.info, self.name = inner, inner.info, "fixed"
        self.fixed_side, self.least_confidence = 320, 0.25
        self.shapes: list[tuple[int, ...]] = []
        self.configs: list[PredictConfig] = []

    def outputs(self, images):
        self.shapes.append(tuple(images.shape[2:]))
        return self.inner.outputs(images)

    def detections(self, outputs, config):
        self.configs.append(config)
        return self.inner.detections(outputs, config)


def test_one_plain_look_is_what_the_predictor_gives():
    sizes = [(320, 320), (160, 320), (640, 640), (320, 320), (100, 200), (97, 61), (320, 320)]
    images = [picture(h, w, (w // 4, h // 4, w // 2 + i, h // 2), i % 3) for i, (h, w) in enumerate(sizes)]
    expected = finder().predict(images)
    for batch_size in (1, 3, 100):
        found = alone(finder()).predict(images, batch_size=batch_size)
        assert [one.image_size for one in found] == sizes
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
            assert torch.equal(one.scores, other.scores)
            assert torch.equal(one.class_ids, other.class_ids)


def test_views_that_agree_lose_nothing_and_are_averaged():
    predictor = finder()
    (found,) = alone(predictor, augment=True).predict(picture(200, 320, (50, 60, 150, 180), 1))
    check_one(found, 1, (50, 60, 150, 180), 0.5)
    assert found.scores.tolist() == pytest.approx([0.9], abs=1e-5)
    assert {shape[2:] for shape in predictor.detector.batch_shapes} == {(160, 256), (224, 320), (256, 384)}
    assert sum(shape[0] for shape in predictor.detector.batch_shapes) == 4


@pytest.mark.parametrize("tile_only", [False, True])
@pytest.mark.parametrize("augment", [False, True])
def test_objects_at_seams_are_found_once_and_whole(tile_only, augment):
    rng = np.random.default_rng(0)
    ensemble = alone(finder(), tile=320, tile_overlap=0.5, whole_image=not tile_only, augment=augment)
    images, truths = [], []
    for _ in range(4 if augment else 12):
        height, width = rng.integers(330, 900, 2)
        image, boxes = np.zeros((height, width, 3), np.uint8), []
        for channel in range(3):
            sides = rng.integers(60, 160, 2)  # at most the overlap, so whole in some window
            low = rng.integers(0, (width, height) - sides)
            boxes.append([*low, *(low + sides)])
            image[low[1] : low[1] + sides[1], low[0] : low[0] + sides[0], channel] = 255
        images.append(image)
        truths.append(boxes)
    for found, boxes, image in zip(ensemble.predict(images), truths, images, strict=True):
        assert sorted(found.class_ids.tolist()) == [0, 1, 2]
        order = found.class_ids.argsort()
        # The view of the whole may win, whose pixels are as many times coarser.
        tolerance = 1.0 if tile_only and not augment else 1.1 * max(image.shape) / 256
        assert np.abs(found.boxes_xyxy[order].numpy() - np.array(boxes)).max() <= tolerance


def test_cut_parts_do_stay_beside_the_whole_where_windows_are_not_joined(monkeypatch):
    # What the test above would miss if pictures and windows happened never to cut anything.
    image = picture(320, 600, (250, 100, 350, 200))
    tiled = alone(finder(), tile=320, tile_overlap=0.2, whole_image=True)
    assert len(tiled.predict(image)[0]) == 1
    monkeypatch.setattr("anchorite.predict.views.touches_seam", lambda boxes, *_: torch.zeros(len(boxes)) > 0)
    assert len(tiled.predict(image)[0]) > 1


def test_batches_hold_windows_of_one_image_and_of_several():
    predictor = finder()
    images = [picture(320, 640, (8, 8, 100, 100))] * 3
    ensemble = alone(predictor, tile=320, tile_overlap=0.0, whole_image=False)
    assert len(ensemble.predict(images, batch_size=4)) == 3
    assert predictor.detector.batch_shapes == [(4, 3, 320, 320), (2, 3, 320, 320)]
    predictor.detector.batch_shapes.clear()
    assert len(alone(predictor, tile=320).predict([picture(300, 320, (8, 8, 99, 99))] * 2, batch_size=4)) == 2
    assert predictor.detector.batch_shapes == [(2, 3, 320, 320)]  # no larger than a tile: seen once, as a whole


def test_detectors_are_fused_by_weight_and_classes_go_by_name():
    image = picture(320, 320, (50, 60, 150, 200), 2)
    other_names = WeightsInfo("n", ("blue", "red", "green"), P5, 320)
    agreeing = Member(finder(Rolled(P5), other_names))
    (found,) = Ensemble([Member(finder()), agreeing]).predict(image)
    check_one(found, 2, (50, 60, 150, 200), 1e-3)
    assert found.class_names == INFO.class_names
    assert found.scores.tolist() == pytest.approx([0.9], abs=1e-5)
    for weight, expected in ((1.0, 0.45), (3.0, 0.675)):
        (found,) = Ensemble([Member(finder(), weight), Member(finder(Blind(P5)))]).predict(image)
        assert found.scores.tolist() == pytest.approx([expected], abs=1e-5)
    # A look more or less of a detector does not change what it counts.
    members = [Member(finder()), Member(Predictor.of(FixedSide(finder(Blind(P5)).runtime)))]
    (found,) = Ensemble(members, ViewConfig(augment=True)).predict(image)
    assert found.scores.tolist() == pytest.approx([0.45], abs=1e-4)


def test_each_detector_has_its_own_size_and_stride():
    large = WeightsInfo("n6", INFO.class_names, AnchorSet.coco_p6(), 640)
    first, second = finder(), finder(SquareFinder(AnchorSet.coco_p6()), large)
    (found,) = Ensemble([Member(first), Member(second)]).predict(picture(160, 320, (40, 40, 120, 120)))
    check_one(found, 0, (40, 40, 120, 120), 0.5)
    assert first.detector.batch_shapes == [(1, 3, 160, 320)]
    assert second.detector.batch_shapes == [(1, 3, 320, 640)]


def test_less_sure_looks_count_but_the_answer_keeps_to_the_limits():
    class Unsure(SquareFinder):
        def forward(self, images):
            logits = silent_logits(P5, 3, images.shape[0], *images.shape[2:])
            for number in range(images.shape[0]):
                plant(logits, P5, number, (50.0, 60.0, 150.0, 200.0), 0, score=0.2)
            return logits

    image = picture(320, 320, (50, 60, 150, 200))
    members = [Member(finder()), Member(finder(Unsure(P5)))]
    (found,) = Ensemble(members).predict(image, confidence=0.5)
    assert found.scores.tolist() == pytest.approx([0.55], abs=1e-5)
    assert len(Ensemble(members).predict(image, confidence=0.56)[0]) == 0
    both = image | picture(320, 320, (50, 60, 150, 200), 1)
    twice = [Member(finder()), Member(finder())]
    assert len(Ensemble(twice).predict(both, multi_label=True)[0]) == 2
    assert len(Ensemble(twice).predict(both, multi_label=True, max_detections=1)[0]) == 1
    assert len(Ensemble(twice).predict(both, multi_label=True, class_agnostic=True)[0]) == 1


def test_what_a_runtime_does_not_take_is_not_asked_of_it():
    runtime = FixedSide(finder().runtime)
    member = Member(Predictor.of(runtime))
    (found,) = Ensemble([member, Member(finder())], ViewConfig(augment=True)).predict(
        picture(160, 320, (40, 40, 120, 120)), confidence=0.3
    )
    check_one(found, 0, (40, 40, 120, 120), 0.5)
    assert set(runtime.shapes) == {(320, 320)}
    assert {config.confidence for config in runtime.configs} == {0.25}
    with pytest.raises(InputError, match="exported for 320 px alone"):
        Ensemble([member]).predict(picture(64, 64, (8, 8, 40, 40)), image_size=640)


def test_answers_come_in_order_and_what_cannot_be_read_is_passed_over(tmp_path: Path):
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(300, 300 + 100 * number, (20, 20, 60, 60)))
    (tmp_path / "2.png").write_bytes(b"no image")
    ensemble = alone(finder(), tile=320, augment=True)
    errors: list[Exception] = []
    found = list(ensemble.stream(tmp_path, batch_size=3, on_unreadable=errors.append))
    assert [Path(one.source).name for _, one in found] == ["0.png", "1.png", "3.png", "4.png"]
    assert [image.shape[1] for image, _ in found] == [one.image_size[1] for _, one in found] == [300, 400, 600, 700]
    assert "2.png" in str(errors[0])
    with pytest.raises(InputError, match=r"2\.png"):
        list(ensemble.stream(tmp_path))


def test_at_a_lull_everything_there_is_answered():
    answered = 0

    def images() -> Iterator[object]:
        for _ in range(3):
            yield picture(64, 64, (8, 8, 40, 40))
        yield FLUSH
        assert answered == 3
        yield picture(64, 64, (8, 8, 40, 40))

    for _ in alone(finder(), augment=True).stream(images(), batch_size=50):
        answered += 1
    assert answered == 4


def test_no_more_than_a_few_images_are_in_hand():
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            # The first has an input of its own, for which no full batch ever comes; all others would wait for it.
            taken += 1
            yield picture(64, 64 if taken == 1 else 128, (8, 8, 40, 40))

    stream = alone(finder()).stream(endless(), batch_size=4)
    next(stream)
    assert taken <= 8
    stream.close()


def test_of_a_large_image_no_more_than_two_batches_of_windows_are_made():
    image = np.zeros((6000, 6000, 3), np.uint8)
    image[3000:3100, 3000:3100, 0] = 255
    ensemble = alone(finder(Blind(P5)), tile=320, whole_image=False)
    assert len(ensemble.config.windows(6000, 6000)) == 24 * 24
    tracemalloc.start()
    try:
        ensemble.predict(image, batch_size=4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    batch = 4 * 320 * 320 * 3
    assert batch < peak < 5 * batch


def test_detectors_that_do_not_fit_are_refused():
    with pytest.raises(
        InputError, match=r"the network: cannot be fused .* lacks 'blue', 'green', 'red' and has 'purple'"
    ):
        Ensemble([Member(finder()), Member(finder(info=PURPLE))])
    with pytest.raises(InputError, match="no detectors"):
        Ensemble([])
    with pytest.raises(InputError, match="tile 31: must be at least 32"):
        alone(finder(), tile=31)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="must be a finite number above 0"):
            Ensemble([Member(finder(), weight)])
    with pytest.raises(InputError, match="image size 16: must be at least 32"):
        alone(finder()).predict(picture(64, 64, (8, 8, 40, 40)), image_size=16)
    with pytest.raises(InputError, match="batch size 0: must be at least 1"):
        alone(finder()).predict(picture(64, 64, (8, 8, 40, 40)), batch_size=0)


def test_names_that_occur_twice_fit_only_in_the_same_order():
    assert class_map(("a", "b", "b"), ("a", "b", "b")).tolist() == [0, 1, 2]
    assert class_map(("a", "b"), ("b", "a")).tolist() == [1, 0]
    for theirs in (("b", "a", "b"), ("a", "b")):
        with pytest.raises(InputError, match="twice"):
            class_map(("a", "b", "b"), theirs)


def test_as_many_boxes_of_windows_are_compared_as_may_be_asked_for():
    view = ViewTransform.of((0, 0, 320, 320), TTAView(320), 32)
    other = ViewTransform.of((320, 0, 640, 320), TTAView(320), 32)
    boxes = torch.tensor([[float(x), 50.0, x + 20.0, 80.0] for x in (50, 90, 130, 170, 210)])
    raw = RawDetections(boxes, torch.linspace(0.9, 0.5, 5), torch.zeros(5, dtype=torch.int64))
    for config, expected in (
        (PredictConfig(max_candidates=3, max_detections=1), 1),
        (PredictConfig(max_candidates=3, max_detections=100), 10),
        (PredictConfig(max_candidates=3, max_detections=4), 4),
    ):
        joined = merge_windows([(view, raw), (other, raw)], (320, 640), config)
        assert len(joined) == expected
        assert joined.scores.tolist() == sorted(joined.scores.tolist(), reverse=True)
