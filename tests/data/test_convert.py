"""Written datasets read back as they were, in every format, and nothing is left of a writing that fails."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anchorite.data import DatasetIndex, Record, as_split, open_dataset
from anchorite.data.convert import exact, place_records, shortest_close, side_between, write_dataset
from anchorite.data.dataset import NO_CLASS
from anchorite.data.formats import FormatName
from anchorite.errors import InputError, StorageError
from tests.data.format_samples import coco_json, write_image, yolo_dataset

FORMATS: tuple[FormatName, ...] = ("yolo", "coco", "voc")
NAMES = ("no", "1", "caf\u00e9 \U0001f600", "a: b # c", "<&>'\"")
AWKWARD = ["a b.png", "caf\u00e9.PNG", "a.jpg.png", "x.y.z.png", "%41.png", "n" * 240 + ".png", "#1.png", "'q'.png"]


def record(path: Path, boxes: list[list[float]], classes: list[int], ignored: tuple[int, ...] = ()) -> Record:
    table = np.array(boxes, np.float64).reshape(-1, 4)
    return Record(
        path=path,
        width=64,
        height=48,
        boxes_xyxy=table,
        class_ids=np.array(classes, np.int64),
        ignored=np.isin(np.arange(len(table)), ignored),
        areas=(table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1]),
        origins=tuple(f"{path}:{row}" for row in range(len(table))),
    )


def awkward_index(folder: Path) -> DatasetIndex:
    """Awkward names, class names and numbers; background; an empty split."""
    rng = np.random.default_rng(0)
    train = []
    for number, name in enumerate(AWKWARD):
        corners = np.sort(rng.uniform(0, 1, (number, 2, 2)), axis=1) * [64, 48]
        path = write_image(folder / "train" / name)
        train.append(record(path, corners.reshape(-1, 4).tolist(), rng.integers(0, 5, number).tolist()))
    edge = [[0.0, 0, 64, 48], [63.999999, 0, 64, 1e-3], [1 / 3, 0.1 + 0.2, 2 / 3, 47.9]]
    val = [record(write_image(folder / "val" / "a b.png"), edge, [0, 4, 2])]
    return DatasetIndex(folder, "coco", NAMES, {"train": tuple(train), "val": tuple(val), "test": ()})


@pytest.mark.parametrize("format", FORMATS)
def test_everything_reads_back(format: FormatName, tmp_path: Path) -> None:
    index = awkward_index(tmp_path / "data")
    write_dataset(index, tmp_path / "out", format)
    copy = open_dataset(tmp_path / "out")
    assert copy.format == format
    assert copy.adjustments == ()
    assert copy.class_names == NAMES
    assert {split: len(records) for split, records in copy.splits.items()} == {"train": 8, "val": 1, "test": 0}
    for split, records in index.splits.items():
        by_name = {one.path.name: one for one in copy.splits[split]}
        for one in records:
            found = by_name.get(one.path.name) or by_name[f"{one.path.stem}_2.png"]  # VOC has one folder for all
            assert found.path.read_bytes() == one.path.read_bytes()
            assert found.class_ids.tolist() == one.class_ids.tolist()
            atol = 1e-6 * 48 if format == "yolo" else 0
            np.testing.assert_allclose(found.boxes_xyxy, one.boxes_xyxy, rtol=0, atol=atol)


def test_numbers_of_six_decimals_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = "".join(
        f"{k % 2} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for k, (x, y, w, h) in enumerate(rng.uniform(0.3, 0.6, (50, 4)))
    )
    folder = yolo_dataset(tmp_path / "data", {"a": rows})
    write_dataset(open_dataset(folder), tmp_path / "out", "yolo")
    assert [
        [float(number) for number in line.split()]
        for line in (tmp_path / "out/labels/train/a.txt").read_text().splitlines()
    ] == [[float(number) for number in line.split()] for line in rows.splitlines()]


def test_crowds_areas_and_difficult_boxes(tmp_path: Path) -> None:
    one = record(write_image(tmp_path / "data/a.png"), [[1, 2, 11, 12], [20, 20, 30, 40]], [0, 1], ignored=(1,))
    one = replace(one, areas=np.array([77.0, 200]))
    index = DatasetIndex(tmp_path / "data", "coco", ("cat", "dog"), {"train": (one,)})
    notes = {format: write_dataset(index, tmp_path / format, format) for format in FORMATS}
    coco, voc, yolo = (open_dataset(tmp_path / format).splits["train"][0] for format in ("coco", "voc", "yolo"))
    assert coco.ignored.tolist() == voc.ignored.tolist() == yolo.ignored.tolist() == [False, True]
    assert coco.areas.tolist() == [77.0, 200.0]
    assert coco.class_ids.tolist() == voc.class_ids.tolist() == [0, 1]
    assert yolo.class_ids.tolist() == [0, NO_CLASS]
    assert notes["coco"] == []
    assert len(notes["yolo"]) == 1
    assert "1 crowd or difficult boxes are regions for any class" in notes["yolo"][0]
    assert notes["voc"] == ["1 annotated areas left out: VOC has boxes alone"]
    assert "regions for any class" in (tmp_path / "yolo/changes.txt").read_text()


def unknowing(path: Path) -> Record:
    """Two objects with weights, a crowd, a region on the first object's box, and one twice; of three classes."""
    boxes = [[1, 2, 11, 12], [20, 20, 30, 40], [30, 4, 60, 12], [1, 2, 11, 12], [40, 20, 50, 44], [40, 20, 50, 44]]
    one = record(path, boxes, [0, 2, 1, NO_CLASS, NO_CLASS, NO_CLASS], ignored=(2, 3, 4, 5))
    return replace(one, weights=np.array([0.62, 0, 1, 1, 1, 1], np.float32))


