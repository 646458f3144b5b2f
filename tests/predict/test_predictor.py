from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model import Detector, WeightsInfo, save_weights
from anchorite.predict import PredictConfig, Predictor, detections_from_logits, load
from anchorite.predict.postprocess import Limits
from tests.predict.fakes import SquareFinder, plant, silent_logits

P5 = AnchorSet.coco_p5()
INFO = WeightsInfo(size="n", class_names=("red", "green", "blue"), anchors=P5, image_size=320)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(SquareFinder(P5), INFO, device="cpu")


def picture(height: int, width: int, box: tuple[int, int, int, int], channel: int = 0) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2], channel] = 255
    return image


def check_one(detections, class_id: int, box, tolerance: float) -> None:
    assert detections.class_ids.tolist() == [class_id]
    assert np.abs(detections.boxes_xyxy[0].numpy() - np.array(box)).max() <= tolerance


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (320, 320, (50, 60, 150, 200)),
        (240, 320, (50, 60, 150, 200)),
        (1200, 900, (300, 200, 700, 950)),
        (333, 1000, (100, 30, 600, 300)),
        (97, 61, (10, 20, 50, 70)),
        (640, 480, (0, 0, 480, 640)),
        (500, 37, (5, 100, 30, 300)),
    ],
)
def test_boxes_come_back_in_the_pixels_of_the_original(predictor, height, width, box):
    # Bright edges move by about a network pixel at most when the image is resized.
    tolerance = 1.1 * max(height, width) / 320 + 0.01
    for channel in range(3):
        (found,) = predictor.predict(picture(height, width, box, channel))
        check_one(found, channel, box, tolerance)
        assert found.image_size == (height, width)
        assert found[0].class_name == INFO.class_names[channel]


def test_an_image_that_needs_no_resizing_is_exact(predictor):
    (found,) = predictor.predict(picture(200, 320, (51, 62, 153, 184), 1))
    check_one(found, 1, (51, 62, 153, 184), 1e-3)


def test_all_kinds_of_images_give_the_same(predictor, tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    image = picture(240, 320, (50, 60, 150, 200), 2)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[..., ::-1])
    kinds = [image, path, str(path), pillow.fromarray(image), pillow.open(path), pillow.open(path).convert("P")]
    for kind in kinds:
        check_one(predictor.predict(kind)[0], 2, (50, 60, 150, 200), 1.02)
    everything = predictor.predict(kinds)
    assert len(everything) == len(kinds)
    for found in everything:
        check_one(found, 2, (50, 60, 150, 200), 1.02)
    assert [found.source for found in everything] == ["", str(path), str(path), "", str(path), ""]
    assert len(predictor.predict(np.stack([image] * 3))) == 3
    assert len(predictor.predict(iter([image, image]))) == 2
    assert predictor.predict([]) == []


