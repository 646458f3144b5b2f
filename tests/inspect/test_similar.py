"""Which pictures are taken for the same view."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from anchorite.data import DatasetIndex, Record
from anchorite.inspect import similar
from anchorite.inspect.similar import SAME_VIEW, prepare, scan_images, similar_pairs, thumbnail
from tests.inspect.samples import texture, write_picture, write_texture

SIDE = 480


def scene(seed: int) -> NDArray[np.uint8]:
    """A picture of SIDE pixels with spots of 32 px, as large in its thumbnail as a cell is in a microscope's."""
    return np.asarray(cv2.resize(texture(seed, 120, 120), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)


def agreement(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return similar.agreement(prepare(thumbnail(one)), prepare(thumbnail(other)))


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_that_was_worked_on_is_recognised(seed: int) -> None:
    image = scene(seed)
    rng = np.random.default_rng(seed)
    copies = {
        "half": cv2.resize(image, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA),
        "darker": np.clip(image * 0.6 + 20, 0, 255).astype(np.uint8),
        "noise": np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8),
        "jpeg": cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 15])[1], cv2.IMREAD_COLOR),
    }
    for name, copy in copies.items():
        assert agreement(image, copy) > 0.95, name


@pytest.mark.parametrize(("right", "down"), [(0, 40), (70, 0), (-60, 90), (130, -120)])
def test_a_view_that_moved_is_recognised_up_to_a_third_of_the_side(right: int, down: int) -> None:
    wide = np.asarray(cv2.resize(texture(3, 240, 240), (960, 960), interpolation=cv2.INTER_LINEAR), np.uint8)
    one, other = wide[240:720, 240:720], wide[240 + down : 720 + down, 240 + right : 720 + right]
    assert agreement(one, other) > SAME_VIEW
    assert agreement(other, one) > SAME_VIEW


def test_other_pictures_are_not() -> None:
    thumbnails = np.stack([thumbnail(scene(seed)) for seed in range(40)])
    assert similar_pairs(thumbnails, np.zeros(40, np.int64)) == []


def test_what_two_pictures_share_in_light_alone_does_not_count() -> None:
    light = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (SIDE, SIDE)), (0, 0), 120)
    light = 90 * light / np.abs(light).max()
    one, other = (np.clip(scene(seed) * 0.2 + light[..., None] + 100, 0, 255).astype(np.uint8) for seed in (1, 2))
    raw = np.corrcoef(thumbnail(one).ravel(), thumbnail(other).ravel())[0, 1]
    assert raw > 0.8
    assert agreement(one, other) < 0.5


def test_flat_pictures_are_left_alone() -> None:
    thumbnails = np.full((5, 64, 64), 114, np.uint8)
    assert similar_pairs(thumbnails, np.arange(5)) == []


@pytest.mark.parametrize("exhaustive", [True, False])
def test_both_quick_passes_find_the_pair_among_many(exhaustive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exhaustive:
        monkeypatch.setattr(similar, "MAX_EXHAUSTIVE", 0)
        monkeypatch.setattr(similar, "_BLOCK_NUMBERS", 100)  # blocks of two rows
    images = [scene(seed) for seed in range(30)]
    images[21] = cv2.GaussianBlur(np.roll(images[4], 6, axis=1), (0, 0), 1.5)
    pairs = similar_pairs(np.stack([thumbnail(image) for image in images]), np.arange(30) % 2)
    assert [pair[:2] for pair in pairs] == [(4, 21)]


def test_the_frames_of_a_still_camera_do_not_flood_the_list() -> None:
    rng = np.random.default_rng(0)
    base = scene(0)
    frames = [np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8) for _ in range(60)]
    split_ids = np.arange(60) % 3
    pairs = similar_pairs(np.stack([thumbnail(frame) for frame in frames]), split_ids)
    named = {end for pair in pairs for end in pair[:2]}
    across = {end for pair in pairs if split_ids[pair[0]] != split_ids[pair[1]] for end in pair[:2]}
    assert len(pairs) <= 120
    assert named == across == set(range(60))


def test_beyond_the_limit_only_splits_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = np.stack([thumbnail(scene(seed)) for seed in (1, 1, 2, 2)])
    split_ids = np.array([0, 0, 0, 1])
    assert {pair[:2] for pair in similar_pairs(thumbnails, split_ids)} == {(0, 1), (2, 3)}
    monkeypatch.setattr(similar, "MAX_WITHIN_SPLITS", 3)
    assert {pair[:2] for pair in similar_pairs(thumbnails, split_ids)} == {(2, 3)}