def held(folder: Path) -> list[tuple[object, ...]]:
    (one,) = open_dataset(folder).splits["train"]
    columns = one.class_ids.tolist(), one.ignored.tolist(), one.weights.tolist(), one.boxes_xyxy.round(4).tolist()
    return sorted(zip(*columns, strict=True))


def test_weights_and_regions_without_a_class_come_back(tmp_path: Path) -> None:
    one = unknowing(write_image(tmp_path / "data" / "a.png"))
    index = DatasetIndex(tmp_path / "data", "coco", ("cat", "dog", "ignored"), {"train": (one,), "val": ()})
    notes = {format: write_dataset(index, tmp_path / format, format) for format in FORMATS}
    assert {open_dataset(tmp_path / format).class_names for format in FORMATS} == {("cat", "dog", "ignored")}
    weight = float(np.float32(0.62))
    objects = [(0, False, weight, [1, 2, 11, 12]), (2, False, 0.0, [20, 20, 30, 40])]
    regions = [(NO_CLASS, True, 1.0, [1, 2, 11, 12]), (NO_CLASS, True, 1.0, [40, 20, 50, 44])]
    crowd = [30, 4, 60, 12]
    assert held(tmp_path / "coco") == sorted([*objects, *regions, (1, True, 1.0, crowd)])
    assert held(tmp_path / "yolo") == sorted([*objects, *regions, (NO_CLASS, True, 1.0, crowd)])
    once_a_class = [(k, True, 1.0, box) for k in range(3) for *_, box in regions]
    unweighted = [(k, False, 1.0, box) for k, _, _, box in objects]
    assert held(tmp_path / "voc") == sorted([*unweighted, *once_a_class, (1, True, 1.0, crowd)])
    assert notes["coco"] == []
    assert ["regions for any class" in note for note in notes["yolo"]] == [True]
    assert ["weights left out" in note for note in notes["voc"]] == [True]


def test_a_copy_without_weights_or_regions_says_nothing_of_them(tmp_path: Path) -> None:
    one = record(write_image(tmp_path / "data/a.png"), [[1, 2, 11, 12]], [0])
    index = DatasetIndex(tmp_path / "data", "coco", ("cat",), {"train": (one,)})
    for format in ("yolo", "coco"):
        write_dataset(index, tmp_path / format, format)
    assert (tmp_path / "yolo/data.yaml").read_text() == "train: images/train\nnames:\n- cat\n"
    assert "anchorite" not in (tmp_path / "coco/annotations/instances_train.json").read_text()


def test_what_an_ignored_class_had_is_written_as_regions(tmp_path: Path) -> None:
    """Two classes that are ignored and share a box leave one region, not a label that stands twice."""
    folder = yolo_dataset(
        tmp_path / "data", {"a": "".join(f"{k} 0.5 0.5 0.25 0.5\n" for k in range(3))}, names="[a, b, c]"
    )
    index = open_dataset(folder, ignore_classes=["a", "b"])
    for format in FORMATS:
        write_dataset(index, tmp_path / format, format)
        class_id = 0 if format == "voc" else NO_CLASS
        assert [row[:2] for row in held(tmp_path / format)] == sorted([(class_id, True), (0, False)])