def test_mixed_sizes_keep_their_order_in_batches_of_equal_size(predictor):
    sizes = [(320, 320), (160, 320), (640, 640), (320, 320), (100, 200), (300, 100), (320, 320)]
    images = [picture(h, w, (w // 4, h // 4, w // 2 + i, h // 2)) for i, (h, w) in enumerate(sizes)]
    found = predictor.predict(images, batch_size=5)
    assert [detections.image_size for detections in found] == sizes
    for i, (detections, (h, w)) in enumerate(zip(found, sizes, strict=True)):
        check_one(detections, 0, (w // 4, h // 4, w // 2 + i, h // 2), 1.01 * max(h, w) / 320 + 0.01)
    assert predictor.detector.batch_shapes == [
        (3, 3, 320, 320),
        (2, 3, 160, 320),
        (1, 3, 320, 128),
        (1, 3, 320, 320),
    ]


def test_image_size_changes_what_the_network_sees(predictor):
    check_one(predictor.predict(picture(320, 320, (64, 64, 256, 128)), image_size=640)[0], 0, (64, 64, 256, 128), 0.51)
    assert predictor.detector.batch_shapes == [(1, 3, 640, 640)]


def test_a_pair_is_height_and_width_of_every_input(predictor):
    images = [
        picture(192, 192, (40, 50, 100, 120)),
        picture(160, 320, (51, 62, 153, 94)),
        picture(96, 160, (8, 8, 40, 40)),
    ]
    found = predictor.predict(images, image_size=(192, 320))
    assert predictor.detector.batch_shapes == [(3, 3, 192, 320)]
    check_one(found[0], 0, (40, 50, 100, 120), 1e-3)  # neither was resized
    check_one(found[1], 0, (51, 62, 153, 94), 1e-3)
    check_one(found[2], 0, (8, 8, 40, 40), 0.51)  # twice as large
    predictor.predict(images[0], image_size=192)
    assert predictor.detector.batch_shapes[-1] == (1, 3, 192, 192)


def test_boxes_beyond_the_image_are_clipped():
    class Generous(SquareFinder):
        def forward(self, images):
            logits = silent_logits(P5, 3, 1, 320, 320)
            plant(logits, P5, 0, (-20.0, 30.0, 350.0, 330.0), 1)
            return logits

    (found,) = Predictor(Generous(P5), INFO, device="cpu").predict(picture(320, 320, (0, 0, 1, 1)))
    check_one(found, 1, (0, 30, 320, 320), 1e-3)
    assert found.boxes_xyxy.max() == 320


def test_boxes_wholly_in_the_padding_are_dropped():
    class Beside(SquareFinder):
        def forward(self, images):
            images[:] = 0
            images[:, 0, :10, 100:200] = 1
            return super().forward(images)

    # 320 x 40 is centred on 320 x 64, so rows 0..12 are padding.
    beside = Predictor(Beside(P5), INFO, device="cpu")
    assert len(beside.predict(picture(40, 320, (0, 0, 10, 10)))[0]) == 0


def test_settings_reach_the_suppression(predictor):
    image = picture(320, 320, (50, 60, 150, 200), 0) | picture(320, 320, (50, 60, 150, 200), 1)
    assert len(predictor.predict(image, multi_label=True)[0]) == 2
    assert len(predictor.predict(image, multi_label=True, class_agnostic=True)[0]) == 1
    assert len(predictor.predict(image, multi_label=True, max_detections=1)[0]) == 1
    assert len(predictor.predict(image, confidence=0.95)[0]) == 0


def test_stream_expands_folders_and_reads_no_more_than_a_batch_ahead(predictor, tmp_path: Path):
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(100, 100, (20, 20, 60, 60)))
    found = list(predictor.stream([str(tmp_path), tmp_path / "[ab].png", picture(64, 64, (8, 8, 40, 40))]))
    assert [Path(detections.source).name for _, detections in found] == [
        "a.png",
        "b.png",
        "c.png",
        "a.png",
        "b.png",
        "",
    ]
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield picture(64, 64, (8, 8, 40, 40))

    stream = predictor.stream(endless(), batch_size=4)
    _, first = next(stream)
    assert len(first) == 1
    assert taken == 8
    stream.close()


def test_stream_hands_over_the_frame_of_the_boxes(predictor):
    image = picture(90, 120, (10, 20, 50, 70))
    ((same, found),) = predictor.stream(image, PredictConfig())
    assert np.array_equal(same, image)
    assert found.image_size == (90, 120)


def test_an_unreadable_image_is_raised_or_reported_and_the_others_go_on(predictor, tmp_path: Path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    cv2.imwrite(str(good), picture(100, 100, (20, 20, 60, 60)))
    bad.write_bytes(b"no image at all")
    sources = [good, bad, tmp_path / "missing.jpg", good]
    with pytest.raises(InputError, match=r"bad\.jpg"):
        predictor.predict([good, bad])
    with pytest.raises(InputError, match=r"bad\.jpg"):
        list(predictor.stream([good, bad]))
    errors: list[Exception] = []
    assert len(list(predictor.stream(sources, on_unreadable=errors.append))) == 2
    assert sorted(Path(str(error).split(":")[0]).name for error in errors) == ["bad.jpg", "missing.jpg"]
    assert list(predictor.stream(bad, on_unreadable=errors.append)) == []
    assert "bad.jpg" in str(errors[2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        ([torch.zeros(3, 4, 4)], "Tensor"),
        (7, "int"),
        ([None], "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_name(predictor, wrong, message):
    with pytest.raises(InputError, match=message):
        predictor.predict(wrong)


def test_pillow_modes_without_a_fixed_range_are_refused(predictor):
    pillow = pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match="mode I;16"):
        predictor.predict(pillow.new("I;16", (8, 8)))


def test_every_limit_can_be_given_by_name():
    assert Limits.__annotations__.keys() == PredictConfig.model_fields.keys()


@pytest.mark.parametrize("settings", [{"image_size": 16}, {"batch_size": 0}, {"confidence": 2.0}, {"confidense": 0.5}])
def test_settings_out_of_range_or_unknown_are_refused(predictor, settings):
    with pytest.raises(ValueError, match=r"size|confiden[cs]e"):
        predictor.predict(picture(64, 64, (8, 8, 40, 40)), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu!"}, "no such device"),
        ({"device": "meta"}, "not supported"),
        ({"device": "cuda:99"}, "CUDA device"),
        ({"device": "cpu", "precision": "fp16"}, "fp16"),
        ({"device": "cpu", "precision": "int8"}, "no such precision"),
    ],
)
def test_devices_and_precisions_that_are_not_there(settings, message):
    with pytest.raises(InputError, match=message):
        Predictor(SquareFinder(P5), INFO, **settings)


def test_output_that_is_not_finite_is_an_error_not_an_empty_answer():
    class Diverged(SquareFinder):
        def forward(self, images):
            return [level * torch.nan for level in super().forward(images)]

    with pytest.raises(InputError, match="not finite"):
        Predictor(Diverged(P5), INFO, device="cpu").predict(picture(64, 64, (8, 8, 40, 40)))


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A random detector that reacts to its input: BatchNorm has seen a batch, and scores lie far apart."""
    torch.manual_seed(0)
    detector = Detector("n", 3, P5).train()
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        detector(torch.rand(4, 3, 128, 192))
        for predictor in detector.head.predictors.values():
            predictor.weight *= 4
            predictor.bias.view(3, 8)[:, 4] += 2
    return detector


def test_a_real_detector_gives_what_its_parts_give(detector):
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    training_before = detector.training
    predictor = Predictor(detector, INFO, device="cpu")
    (found,) = predictor.predict(image, confidence=0.05, image_size=192)
    with torch.no_grad():
        detector.eval()
        logits = detector(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        detector.train(training_before)
    (expected,) = detections_from_logits(logits, P5, PredictConfig(confidence=0.05))
    clipped = expected.boxes_xyxy.clamp(min=0).minimum(torch.tensor([192.0, 128.0, 192.0, 128.0]))
    visible = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    # As sets, because a random network magnifies rounding: near-equal scores may swap, close calls may fall otherwise.
    rows = torch.cat([found.boxes_xyxy, 100 * found.scores[:, None], 1000 * found.class_ids[:, None]], dim=1)
    expected_rows = torch.cat([clipped, 100 * expected.scores[:, None], 1000 * expected.class_ids[:, None]], dim=1)[
        visible
    ]
    distances = torch.cdist(rows, expected_rows, p=torch.inf)
    assert len(found) > 50
    assert (distances.amin(dim=0) < 0.1).float().mean() > 0.95
    assert (distances.amin(dim=1) < 0.1).float().mean() > 0.95
    assert detector.training is training_before


def test_a_weight_file_loads_into_a_predictor(detector, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, detector, INFO)
    loaded = load(path, device="cpu")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    (one,) = loaded.predict(image, confidence=0.05)
    (other,) = Predictor(detector, INFO, device="cpu").predict(image, confidence=0.05)
    assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
    assert len(one) > 0
    assert repr(loaded) == "Predictor(size n, 3 classes (red, green, blue), 320 px, cpu float32)"


def test_bfloat16_runs_on_the_cpu_and_finds_about_the_same(detector):
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    (low,) = Predictor(detector, INFO, "cpu", "bf16").predict(image, confidence=0.05)
    (full,) = Predictor(detector, INFO, "cpu").predict(image, confidence=0.05)
    assert low.boxes_xyxy.dtype == torch.float32
    assert abs(float(low.scores[0]) - float(full.scores[0])) < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_finds_what_the_cpu_finds(detector):
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    (on_cuda,) = Predictor(detector, INFO, "cuda", "fp32").predict(image, confidence=0.05)
    (on_cpu,) = Predictor(detector, INFO, "cpu").predict(image, confidence=0.05)
    assert on_cuda.boxes_xyxy.device.type == "cpu"
    torch.testing.assert_close(on_cuda.scores[:5], on_cpu.scores[:5], rtol=1e-2, atol=1e-3)
