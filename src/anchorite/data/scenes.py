"""A synthetic detection dataset in YOLO's layout: for the demo, and for tests that must not download anything.

What a scene looks like is the business of scene_drawing.py; here it becomes files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from anchorite.data.scene_drawing import SCENE_CLASSES, SCENE_SPLITS, Scene, draw_scene
from anchorite.errors import InputError, StorageError
from anchorite.files import write_text_atomically
from anchorite.jpeg import encode_jpeg

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
    _check_numbers(counts, seed, size_px)
    settings = {"version": _DRAWING_VERSION, "seed": seed, "size_px": size_px, **counts}
    try:
        filled = _claim(folder, settings)
        for split, count in counts.items():
            for index in range(count):
                _write_scene(folder, split, index, seed=seed, size_px=size_px, only_missing=filled)
        data_path = folder / "data.yaml"
        if not (filled and data_path.exists()):
            write_text_atomically(data_path, _data_yaml(counts))
        if not filled:
            _write_marker(folder, settings, filled=True)
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}; free some space or name another folder"
        ) from error
    return data_path


def _write_scene(folder: Path, split: str, index: int, *, seed: int, size_px: int, only_missing: bool) -> None:
    image_path = folder / "images" / split / f"scene_{index:05d}.jpg"
    label_path = folder / "labels" / split / f"scene_{index:05d}.txt"
    if only_missing and image_path.exists() and label_path.exists():
        return
    scene = draw_scene(seed, split, index, size_px)
    for path, content in (
        (image_path, encode_jpeg(scene.image, _JPEG_QUALITY)),
        (label_path, _label_text(scene).encode("ascii")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _label_text(scene: Scene) -> str:
    height, width = scene.image.shape[:2]
    lines = []
    for class_id, (left, top, right, bottom) in zip(scene.class_ids, scene.boxes_xyxy, strict=True):
        row = np.array(
            [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
        )
        lines.append(f"{class_id} " + " ".join(f"{value:.8f}" for value in row) + "\n")
    return "".join(lines)


def _data_yaml(counts: dict[str, int]) -> str:
    splits = "".join(f"{split}: images/{split}\n" for split, count in counts.items() if count)
    names = "".join(f"  {class_id}: {name}\n" for class_id, name in enumerate(SCENE_CLASSES))
    return f"{splits}names:\n{names}"


def _check_numbers(counts: dict[str, int], seed: int, size_px: int) -> None:
    for split, count in counts.items():
        if not 0 <= count <= _MAX_SCENES:
            raise InputError(f"num_{split}={count}: a split has 0 to {_MAX_SCENES} scenes")
    if sum(counts.values()) == 0:
        raise InputError("num_train=0, num_val=0, num_test=0: ask for one scene at least")
    if seed < 0:
        raise InputError(f"seed={seed}: the seed must be 0 or more")
    if not _MIN_SIZE_PX <= size_px <= _MAX_SIZE_PX:
        raise InputError(f"size_px={size_px}: the side of a scene must be {_MIN_SIZE_PX} to {_MAX_SIZE_PX} pixels")


def _claim(folder: Path, settings: dict[str, int]) -> bool:
    """Mark the folder as ours before anything else is written; True where an earlier call had filled it."""
    marker = folder / _MARKER
    if not marker.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: is not empty and no scenes were written there; name a new or an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        _write_marker(folder, settings, filled=False)
        return False
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{marker}: cannot be read ({error}); name a new or an empty folder") from error
    if found not in ({**settings, "filled": True}, {**settings, "filled": False}):
        raise InputError(
            f"{folder}: holds scenes of other settings, {found} instead of {settings}; "
            "remove the folder or name a new one"
        )
    return bool(found["filled"])


def _write_marker(folder: Path, settings: dict[str, int], *, filled: bool) -> None:
    write_text_atomically(folder / _MARKER, json.dumps({**settings, "filled": filled}) + "\n")