def test_the_hash_is_of_the_pixels_and_damage_is_named(tmp_path: Path) -> None:
    one = write_texture(tmp_path / "a.png", 1)
    same = write_picture(tmp_path / "b.bmp", texture(1))  # another file, the same pixels
    other = write_texture(tmp_path / "c.png", 2)
    cut = tmp_path / "d.png"
    cut.write_bytes(one.read_bytes()[:-40])
    reports: list[tuple[int, int]] = []
    empty = np.zeros(0)
    records = [Record(path, 128, 96, empty.reshape(0, 4), empty, empty, empty, ()) for path in (one, same, other, cut)]
    dataset = DatasetIndex(tmp_path, "yolo", (), {"train": records[:2], "val": records[2:]})
    images = scan_images(dataset, lambda done, total: reports.append((done, total)))
    assert images[0].digest == images[1].digest != images[2].digest
    assert [image.split for image in images] == ["train", "train", "val", "val"]
    assert [image.error is None for image in images] == [True, True, True, False]
    assert "truncated or damaged" in str(images[3].error)
    assert str(cut) not in str(images[3].error)
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


def slow_pairs(thumbnails: NDArray[np.uint8], split_ids: NDArray[np.int64]) -> set[tuple[int, int]]:
    """The pairs by the definition: every pair at every shift, one multiplication after the other."""

    def standardised(thumbnail: NDArray[np.uint8]) -> NDArray[np.float64]:
        small = cv2.resize(thumbnail, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
        small -= cv2.blur(small, (9, 9), borderType=cv2.BORDER_REFLECT)
        small -= small.mean()
        return small / np.linalg.norm(small)

    prepared, pictures = list(map(prepare, thumbnails)), [standardised(one) for one in thumbnails]
    close: dict[int, list[tuple[float, int]]] = {}
    for first, one in enumerate(pictures):
        for second in range(first + 1, len(pictures)):
            shifted = (np.roll(pictures[second], (y, x), (0, 1)) for y in range(-10, 11) for x in range(-10, 11))
            score = max(float((one * other).sum()) for other in shifted)
            if score >= 0.3:
                close.setdefault(first, []).append((score, second))
    agreed: list[tuple[float, int, int]] = []
    for first, scored in close.items():
        for across in (False, True):
            kind = [pair for pair in scored if (split_ids[first] != split_ids[pair[1]]) == across]
            for _, second in sorted(kind, reverse=True)[:20]:
                agreed.append((similar.agreement(prepared[first], prepared[second]), first, second))
    best: dict[tuple[int, bool], None] = {}
    kept = set()
    for value, first, second in sorted(agreed, key=lambda pair: (-pair[0], pair[1:])):
        ends = [(end, bool(split_ids[first] != split_ids[second])) for end in (first, second)]
        if value >= SAME_VIEW:
            if any(end not in best for end in ends):
                kept.add((first, second))
            best.update(dict.fromkeys(ends))
    return kept


@pytest.mark.parametrize("seed", range(2))
def test_the_pairs_are_those_of_the_slow_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wide = [cv2.resize(texture(100 * seed + k, 40, 40), (160, 160), interpolation=cv2.INTER_LINEAR) for k in range(5)]
    views = []
    for _ in range(18):
        y, x = rng.integers(0, 40, 2)
        view = wide[int(rng.integers(len(wide)))][y : y + 120, x : x + 120]
        views.append(thumbnail(np.clip(view + rng.normal(0, 6, view.shape), 0, 255).astype(np.uint8)))
    thumbnails, split_ids = np.stack(views), rng.integers(0, 3, len(views))
    expected = slow_pairs(thumbnails, split_ids)
    assert len(expected) > 5
    assert {pair[:2] for pair in similar_pairs(thumbnails, split_ids)} == expected


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_search_tells_how_far_it_is(exhaustive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exhaustive:
        monkeypatch.setattr(similar, "MAX_EXHAUSTIVE", 0)
        monkeypatch.setattr(similar, "_BLOCK_NUMBERS", 20)
    thumbnails = np.stack([*(thumbnail(scene(seed)) for seed in range(6)), np.full((64, 64), 9, np.uint8)])
    heard: list[tuple[int, int]] = []
    similar_pairs(thumbnails, np.zeros(7, np.int64), lambda done, total: heard.append((done, total)))
    assert heard == [(done, 6) for done in range(1, 7)]
