"""Synthetic scenes: the same bytes every time, boxes that are true, shapes that can be seen, folders left alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from anchorite.data import scenes as module
from anchorite.data.scenes import SCENE_CLASSES, Scene, Shape, cover, draw_scene, write_scenes
from anchorite.errors import InputError

SIZE = 192


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed=5, split="train", index=index, size_px=SIZE) for index in range(120)]


def _unit_corners(name: str) -> np.ndarray:
    """The outermost corners of a straight-edged shape within -1..1, written down independently of the drawing."""
    a = 0.34
    return np.array(
        {
            "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            "triangle": [(0, -1), (1, 1), (-1, 1)],
            "cross": [(a, 1), (-a, 1), (a, -1), (-a, -1), (1, a), (1, -a), (-1, a), (-1, -a)],
        }[name],
        dtype=float,
    )


def _true_extent(shape: Shape) -> np.ndarray:
    """Corners (4,) of the box around the ideal shape: the formula of a turned ellipse, or the turned corners."""
    (x, y), (w, h) = shape.center_xy, shape.wh_px
    cosine, sine = np.cos(shape.angle), np.sin(shape.angle)
    name = SCENE_CLASSES[shape.class_id]
    if name in ("disc", "ring"):
        half_w = np.hypot(w / 2 * cosine, h / 2 * sine)
        half_h = np.hypot(w / 2 * sine, h / 2 * cosine)
        return np.array([x - half_w, y - half_h, x + half_w, y + half_h])
    corners = _unit_corners(name) * (w / 2, h / 2)
    xs = x + corners[:, 0] * cosine - corners[:, 1] * sine
    ys = y + corners[:, 0] * sine + corners[:, 1] * cosine
    return np.array([xs.min(), ys.min(), xs.max(), ys.max()])


def test_the_same_settings_write_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, 3, 2, 1, seed=seed, size_px=96)
    a, b, c = (_hashes(tmp_path / name) for name in "abc")
    assert a == b
    assert a["data.yaml"] == c["data.yaml"]
    assert all(a[name] != c[name] for name in a if name.startswith("images"))


def test_a_scene_depends_neither_on_the_count_nor_on_its_neighbours(tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", 2, 1, 0, seed=8, size_px=96)
    write_scenes(tmp_path / "more", 4, 3, 2, seed=8, size_px=96)
    few, more = _hashes(tmp_path / "few"), _hashes(tmp_path / "more")
    scenes = [name for name in few if name.startswith(("images", "labels"))]
    assert len(scenes) == 6
    assert all(few[name] == more[name] for name in scenes)


def test_no_two_scenes_are_alike_across_indices_and_splits(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d", 4, 4, 4, seed=0, size_px=64)
    images = [digest for name, digest in _hashes(tmp_path / "d").items() if name.startswith("images")]
    assert len(set(images)) == len(images) == 12


def test_boxes_enclose_the_ideal_shapes_to_a_pixel(scenes: list[Scene]) -> None:
    for scene in scenes:
        for shape, box_xyxy in zip(scene.shapes, scene.boxes_xyxy, strict=True):
            assert np.abs(box_xyxy - _true_extent(shape)).max() <= 1.0, shape


def test_boxes_enclose_the_pixels_of_a_shape_drawn_alone(scenes: list[Scene]) -> None:
    random = np.random.default_rng(0)
    for scene in scenes:
        for shape, box_xyxy in zip(scene.shapes, scene.boxes_xyxy, strict=True):
            canvas = np.full((SIZE, SIZE, 3), 128, np.float32)
            module._paint(canvas, cover(shape, SIZE), random)
            rows, columns = np.nonzero(np.abs(canvas - 128).max(axis=2) > 15)
            drawn_xyxy = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(box_xyxy - drawn_xyxy).max() <= 1.0, shape


def test_a_shape_covers_the_area_that_geometry_gives_it() -> None:
    area_of_sides = {
        "disc": np.pi / 4,
        "ring": np.pi / 4 * (1 - 0.58**2),
        "square": 1.0,
        "triangle": 0.5,
        "cross": 1 - (1 - 0.34) ** 2,
    }
    for class_id, name in enumerate(SCENE_CLASSES):
        coverage = cover(Shape(class_id, (60.3, 55.8), (70.0, 50.0), 0.2), 128)
        assert coverage.share.sum() == pytest.approx(area_of_sides[name] * 70 * 50, rel=0.02), name


def test_every_shape_lies_inside_and_shows_at_least_half_of_itself(scenes: list[Scene]) -> None:
    overlaps = 0
    for scene in scenes:
        assert len(scene.shapes) >= 1
        assert scene.boxes_xyxy.min() >= 0
        assert scene.boxes_xyxy.max() <= SIZE
        masks = []
        for shape in scene.shapes:
            mask = np.zeros((SIZE, SIZE), bool)
            coverage = cover(shape, SIZE)
            mask[coverage.area] = coverage.share >= 0.5
            masks.append(mask)
        for position, mask in enumerate(masks):
            hidden = np.logical_or.reduce([np.zeros_like(mask), *masks[position + 1 :]]) & mask
            overlaps += hidden.any()
            assert hidden.sum() <= mask.sum() / 2
    assert overlaps >= 20  # scenes without occlusion would be too easy


def test_classes_sizes_and_colours_vary_and_colour_does_not_tell_the_class(scenes: list[Scene]) -> None:
    class_ids = np.concatenate([scene.class_ids for scene in scenes])
    counts = np.bincount(class_ids, minlength=len(SCENE_CLASSES))
    assert len(counts) == len(SCENE_CLASSES)
    assert counts.min() >= 0.6 * counts.mean()
    sides = np.concatenate([(s.boxes_xyxy[:, 2:] - s.boxes_xyxy[:, :2]).max(axis=1) for s in scenes])
    assert np.quantile(sides, 0.98) / np.quantile(sides, 0.02) >= 4.0

    colours = []
    for scene in scenes:
        for shape in scene.shapes:
            coverage = cover(shape, SIZE)
            colours.append(scene.image[coverage.area][coverage.share > 0.9].mean(axis=0))
    colours_rgb = np.stack(colours)
    means = np.stack([colours_rgb[class_ids == class_id].mean(axis=0) for class_id in range(len(SCENE_CLASSES))])
    assert np.abs(means - colours_rgb.mean(axis=0)).max() < 0.6 * colours_rgb.std(axis=0).min()


def test_the_files_are_a_yolo_dataset_whose_labels_give_the_boxes_back(tmp_path: Path) -> None:
    data_path = write_scenes(tmp_path / "new" / "scenes", 2, 1, 0, seed=1, size_px=100)
    assert data_path == tmp_path / "new" / "scenes" / "data.yaml"
    data = yaml.safe_load(data_path.read_text())
    assert data == {"train": "images/train", "val": "images/val", "names": dict(enumerate(SCENE_CLASSES))}
    for split, count in (("train", 2), ("val", 1)):
        images = sorted((data_path.parent / data[split]).iterdir())
        assert len(images) == count
        for index, image_path in enumerate(images):
            scene = draw_scene(1, split, index, 100)
            stored = cv2.cvtColor(cv2.imread(str(image_path)), cv2.COLOR_BGR2RGB)
            assert np.abs(stored.astype(int) - scene.image).mean() < 12  # JPEG on noise; swapped channels give more
            label_path = data_path.parent / "labels" / split / f"{image_path.stem}.txt"
            rows = np.loadtxt(label_path, ndmin=2)
            assert (rows[:, 0] == scene.class_ids).all()
            centre, sides = rows[:, 1:3] * 100, rows[:, 3:] * 100
            np.testing.assert_allclose(np.hstack([centre - sides / 2, centre + sides / 2]), scene.boxes_xyxy, atol=1e-5)


def test_a_foreign_folder_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    before = _hashes(folder)
    with pytest.raises(InputError, match=r"mine: is not empty"):
        write_scenes(folder, 1, 1, 0, seed=0, size_px=64)
    assert _hashes(folder) == before
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match=r"thesis\.txt"):
        write_scenes(folder / "thesis.txt", 1, 1, 0, seed=0, size_px=64)


def test_scenes_of_other_settings_are_refused_and_left_as_they_were(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", 1, 1, 0, seed=0, size_px=64)
    before = _hashes(tmp_path / "s")
    with pytest.raises(InputError, match=r"other settings.*'seed': 0.*'seed': 1"):
        write_scenes(tmp_path / "s", 1, 1, 0, seed=1, size_px=64)
    assert _hashes(tmp_path / "s") == before


def test_a_second_call_restores_what_is_missing_and_keeps_what_was_edited(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", 2, 1, 0, seed=0, size_px=64)
    before = _hashes(tmp_path / "s")
    (tmp_path / "s/images/train/scene_00001.jpg").unlink()
    write_scenes(tmp_path / "s", 2, 1, 0, seed=0, size_px=64)
    assert _hashes(tmp_path / "s") == before
    edited = tmp_path / "s/labels/val/scene_00000.txt"
    edited.write_text("0 0.5 0.5 0.1 0.1\n")
    write_scenes(tmp_path / "s", 2, 1, 0, seed=0, size_px=64)
    assert edited.read_text() == "0 0.5 0.5 0.1 0.1\n"


def test_an_interrupted_call_is_done_again_wholly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "whole", 3, 1, 0, seed=0, size_px=64)

    def interrupted(seed: int, split: str, index: int, size_px: int) -> Scene:
        if index == 2:
            raise KeyboardInterrupt
        return draw_scene(seed, split, index, size_px)

    with monkeypatch.context() as patch:
        patch.setattr("anchorite.data.scenes.draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "cut", 3, 1, 0, seed=0, size_px=64)
    torn = tmp_path / "cut/images/train/scene_00000.jpg"
    torn.write_bytes(torn.read_bytes()[:50])
    write_scenes(tmp_path / "cut", 3, 1, 0, seed=0, size_px=64)
    assert _hashes(tmp_path / "cut") == _hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0, "num_val": 0}, "one scene at least"),
        ({"num_val": -1}, "num_val=-1"),
        ({"seed": -2}, "seed=-2"),
        ({"size_px": 20}, "size_px=20"),
    ],
)
def test_senseless_numbers_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_scenes(tmp_path / "s", **{"num_train": 1, "num_val": 1, "num_test": 0, "seed": 0, **arguments})
    assert not (tmp_path / "s").exists()
