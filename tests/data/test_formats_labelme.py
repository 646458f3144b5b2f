"""LabelMe: every shape as its box, images beside the jsons or apart, and what is refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, kinds, write_image, write_text

RECTANGLE = {"label": "cat", "points": [[24.0, 36.0], [8.0, 12.5]], "shape_type": "rectangle"}
RECTANGLE_PX = [8, 12.5, 24, 36]


def shape(**more: Any) -> dict[str, Any]:
    """As LabelMe writes it, a rectangle unless said otherwise."""
    return RECTANGLE | {"group_id": None, "description": "", "flags": {}, "mask": None} | more


def labelme(path: Path, *shapes: Any, image: str | None = None, **more: Any) -> Path:
    """A json and, with the same stem unless `image` is given, an image of 64x48 beside it."""
    size = {"imageHeight": 48, "imageWidth": 64}
    facts = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image or f"{path.stem}.png"}
    write_text(path, json.dumps(facts | {"imageData": None} | size | more))
    if image is None:
        write_image(path.with_suffix(".png"))
    return path


def test_the_boxes_of_a_sample_made_by_hand(tmp_path: Path) -> None:
    labelme(
        tmp_path / "a.json",
        shape(),
        shape(label="dog", shape_type="polygon", points=[[10, 5], [30.5, 8], [12, 40]]),
        shape(label="dog", shape_type="circle", points=[[20, 20], [23, 24]]),
        shape(label="dog", shape_type="mask", points=[[1, 2], [9, 8]], mask="iVBORw0KGgo="),
        shape(shape_type="rotation", points=[[30, 10], [40, 20], [30, 30], [20, 20]]),
        shape(shape_type="linestrip", points=[[0, 0], [5, 5], [9, 9]]),
        shape(shape_type="point", points=[[3, 3]]),
    )
    labelme(tmp_path / "b.json")
    labelme(tmp_path / "c.json", shape(shape_type="line", points=[[0, 0], [5, 5]]))
    write_image(tmp_path / "d.png")
    index = open_dataset(tmp_path)
    assert (index.format, index.class_names) == ("labelme", ("cat", "dog"))
    assert boxes(index) == [RECTANGLE_PX, [10, 5, 30.5, 40], [15, 15, 25, 25], [1, 2, 9, 8], [20, 10, 40, 30]]
    assert index.splits["train"][0].class_ids.tolist() == [0, 1, 1, 1, 0]
    assert [record.path.name for record in index.splits["train"]] == ["a.png", "b.png"]
    assert not len(index.splits["train"][1].class_ids), "a json without shapes: somebody looked, and it is empty"
    assert kinds(index).count("shape-as-box") == 4
    assert kinds(index).count("ignored-shape") == 2
    out = " / ".join(one.detail for one in index.adjustments if one.kind == "ignored-file")
    assert "c.png has lines" in out
    assert "d.png" in out


def test_outlines_of_a_group_are_one_object_and_rectangles_are_not(tmp_path: Path) -> None:
    labelme(
        tmp_path / "a.json",
        shape(shape_type="polygon", points=[[1, 2], [5, 2], [5, 9]], group_id=1),
        shape(shape_type="polygon", points=[[20, 1], [30, 2], [25, 7]], group_id=1),
        shape(shape_type="polygon", points=[[40, 1], [50, 2], [45, 7]], group_id=1, label="dog"),
        shape(group_id=2),
        shape(group_id=2, points=[[2, 2], [9, 9]]),
    )
    assert boxes(open_dataset(tmp_path)) == [[1, 1, 30, 9], [40, 1, 50, 7], RECTANGLE_PX, [2, 2, 9, 9]]


@pytest.mark.parametrize(
    ("json_name", "image_path", "file"),
    [
        ("a.json", "a.png", "a.png"),
        ("labels/a.json", "..\\images\\a.png", "images/a.png"),
        ("ann/a.json", "a.png", "img/A.PNG"),
        ("ann/a.json", "/home/somebody/photos/a.png", "img/a.png"),
        ("a.JSON", "former name.png", "a.png"),
        ("ann/a.json", "former name.png", "img/a.png"),
        ("ann/a.json", "D:\\photos\\picture 7.png", "img/picture 7.png"),
    ],
)
def test_the_image_is_found(tmp_path: Path, json_name: str, image_path: str, file: str) -> None:
    labelme(tmp_path / json_name, shape(), image=image_path)
    write_image(tmp_path / file)
    index = open_dataset(tmp_path)
    assert (boxes(index), index.splits["train"][0].path) == ([RECTANGLE_PX], tmp_path / file)


def test_equal_names_in_split_folders_stay_apart(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test"), start=1):
        labelme(tmp_path / split / "json" / "a.json", shape(points=[[number, 2], [9, 9]]), image="a.png")
        write_image(tmp_path / split / "images" / "a.png")
    index = open_dataset(tmp_path)
    assert {split: boxes(index, split) for split in index.splits} == {
        "train": [[1, 2, 9, 9]],
        "val": [[2, 2, 9, 9]],
        "test": [[3, 2, 9, 9]],
    }
    assert all(split in record.path.parts for split in index.splits for record in index.splits[split])


def test_a_renamed_pair_keeps_its_own_image(tmp_path: Path) -> None:
    labelme(tmp_path / "a.json", shape())
    labelme(tmp_path / "b.json", shape(points=[[1, 2], [3, 4]]), image="a.png")
    write_image(tmp_path / "b.png")
    index = open_dataset(tmp_path)
    assert [boxes(index, record=number) for number in (0, 1)] == [[RECTANGLE_PX], [[1, 2, 3, 4]]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"points": [[1, 2]]}, r"these points outline no rectangle \(\[\[1, 2\]\]\)"),
        ({"points": None}, "these points outline no rectangle"),
        ({"points": [[1, 2], [3, None]]}, r"a point must be two finite numbers \[x, y\] \(\[3, None\]\)"),
        ({"points": [[1, 2], [3, 4, 5]]}, "a point must be two finite numbers"),
        ({"points": [[1, 2], [3, True]]}, "a point must be two finite numbers"),
        ({"shape_type": "polygon"}, "these points outline no polygon"),
        ({"shape_type": "circle", "points": [[1e308, 0], [-1e308, 0]]}, "the corners must be finite"),
    ],
)
def test_a_bad_shape_is_named_and_its_image_left_out(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    labelme(tmp_path / "a.json", shape(), shape(**change))
    labelme(tmp_path / "b.json", shape())
    with pytest.raises(InputError, match=rf"a\.json: shape 2: {reason}"):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.name for record in index.splits["train"]] == ["b.png"]
    assert [one.image for one in index.adjustments if one.kind == "skipped-bad"] == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"shapes": [],\n "imagePath": "b.png"', r"b\.json:2:22: not valid JSON"),
        (b'{"shapes": [NaN], "imagePath": "b.png"}', r"b\.json: shape 1: must be an object \(nan\)"),
        (b'{"shapes": {}, "imagePath": "b.png"}', r"b\.json: shapes must be a list"),
        (
            b'{"shapes": [], "imagePath": "b.png", "imageWidth": 6.5}',
            r"b\.json: imageWidth must be a whole number \(6.5\)",
        ),
        (b'{"shapes": [], "imagePath": "b.png", "imageWidth": 65.0, "imageHeight": 48}', "say the image is 65x48"),
        (b'{"shapes": [], "imagePath": "gone.png"}', r"b\.json: the image does not exist \('gone.png'"),
        (b'{"shapes": [], "imagePath": "phone.heic"}', "HEIC images are not read; convert them"),
        (b"\xff{}", r"b\.json:1: not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    labelme(tmp_path / "a.json", shape())
    write_text(tmp_path / "b.json", content)
    if b'"b.png' in content:
        write_image(tmp_path / "b.png")
    with pytest.raises(InputError, match=reason):
        open_dataset(tmp_path)


def test_other_jsons_are_told_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    labelme(tmp_path / "a.json", shape(shape_type=None, points=[[1, 2], [5, 2], [5, 9]]), imageHeight=None)
    write_text(tmp_path / "settings.json", '{"a": 1}')
    write_text(tmp_path / "._a.json", b"\0\1")
    index = open_dataset(tmp_path)
    assert boxes(index) == [[1, 2, 5, 9]]
    assert [one.files for one in index.adjustments if one.kind == "ignored-file"] == [(tmp_path / "settings.json",)]
    assert boxes(open_dataset(tmp_path / "a.json", "labelme")) == [[1, 2, 5, 9]]
    assert boxes(open_dataset(tmp_path, "labelme")) == [[1, 2, 5, 9]]


def test_a_json_that_leads_out_of_the_dataset_is_not_opened(tmp_path: Path) -> None:
    outside = labelme(tmp_path / "outside" / "b.json", shape())
    labelme(tmp_path / "data" / "a.json", shape())
    (tmp_path / "data" / "b.json").symlink_to(outside)
    write_image(tmp_path / "data" / "b.png")
    with pytest.raises(InputError, match=r"b\.json: leads out of the dataset"):
        open_dataset(tmp_path / "data")
    assert len(open_dataset(tmp_path / "data", allow_outside=True).splits["train"]) == 2


def test_images_within_the_jsons_cost_little(tmp_path: Path) -> None:
    labelme(tmp_path / "a.json", shape(), imageData=os.urandom(6 << 20).hex())
    started = time.process_time()
    assert boxes(open_dataset(tmp_path)) == [RECTANGLE_PX]
    assert time.process_time() - started < 1.0
