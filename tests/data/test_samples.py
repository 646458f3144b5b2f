"""Training samples: reproducible, labelled where the pixels are, and free of what must not be a target."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from anchorite.data.augment import AugmentConfig
from anchorite.data.dataset import Record
from anchorite.data.images import FILL, letterbox
from anchorite.data.random_numbers import rng_of
from anchorite.data.samples import SampleConfig, SampleKey, TrainSamples, draw_tiles
from anchorite.data.store import ImageStore
from tests.processes import ForkedProcess

SIZE = 160


def write_record(folder: Path, number: int, boxes_xyxy: np.ndarray, size_hw: tuple[int, int]) -> Record:
    """An image of dark noise with a bright rectangle, its colour its class, where each box is."""
    height, width = size_hw
    image = np.random.default_rng(number).integers(0, 60, (height, width, 3), dtype=np.uint8)
    class_ids = np.arange(len(boxes_xyxy)) % 3
    for class_id, (x0, y0, x1, y1) in zip(class_ids, boxes_xyxy.astype(int), strict=True):
        image[y0:y1, x0:x1] = 0
        image[y0:y1, x0:x1, 2 - class_id] = 255  # written as BGR
    path = folder / f"image {number}.png"
    cv2.imwrite(str(path), image)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    ignored = np.zeros(len(boxes_xyxy), bool)
    origins = ("",) * len(boxes_xyxy)
    return Record(path, width, height, boxes_xyxy.astype(np.float64), class_ids, ignored, sides.prod(axis=1), origins)


def make_records(folder: Path, num_records: int = 6) -> list[Record]:
    records = []
    for number in range(num_records):
        size_hw = [(120, 160), (200, 150), (90, 90)][number % 3]
        count = number % 4  # some images hold nothing
        columns = np.array([[10, 12, 50, 44], [60, 20, 88, 80], [20, 50, 55, 85]], np.float64)[:count]
        records.append(write_record(folder, number, columns, size_hw))
    return records


def make_samples(records: list[Record], config: AugmentConfig, seed: int = 0, **options: int) -> TrainSamples:
    store = ImageStore(records, options.pop("long_side", SIZE), "ram")
    store.build()
    return TrainSamples(store, SampleConfig(config, SIZE, seed, **options))


def drawn(samples: TrainSamples, epoch: int, index: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.empty((1, size, size, 3), np.uint8)
    rows = samples.draw_batch([SampleKey(epoch, index, size)], pixels).rows
    return pixels[0], rows[:, 1:]


def digest(samples: TrainSamples, keys: list[SampleKey]) -> str:
    state = hashlib.sha256()
    for key in keys:
        for array in drawn(samples, *key[:3]):
            state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


EVERYTHING = AugmentConfig(mosaic=0.6, mixup=0.5, rotation=20.0, shear=4.0, flip_vertical=0.3)
GEOMETRY = AugmentConfig(hue=0.0, saturation=0.0, value=0.0, min_visible=0.0)


def test_a_sample_depends_on_its_key_and_seed_alone(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    keys = [SampleKey(epoch, index, SIZE) for epoch in range(3) for index in range(6)]
    forward = make_samples(records, EVERYTHING)
    expected = {key: digest(forward, [key]) for key in keys}
    backward = make_samples(records, EVERYTHING)
    assert all(digest(backward, [key]) == expected[key] for key in reversed(keys))
    assert len(set(expected.values())) == len(keys), "every epoch and index looks different"
    assert digest(make_samples(records, EVERYTHING, seed=1), keys[:1]) != expected[keys[0]]


def print_digest(folder: str) -> None:
    """The digest of six samples."""
    samples = make_samples(make_records(Path(folder)), EVERYTHING)
    print(digest(samples, [SampleKey(1, index, SIZE) for index in range(6)]))


def test_another_process_makes_the_same_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_digest(str(tmp_path))
    other = ForkedProcess("tests.data.test_samples:print_digest", str(tmp_path))
    assert other.communicate(timeout=60) == (capsys.readouterr().out, "")


def test_the_images_of_a_mosaic_do_not_depend_on_what_else_is_switched_on() -> None:
    uniform, sizes_wh = rng_of(0, 0, 5).random((1, 13)), np.full((100, 2), 90)
    drawn = [
        draw_tiles(uniform, np.array([5]), np.array([True]), sizes_wh, config, SIZE)[0][0].tolist()
        for config in (AugmentConfig.none(), EVERYTHING)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == 5
    assert len(set(drawn[0])) == 4


def test_seed_epoch_and_index_each_change_the_choices() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({rng_of(*key).random() for key in keys}) == 4


@pytest.mark.parametrize("long_side", [SIZE, 100, 300])
def test_every_target_of_a_mosaic_has_its_colour_under_it(tmp_path: Path, long_side: int) -> None:
    samples = make_samples(make_records(tmp_path), GEOMETRY, long_side=long_side)
    num_targets = 0
    for index in range(6):
        for epoch in range(12):
            image, rows = drawn(samples, epoch, index)
            for class_id, cx, cy, width, height in rows:
                x0, x1 = (cx - width / 2) * SIZE, (cx + width / 2) * SIZE
                y0, y1 = (cy - height / 2) * SIZE, (cy + height / 2) * SIZE
                inner = image[int(y0) + 2 : int(y1) - 1, int(x0) + 2 : int(x1) - 1, int(class_id)]
                num_targets += 1
                assert not inner.size or np.median(inner) > 200
    assert num_targets > 100


@pytest.mark.parametrize("options", [{}, {"rotation": 25.0, "shear": 5.0}, {"mosaic": 0.0, "flip_vertical": 0.5}])
def test_every_bright_pixel_of_a_sample_lies_under_a_target_of_its_class(tmp_path: Path, options: dict) -> None:
    config = AugmentConfig(**{**GEOMETRY.model_dump(), **options, "min_side_px": 0.0})
    samples = make_samples(make_records(tmp_path), config)
    for index in range(6):
        for epoch in range(6):
            image, rows = drawn(samples, epoch, index)
            for class_id in range(3):
                bright = image[..., class_id] > 200
                for _, cx, cy, width, height in rows[rows[:, 0] == class_id]:
                    x0, x1 = (cx - width / 2) * SIZE, (cx + width / 2) * SIZE
                    y0, y1 = (cy - height / 2) * SIZE, (cy + height / 2) * SIZE
                    bright[max(0, int(y0) - 1) : int(y1) + 2, max(0, int(x0) - 1) : int(x1) + 2] = False
                assert not bright.any()


def test_without_augmentation_a_sample_is_the_letterboxed_image(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    flat = np.array([[100.0, 2.0, 400.0, 8.0]])  # here the rounding of the stored height shows in the boxes
    records.append(write_record(tmp_path, 6, flat, (9, 500)))
    samples = make_samples(records, AugmentConfig.none())
    for index, record in enumerate(records):
        image, rows = drawn(samples, 0, index)
        expected, _ = letterbox(samples.store.image(index), (SIZE, SIZE))
        assert np.array_equal(image, expected)
        _, transform = letterbox(np.zeros((record.height, record.width, 3), np.uint8), (SIZE, SIZE))
        boxes = transform.to_network(record.boxes_xyxy) / SIZE
        centres_and_sides = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
        np.testing.assert_allclose(rows[:, 1:], centres_and_sides, atol=1e-6)
        assert rows[:, 0].tolist() == record.class_ids.tolist()


@pytest.mark.parametrize(("flip", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)])
def test_a_flip_mirrors_pixels_and_targets(tmp_path: Path, flip: str, axis: int) -> None:
    records = make_records(tmp_path)
    upright = make_samples(records, AugmentConfig.none())
    mirrored = make_samples(records, AugmentConfig(**{**AugmentConfig.none().model_dump(), flip: 1.0}))
    for index in range(6):
        (image, rows), (expected, expected_rows) = drawn(mirrored, 0, index), drawn(upright, 0, index)
        assert np.array_equal(image, np.flip(expected, axis))
        expected_rows[:, 2 - axis] = 1 - expected_rows[:, 2 - axis]
        np.testing.assert_allclose(rows, expected_rows, atol=1e-6)


def test_ignored_boxes_are_never_targets(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    records[3].ignored[:2] = True
    samples = make_samples(records, AugmentConfig.none())
    assert drawn(samples, 0, 3)[1][:, 0].tolist() == [2.0]


def test_the_canvas_side_can_be_set_per_sample(tmp_path: Path) -> None:
    samples = make_samples(make_records(tmp_path), AugmentConfig.none())
    image, rows = drawn(samples, 0, 3, 96)
    assert image.shape == (96, 96, 3)
    np.testing.assert_allclose(rows, drawn(samples, 0, 3)[1], atol=0.01)


def test_the_last_epochs_see_no_mosaic(tmp_path: Path) -> None:
    config = AugmentConfig(mosaic=1.0, mixup=1.0, close_mosaic_epochs=2)
    samples = make_samples(make_records(tmp_path), config, num_epochs=5)
    assert [samples.config.has_mosaic(epoch) for epoch in range(5)] == [True, True, True, False, False]
    closed = AugmentConfig(**{**config.model_dump(), "mosaic": 0.0, "mixup": 0.0})
    without = make_samples(make_records(tmp_path), closed)
    assert digest(samples, [SampleKey(3, 1, SIZE)]) == digest(without, [SampleKey(3, 1, SIZE)])
    assert digest(samples, [SampleKey(2, 1, SIZE)]) != digest(without, [SampleKey(2, 1, SIZE)])


def test_mixup_blends_two_images_and_keeps_both_ones_targets(tmp_path: Path) -> None:
    none = AugmentConfig.none()
    samples = make_samples(make_records(tmp_path), AugmentConfig(**{**none.model_dump(), "mixup": 1.0}))
    plain = make_samples(make_records(tmp_path), none)
    image, rows = drawn(samples, 0, 3)
    singles = [drawn(plain, 0, index) for index in range(6)]
    assert rows[:3].tolist() == singles[3][1].tolist()
    fits = []
    for other, other_rows in singles:
        difference = other.astype(float) - singles[3][0]
        share = (difference * (image - singles[3][0].astype(float))).sum() / max(1, (difference**2).sum())
        blend = singles[3][0] + share * difference
        if np.abs(blend - image).max() <= 1 and rows[3:].tolist() == other_rows.tolist():
            fits.append(share)
    assert len(fits) == 1
    assert 0.2 < fits[0] < 0.8


def test_what_no_image_covers_is_filled(tmp_path: Path) -> None:
    config = AugmentConfig(**{**AugmentConfig.none().model_dump(), "scale": 0.9})
    samples = make_samples(make_records(tmp_path), config)
    shrunk = [drawn(samples, epoch, 0)[0] for epoch in range(8)]
    assert any((image[:2] == FILL).all() and (image[:, :2] == FILL).all() for image in shrunk)


@pytest.mark.parametrize("wrong", [{"mosaic": 1.5}, {"scale": -0.1}, {"scale": "big"}, {"zoom": 0.5}, {"hue": 0.7}])
def test_a_wrong_setting_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)
