"""The two-stage yardstick makes proper samples: its boxes lie where their pixels are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anchorite.data import AugmentConfig, ImageStore, open_dataset
from anchorite.data.scenes import write_scenes
from benchmarks.loader import Tile, decoded_tile, jitter_by_tables, stored_tile, two_stage_batch, two_stage_sample

SIZE = 160
PLAIN = AugmentConfig(hue=0, saturation=0, value=0)  # else colours could not be told from each other


def painted(height: int, width: int, place: int, class_id: int) -> Tile:
    """A grey tile with one rectangle in a colour of its own, and its box."""
    image = np.full((height, width, 3), 114, np.uint8)
    x0, y0, x1, y1 = width // 4, height // 5, width * 3 // 4, height * 2 // 3
    image[y0:y1, x0:x1] = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)][place]
    return image, np.array([[x0, y0, x1, y1]], np.float64), np.array([class_id])


@pytest.mark.parametrize("seed", range(30))
def test_boxes_of_a_sample_are_where_the_painted_rectangles_are(seed: int) -> None:
    sizes = [(160, 120), (90, 160), (160, 160), (100, 160)]
    tiles = [painted(*sizes[place], place, place) for place in range(4)]
    image, rows = two_stage_sample(tiles, np.random.default_rng(seed), PLAIN, SIZE)
    assert image.shape == (3, SIZE, SIZE)
    assert image.flags.c_contiguous
    for class_id in range(4):
        colour = tiles[class_id][0][tiles[class_id][0].shape[0] // 2, tiles[class_id][0].shape[1] // 2]
        ys, xs = (np.abs(image.transpose(1, 2, 0).astype(int) - colour).max(axis=2) < 70).nonzero()
        of_class = rows[rows[:, 0] == class_id]
        assert len(of_class) <= 1
        if len(of_class):
            cx, cy, w, h = of_class[0, 1:] * SIZE
            expected = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) - expected).max() < 1.6
        else:  # nothing, or a sliver
            assert len(xs) <= 0.35 * 80 * 107


def test_samples_are_flipped_about_half_of_the_time() -> None:
    """The upper left tile's mark lies left of the upper right one's unless the image is flipped."""
    tiles = [painted(160, 160, place, place) for place in range(4)]
    flips = []
    for seed in range(60):
        _, rows = two_stage_sample(tiles, np.random.default_rng(seed), PLAIN, SIZE)
        centres = {int(row[0]): row[1] for row in rows}
        if 0 in centres and 1 in centres:
            flips.append(centres[0] > centres[1])
    assert len(flips) > 20
    assert 0.25 < np.mean(flips) < 0.75


def test_tables_leave_colours_alone_at_gains_of_one_and_darken_below() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    same = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), cv2.COLOR_HSV2RGB)
    assert np.array_equal(jitter_by_tables(image, np.ones(3)), same)
    dark = jitter_by_tables(image, np.array([1.0, 1.0, 0.5]))
    assert np.abs(dark.max(axis=2).astype(float) - image.max(axis=2) * 0.5).max() <= 1.5


def test_decoded_and_stored_tiles_are_the_same(tmp_path: Path) -> None:
    records = open_dataset(write_scenes(tmp_path / "scenes", 4, 0, 0, seed=0, size_px=96)).splits["train"]
    store = ImageStore(records, 48, "ram")
    store.build()
    for index, record in enumerate(records):
        decoded, stored = decoded_tile(record, 48), stored_tile(store, index)
        assert np.abs(decoded[0].astype(int) - stored[0]).max() <= 2
        assert np.allclose(decoded[1], stored[1])
        assert np.allclose(decoded[1], record.boxes_xyxy / 2)
        assert np.array_equal(decoded[2], record.class_ids)
    images, rows = two_stage_batch(
        lambda index: stored_tile(store, index), 4, [0, 1, 2], np.random.default_rng(0), AugmentConfig(), 48
    )
    assert images.shape == (3, 3, 48, 48)
    assert set(rows[:, 0]) <= {0, 1, 2}
    assert ((rows[:, 2:] >= 0) & (rows[:, 2:] <= 1)).all()