@pytest.mark.parametrize("format", FORMATS)
def test_images_of_one_name_in_several_folders_all_get_there(format: FormatName, tmp_path: Path) -> None:
    places = ["x/a.png", "y/a.png", "images/a.png", "y/.hidden/a.png", "y/A.png", "y/a.bmp", "y/ .png"]
    records = [
        record(write_image(tmp_path / "data" / place), [[0, 0, 8.0 + k, 8]], [0]) for k, place in enumerate(places)
    ]
    index = DatasetIndex(tmp_path / "data", "coco", ("cat",), {"train": tuple(records)})
    notes = write_dataset(index, tmp_path / "out", format)
    copy = open_dataset(tmp_path / "out")
    assert sorted(one.boxes_xyxy[0, 2] for one in copy.splits["train"]) == pytest.approx([8.0 + k for k in range(7)])
    folders = {one.path.parent.name for one in copy.splits["train"]}
    assert {"x", "y"} < folders
    assert "renamed  train  " in notes[0]


def test_names_stay_within_what_file_systems_hold(tmp_path: Path) -> None:
    long = "\u00e9" * 125 + ".png"
    records = [record(tmp_path / folder / long, [], []) for folder in (".a", ".b", ".c")]
    names = [file.name for _, file in place_records({"train": as_split(records)})["train"]]
    assert len({name.casefold() for name in names}) == 3
    assert all(len(name.encode()) <= 255 for name in names)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing(format: FormatName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = awkward_index(tmp_path / "data")

    def full(target: Path, content: bytes) -> None:
        with target.open("wb") as file:
            file.write(content[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"the copy was not made: .*No space left"):
        write_dataset(index, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError):
        write_dataset(index, tmp_path / "empty", format)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_copy_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorite.data.convert.shortest_close", lambda value: "0.5")
    with pytest.raises(StorageError, match=r"reads back otherwise .*; it was removed"):
        write_dataset(awkward_index(tmp_path / "data"), tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()


def test_taken_folders_and_those_of_the_dataset_are_refused(tmp_path: Path) -> None:
    index = awkward_index(tmp_path / "data")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for out, said in [("taken", "exists already"), ("data/new", "lies in the dataset"), ("link/new", "lies in")]:
        with pytest.raises(InputError, match=said):
            write_dataset(index, tmp_path / out, "yolo")
    assert not (tmp_path / "data/new").exists()


def test_a_class_that_voc_cannot_name_is_refused(tmp_path: Path) -> None:
    index = replace(awkward_index(tmp_path / "data"), class_names=(" cat", "b", "c", "d", "e"))
    with pytest.raises(InputError, match="outer spaces"):
        write_dataset(index, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()


def test_coco_keeps_the_numbers_of_its_source(tmp_path: Path) -> None:
    write_image(tmp_path / "data/images/train/a.png")
    box = [10.1, 20.2, 5.3, 7.7]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
    coco_json(tmp_path / "data/annotations/instances_train.json", [annotation])
    write_dataset(open_dataset(tmp_path / "data"), tmp_path / "out", "coco")
    assert '"bbox": [10.1, 20.2, 5.3, 7.7]' in (tmp_path / "out/annotations/instances_train.json").read_text()


@given(st.floats(0, 1e5), st.floats(0, 1e5))
@example(1.428385864426673, 65536.90343346738)  # no side leads to 65538.33181933181 from there
def test_a_side_leads_to_the_other_corner(low: float, side: float) -> None:
    high = low + side
    assert low + side_between(low, high) == high
    neighbour = math.nextafter(high, math.inf)
    assert low + side_between(low, neighbour) == pytest.approx(neighbour, rel=5e-16, abs=0)


def test_a_corner_that_coco_cannot_spell_is_off_by_rounding_alone(tmp_path: Path) -> None:
    corners = [1.428385864426673, 0.0, 65538.33181933181, 48.0]
    assert corners[0] + side_between(corners[0], corners[2]) != corners[2]
    path = write_image(tmp_path / "data/a.png", width=65550, height=48)
    index = DatasetIndex(path.parent, "voc", ("cat",), {"train": (replace(record(path, [corners], [0]), width=65550),)})
    write_dataset(index, tmp_path / "out", "coco")
    copy = open_dataset(tmp_path / "out").splits["train"][0]
    np.testing.assert_allclose(copy.boxes_xyxy, [corners], rtol=5e-16)


@given(st.floats(1e-12, 1e5))
def test_spelled_numbers_mean_what_they_should(value: float) -> None:
    assert float(exact(value)) == value
    assert float(shortest_close(value)) == pytest.approx(value, rel=1e-9)
    assert "e" not in exact(value) + shortest_close(value)
