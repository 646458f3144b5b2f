"""Synthetic scenes as a YOLO dataset: for the demo, and for tests that must not download anything.

Five kinds of shape overlap on textured ground in random colours, so that only form tells the class, and boxes are true
by construction. A scene is a pure function of (seed, split, index, size_px): it can be drawn again alone, in any order,
to the same pixels.

Legend: N boxes of a scene, H = W = size_px; h, w the sides of a shape's patch. Pixel coordinates are continuous:
pixel i spans i to i + 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from anchorite.errors import InputError, StorageError
from anchorite.files import write_text_atomically
from anchorite.jpeg import encode_jpeg
from anchorite.reading import read_json

SCENE_CLASSES = ("disc", "ring", "square", "triangle", "cross")
SCENE_SPLITS = ("train", "val", "test")
MIN_VISIBLE = 0.7  # of a shape's own pixels

_SMALLEST_SIDE, _LARGEST_SIDE = 0.15, 0.7  # of the image's side
_MAX_BOX_IOU = 0.4  # below the usual limit of non-maximum suppression, so that every box can be found
_SUPERSAMPLING = 4
_MIN_CONTRAST = 110.0  # Euclidean, in 8-bit RGB, between a shape's colour and what it covers

# Names the settings a folder was filled with. No suffix, so that no dataset format takes it for its own.
_MARKER = ".anchorite-scenes"
_DRAWING_VERSION = 1
_MIN_SIZE_PX, _MAX_SIZE_PX = 64, 2048
_MAX_SCENES = 99_999
_JPEG_QUALITY = 92


def write_scenes(folder: Path, num_train: int, num_val: int, num_test: int, seed: int, size_px: int = 256) -> Path:
    """Write a YOLO dataset (images/, labels/, data.yaml) of synthetic scenes and return the path of its data.yaml.

    The bytes of a scene depend on seed, split, index and size alone, not on how many there are. A folder that an
    earlier call with the same settings filled gets only what is missing; nothing is ever deleted. Raises InputError
    when the folder holds anything else or a number makes no sense, StorageError when it cannot be written.
    """
    counts = dict(zip(SCENE_SPLITS, (num_train, num_val, num_test), strict=True))
    for split, count in counts.items():
        if not 0 <= count <= _MAX_SCENES:
            raise InputError(f"num_{split}={count}: a split has 0 to {_MAX_SCENES} scenes")
    if not any(counts.values()):
        raise InputError("num_train=0, num_val=0, num_test=0: ask for one scene at least")
    if seed < 0:
        raise InputError(f"seed={seed}: the seed must be 0 or more")
    if not _MIN_SIZE_PX <= size_px <= _MAX_SIZE_PX:
        raise InputError(f"size_px={size_px}: the side of a scene must be {_MIN_SIZE_PX} to {_MAX_SIZE_PX} pixels")
    settings = {"version": _DRAWING_VERSION, "seed": seed, "size_px": size_px, **counts}
    marker, data_path = folder / _MARKER, folder / "data.yaml"
    try:
        filled = _is_filled(folder, settings)
        if not filled:  # the folder is marked as ours before anything else is written
            folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(marker, json.dumps({**settings, "filled": False}) + "\n")
        for split, index in [(split, index) for split, count in counts.items() for index in range(count)]:
            image_path = folder / "images" / split / f"scene_{index:05d}.jpg"
            label_path = folder / "labels" / split / f"scene_{index:05d}.txt"
            if filled and image_path.exists() and label_path.exists():
                continue
            scene = draw_scene(seed, split, index, size_px)
            low, high = scene.boxes_xyxy[:, :2], scene.boxes_xyxy[:, 2:]
            rows = np.column_stack([scene.class_ids, (low + high) / 2 / size_px, (high - low) / size_px])
            for path in (image_path, label_path):
                path.parent.mkdir(parents=True, exist_ok=True)
            image_path.write_bytes(encode_jpeg(scene.image, _JPEG_QUALITY))
            np.savetxt(label_path, rows, fmt="%d" + " %.8f" * 4)
        if not (filled and data_path.exists()):
            paths = {split: f"images/{split}" for split, count in counts.items() if count}
            data = {**paths, "names": dict(enumerate(SCENE_CLASSES))}
            write_text_atomically(data_path, yaml.safe_dump(data, sort_keys=False))
        if not filled:
            write_text_atomically(marker, json.dumps({**settings, "filled": True}) + "\n")
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}; free some space or name another folder"
        ) from error
    return data_path


def _is_filled(folder: Path, settings: dict[str, int]) -> bool:
    """Whether an earlier call with the same settings filled the folder; InputError where something else is in it."""
    marker = folder / _MARKER
    if not marker.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: is not empty and no scenes were written there; name a new or an empty folder")
        return False
    found = read_json(marker)
    if found not in ({**settings, "filled": True}, {**settings, "filled": False}):
        raise InputError(
            f"{folder}: holds scenes of other settings, {found} instead of {settings}; "
            "remove the folder or name a new one"
        )
    return bool(found["filled"])


class Shape(NamedTuple):
    """One object: which class, where its centre lies, its sides before rotation, and its rotation in radians."""

    class_id: int
    center_xy: tuple[float, float]
    wh_px: tuple[float, float]
    angle: float


class Scene(NamedTuple):
    """image: (H, W, 3) uint8 RGB. shapes: back to front. boxes_xyxy: (N, 4) float64 pixels, the full extent of each
    shape, hidden parts included. class_ids: (N,) int64.
    """

    image: NDArray[np.uint8]
    shapes: tuple[Shape, ...]
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]


class Coverage(NamedTuple):
    """What a shape covers of the image.

    share: (h, w) float32 in 0..1, of each pixel. area: the rows and columns of the image that `share` spans. box_xyxy:
    the extent of the drawn pixels, in whole pixels; a quarter covered counts, or sharp tips would be lost.
    """

    share: NDArray[np.float32]
    area: tuple[slice, slice]
    box_xyxy: tuple[int, int, int, int]


def draw_scene(seed: int, split: str, index: int, size_px: int) -> Scene:
    """Draw scene number `index` of a split, every time the same."""
    random = np.random.default_rng([seed, SCENE_SPLITS.index(split), index])
    canvas = _ground(random, size_px)
    shapes, coverages = _arrange(random, size_px)
    for coverage in coverages:
        _paint(canvas, coverage, random)
    boxes_xyxy = np.array([coverage.box_xyxy for coverage in coverages], dtype=np.float64).reshape(-1, 4)
    class_ids = np.array([shape.class_id for shape in shapes], dtype=np.int64)
    # What a plain camera makes of it: a little blur, exposure and sensor noise, then 8 bits.
    sigma = float(random.uniform(0, 1.1))
    if sigma > 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), sigma).astype(np.float32)
    canvas = (canvas - 128) * np.float32(random.uniform(0.8, 1.1)) + np.float32(128 + random.uniform(-15, 15))
    canvas = canvas + random.standard_normal(canvas.shape, dtype=np.float32) * np.float32(random.uniform(0, 9))
    return Scene(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), shapes, boxes_xyxy, class_ids)


def cover(shape: Shape, size_px: int) -> Coverage:
    """What a shape covers of the image, antialiased; the shape must lie inside."""
    outlines_xy = _outlines(shape)
    points = np.concatenate(outlines_xy)
    left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(points.max(axis=0)), size_px).astype(int).tolist()
    fine = np.zeros(((bottom - top) * _SUPERSAMPLING, (right - left) * _SUPERSAMPLING), np.uint8)
    # OpenCV puts whole numbers at pixel centres, hence the half; 4 fractional bits keep the edges straight.
    fine_points = [
        np.round(((outline - (left, top)) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32) for outline in outlines_xy
    ]
    cv2.fillPoly(fine, fine_points, 255, shift=4)  # outlines within outlines are holes
    share = (cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA) / 255).astype(np.float32)
    rows, columns = (np.flatnonzero((share >= 0.25).any(axis=axis)).tolist() for axis in (1, 0))
    box_xyxy = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
    return Coverage(share, (slice(top, bottom), slice(left, right)), box_xyxy)


def _outlines(shape: Shape) -> list[NDArray[np.float64]]:
    """The closed polygons of a shape in pixels; a second one is a hole."""
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
    corner = np.array([(0.34, -1), (0.34, -0.34), (1, -0.34)])
    quarter_turn = np.array([(0, 1), (-1, 0)])
    units = {
        "disc": [circle],
        "ring": [circle, circle * 0.58],
        "square": [square],
        "triangle": [np.array([(0, -1), (1, 1), (-1, 1)], dtype=np.float64)],
        "cross": [np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, turn) for turn in range(4)])],
    }[SCENE_CLASSES[shape.class_id]]
    cosine, sine = np.cos(shape.angle), np.sin(shape.angle)
    rotation = np.array([(cosine, sine), (-sine, cosine)])
    return [unit * (np.array(shape.wh_px) / 2) @ rotation + np.array(shape.center_xy) for unit in units]


def _arrange(random: np.random.Generator, size_px: int) -> tuple[tuple[Shape, ...], tuple[Coverage, ...]]:
    """Place shapes back to front, dropping those that would hide another by half or share its box."""
    shapes: list[Shape] = []
    coverages: list[Coverage] = []
    owner = np.full((size_px, size_px), -1, np.int16)  # which shape is seen at a pixel
    wanted = int(random.integers(2, 5))
    for _ in range(20 * wanted):
        if len(shapes) == wanted:
            break
        class_id = int(random.integers(len(SCENE_CLASSES)))
        side = size_px * float(np.exp(random.uniform(np.log(_SMALLEST_SIDE), np.log(_LARGEST_SIDE))))
        proportion = float(np.exp(random.uniform(-0.3, 0.3)))
        wh_px = side * min(1.0, proportion), side * min(1.0, 1 / proportion)
        center_x, center_y = random.uniform(side / 2, size_px - side / 2, size=2).tolist()
        shape = Shape(class_id, (center_x, center_y), wh_px, float(random.uniform(-0.35, 0.35)))
        points = np.concatenate(_outlines(shape))
        if points.min() < 0 or points.max() > size_px:
            continue
        coverage = cover(shape, size_px)
        trial = owner.copy()
        trial[coverage.area][coverage.share >= 0.5] = len(shapes)
        seen = all(
            np.count_nonzero(trial == i) >= MIN_VISIBLE * np.count_nonzero(c.share >= 0.5)
            for i, c in enumerate(coverages)
        )
        if seen and all(_iou(coverage.box_xyxy, other.box_xyxy) <= _MAX_BOX_IOU for other in coverages):
            owner = trial
            shapes.append(shape)
            coverages.append(coverage)
    return tuple(shapes), tuple(coverages)


def _iou(box_xyxy: tuple[int, int, int, int], other_xyxy: tuple[int, int, int, int]) -> float:
    (x0, y0, x1, y1), (u0, v0, u1, v1) = box_xyxy, other_xyxy
    both = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    return both / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both)


def _ground(random: np.random.Generator, size_px: int) -> NDArray[np.float32]:
    """A textured ground, (H, W, 3) float32 in 0..255: noise of several scales, a gradient, stripes and thin lines."""
    height_field = np.zeros((size_px, size_px), np.float32)
    for cells, strength in ((3, 1.0), (8, 0.6), (24, 0.35), (64, 0.2)):
        coarse = random.standard_normal((cells, cells), dtype=np.float32)
        weight = np.float32(strength * random.uniform(0.2, 1.0))
        height_field += weight * cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    along = _ramp(random, size_px, size_px)
    height_field += np.float32(random.uniform(0, 2.0)) * along
    if random.random() < 0.5:
        waves = _ramp(random, size_px, size_px) * np.float32(random.uniform(8, 40))
        height_field += np.float32(random.uniform(0.2, 0.8)) * np.sin(waves)
    mix = (0.5 + 0.5 * np.tanh(0.7 * height_field))[..., None]
    colours = random.uniform(20, 235, size=(2, 3)).astype(np.float32)
    first, second = (colours + colours.mean(axis=1, keepdims=True)) / 2  # halfway to grey
    second = first + (second - first) * np.float32(0.6)  # the ground is calmer than what lies on it
    canvas = first * (1 - mix) + second * mix
    for _ in range(int(random.integers(0, 5))):
        start, end = random.integers(0, size_px, size=(2, 2)).tolist()
        colour = (first + random.uniform(-60, 60, size=3)).tolist()
        cv2.line(canvas, tuple(start), tuple(end), colour, thickness=int(random.integers(1, 3)))
    return canvas.astype(np.float32)


def _ramp(random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A linear ramp, (height, width) float32, about -1..1 in a random direction."""
    direction = random.uniform(0, 2 * np.pi)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return np.float32(np.cos(direction)) * xs + np.float32(np.sin(direction)) * ys


def _paint(canvas: NDArray[np.float32], coverage: Coverage, random: np.random.Generator) -> None:
    """Blend a shape into the canvas in a colour that stands out, with some shading, speckle or stripes."""
    below = canvas[coverage.area]
    weight = coverage.share[..., None]
    mean_below = (below * weight).sum(axis=(0, 1)) / weight.sum()
    colours = random.uniform(10, 245, size=(12, 3)).astype(np.float32)
    contrasts = np.linalg.norm(colours - mean_below, axis=1)
    enough = np.flatnonzero(contrasts >= _MIN_CONTRAST)
    colour = colours[enough[0] if len(enough) else int(contrasts.argmax())]
    height, width = coverage.share.shape
    relief = np.float32(random.uniform(0, 22)) * _ramp(random, height, width)
    pattern = random.integers(3)
    if pattern == 1:
        relief += np.float32(14) * np.sin(_ramp(random, height, width) * np.float32(random.uniform(4, 16)))
    elif pattern == 2:
        relief += random.standard_normal((height, width), dtype=np.float32) * np.float32(random.uniform(4, 14))
    canvas[coverage.area] = below * (1 - weight) + (colour + relief[..., None]) * weight
