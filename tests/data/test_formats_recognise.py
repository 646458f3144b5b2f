"""Recognising a dataset by looking, and the agreement of one set in three formats."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import coco_json, voc_object, voc_xml, write_image, write_text, yolo_dataset
from tests.shared import shared_path


def three_formats(folder: Path) -> Path:
    yolo_dataset(folder, {"a": "1 0.5 0.5 0.5 0.5"})
    coco_json(folder / "annotations" / "instances_train.json", [])
    write_text(folder / "voc" / "train" / "a.xml", voc_xml(voc_object("dog", 1, 1, 5, 5)))
    return folder


def test_yolo_goes_before_coco_before_voc_and_the_format_overrules(tmp_path: Path) -> None:
    three_formats(tmp_path)
    assert open_dataset(tmp_path).format == "yolo"
    for name in ("yolo", "coco", "voc"):
        assert open_dataset(tmp_path, name).format == name  # type: ignore[arg-type]
    (tmp_path / "data.yaml").unlink()
    assert open_dataset(tmp_path).format == "coco"
    (tmp_path / "annotations" / "instances_train.json").unlink()
    assert open_dataset(str(tmp_path)).format == "voc"


def test_a_yaml_of_another_name_is_found_by_its_keys(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": ""})
    (tmp_path / "data.yaml").rename(tmp_path / "blood.yml")
    write_text(tmp_path / "other.yaml", "names: [a]\n")
    write_text(tmp_path / "broken.yaml", "[")
    assert open_dataset(tmp_path).format == "yolo"
    write_text(tmp_path / "blood2.yaml", "train: images/train\nnames: [a]\n")
    with pytest.raises(InputError, match=r"blood.yml.*blood2.yaml|blood2.yaml.*blood.yml"):
        open_dataset(tmp_path)


def test_nothing_recognised_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an empty folder"):
        open_dataset(tmp_path)
    write_image(tmp_path / "images" / "a.png")
    write_text(tmp_path / "labels" / "a.txt", "")
    write_text(tmp_path / "notes.md", "")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    for part in (
        "data.yaml",
        "instances_*.json",
        "ImageSets/Main",
        "Found: images/, labels/, notes.md",
        "write a data.yaml",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path, "coco")
    assert "ImageSets" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "format", "reason"),
    [
        ("gone", None, "does not exist"),
        ("a\0b", None, "does not exist"),
        ("notes.md", None, "cannot be opened"),
        ("data.yaml", "coco", "cannot be opened as coco"),
        ("", "pascal", "format must be one of yolo, .*; got 'pascal'"),
    ],
)
def test_a_wrong_path_or_format_is_named(tmp_path: Path, name: str, format: str | None, reason: str) -> None:
    yolo_dataset(tmp_path, {"a": ""})
    write_text(tmp_path / "notes.md", "")
    with pytest.raises(InputError, match=reason):
        open_dataset(tmp_path / name, format)  # type: ignore[arg-type]


def test_a_pipe_in_the_place_of_a_label_file_does_not_block(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": ""})
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    os.mkfifo(tmp_path / "labels" / "train" / "a.txt")
    os.mkfifo(tmp_path / "images" / "train" / "b.png")  # passed over
    with pytest.raises(InputError, match=r"1 error in the labels:\n.*a\.txt: not a regular file"):
        open_dataset(tmp_path)


def test_the_geometry_policy_is_the_same_in_every_format(tmp_path: Path) -> None:
    corners = [
        (-8, 4, 16, 52),
        (4, 4, 4, 20),
        (70, 4, 90, 20),
        (8, 8, 8.25, 8.25),
        (1, 2, 3, 4),
        (1, 2, 3, 4),
        (-0.05, 0, 9, 9),
    ]
    expected = [[0, 4, 16, 48], [8, 8, 8.25, 8.25], [1, 2, 3, 4], [0, 0, 9, 9]]
    kinds = ["clipped", "dropped-empty", "dropped-empty", "dropped-duplicate"]
    write_image(tmp_path / "coco" / "a.png")
    bboxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners]
    annotations = [{"id": k, "image_id": 1, "category_id": 2, "bbox": bbox} for k, bbox in enumerate(bboxes)]
    coco_json(tmp_path / "coco" / "train.json", annotations)
    write_image(tmp_path / "voc" / "a.png")
    write_text(tmp_path / "voc" / "a.xml", voc_xml(*(voc_object("dog", *box) for box in corners)))
    rows = [((x1 + x2) / 128, (y1 + y2) / 96, (x2 - x1) / 64, (y2 - y1) / 48) for x1, y1, x2, y2 in corners]
    del rows[2]  # a centre outside the image is no YOLO row
    text = "\n".join("1 " + " ".join(f"{value:.12f}" for value in row) for row in rows)
    yolo_dataset(tmp_path / "yolo", {"a": text})
    for format in ("coco", "voc", "yolo"):
        index = open_dataset(tmp_path / format)
        record = index.splits["train"][0]
        assert index.format == format
        np.testing.assert_allclose(record.boxes_xyxy, expected, atol=1e-9)
        assert len(record.origins) == len(record.areas) == len(record.class_ids) == 4
        wanted = [kind for number, kind in enumerate(kinds) if format != "yolo" or number != 2]
        assert [adjustment.kind for adjustment in index.adjustments] == wanted
        assert all(adjustment.detail.startswith("dog (") for adjustment in index.adjustments)


def test_rounding_to_six_decimals_makes_no_noise(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "train" / "a.png", 4001, 3001)
    rows = []
    for right in range(1, 4001, 37):
        x1, x2 = (0, right) if right % 2 else (right, 4001)
        rows.append(f"0 {(x1 + x2) / 8002:.6f} 0.5 {(x2 - x1) / 4001:.6f} 1.000000")
    write_text(tmp_path / "labels" / "train" / "a.txt", "\n".join(rows))
    write_text(tmp_path / "data.yaml", "train: images/train\nnames: [cat]\n")
    index = open_dataset(tmp_path)
    assert index.adjustments == ()
    assert index.splits["train"][0].boxes_xyxy.min() >= 0
    assert index.splits["train"][0].boxes_xyxy[:, 2].max() <= 4001


def test_a_crowd_region_does_not_swallow_the_object_of_the_same_box(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    coco_json(tmp_path / "train.json", [box | {"id": 1, "iscrowd": 1}, box | {"id": 2}, box | {"id": 3}])
    record = open_dataset(tmp_path).splits["train"][0]
    assert record.ignored.tolist() == [True, False]


def test_the_cards_are_the_same_in_yolo_and_coco_and_voc() -> None:
    root = shared_path("datasets/cards")
    yolo, coco, voc = (open_dataset(root, name) for name in ("yolo", "coco", "voc"))
    assert open_dataset(root).format == "yolo"
    assert yolo.class_names == coco.class_names == ("nine", "ten", "jack", "queen", "king", "ace")
    assert voc.class_names == tuple(sorted(yolo.class_names))
    assert list(yolo.splits) == list(coco.splits) == list(voc.splits) == ["train", "val", "test"]
    assert not yolo.adjustments + coco.adjustments + voc.adjustments
    for split, num_images, num_boxes in (("train", 237, 426), ("val", 59, 101), ("test", 67, 143)):
        assert sum(len(record.class_ids) for record in yolo.splits[split]) == num_boxes
        assert len(yolo.splits[split]) == num_images
        for a, b, c in zip(yolo.splits[split], coco.splits[split], voc.splits[split], strict=True):
            assert a.path == b.path
            assert a.path.samefile(c.path)
            assert (a.width, a.height) == (b.width, b.height) == (c.width, c.height)
            # six decimals: the centre is off by up to 0.5e-6 and half a side by 0.25e-6 of the image's side
            assert np.abs(a.boxes_xyxy - b.boxes_xyxy).max() <= 0.75e-6 * max(a.width, a.height) + 1e-9
            np.testing.assert_array_equal(b.boxes_xyxy, c.boxes_xyxy)
            np.testing.assert_array_equal(a.class_ids, b.class_ids)
            assert [coco.class_names[i] for i in b.class_ids] == [voc.class_names[i] for i in c.class_ids]


def test_cards_opens_at_its_voc_folder_and_at_one_json() -> None:
    root = shared_path("datasets/cards")
    assert sum(len(records) for records in open_dataset(root / "voc").splits.values()) == 363
    index = open_dataset(root / "annotations" / "instances_val.json")
    assert {split: len(records) for split, records in index.splits.items()} == {"val": 59}
    assert sum(len(records) for records in open_dataset(root / "annotations").splits.values()) == 363


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"images": [],\n "annotations" [1]}', ":2:16: not valid JSON: "), ("[" * 100_000, ": not readable as JSON: ")],
)
@pytest.mark.parametrize("name", ["labels.json", "train.json", "annotations/labels.json"])
def test_a_lone_broken_json_is_named_with_line_and_column(name: str, text: str, place: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    path = write_text(tmp_path / name, text)
    for data in (path, tmp_path):
        with pytest.raises(InputError) as caught:
            open_dataset(data)
        assert f"{path}{place}" in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_broken_json_hides_no_dataset_but_loses_no_split(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    coco_json(tmp_path / "train.json", [])
    write_text(tmp_path / "notes.json", "{")
    assert list(open_dataset(tmp_path).splits) == ["train"]
    broken = write_text(tmp_path / "val.json", '{"images": [')
    with pytest.raises(InputError, match=r"val\.json:1:13: not valid JSON"):
        open_dataset(tmp_path)
    broken.rename(tmp_path / "voc.json")
    (tmp_path / "train.json").unlink()
    write_image(tmp_path / "train" / "a.png")
    write_text(tmp_path / "train" / "a.xml", voc_xml(voc_object("dog", 1, 1, 5, 5)))
    assert open_dataset(tmp_path).format == "voc"


def test_few_grey_levels_of_16_bit_images_are_told(tmp_path: Path) -> None:
    """A camera of 12 bits: 3900 >> 8 is 15 and 600 >> 8 is 2, so 14 of 256 levels are left."""
    yolo_dataset(tmp_path, dict.fromkeys("abc", "0 0.5 0.5 0.5 0.5"))
    for number, name in enumerate("abc"):
        deep = np.full((48, 64), 600 + number, np.uint16)
        deep[0, 0] = 3898 + number
        cv2.imwrite(str(tmp_path / "images" / "train" / f"{name}.png"), deep)
    index = open_dataset(tmp_path)
    told = {one.kind: one.detail for one in index.adjustments}
    assert told.keys() == {"grey-images", "narrow-range"}
    assert "3 16-bit images use 600..3900 of 0..65535" in told["narrow-range"]
    assert "14 of 256 levels" in told["narrow-range"]
    deep[0, 0] = 600 + 64 * 256
    cv2.imwrite(str(tmp_path / "images" / "train" / "c.png"), deep)
    write_image(tmp_path / "images" / "train" / "a.png")
    assert open_dataset(tmp_path).adjustments == (), "wide enough, and not all are grey"


def test_images_of_kinds_that_are_not_read_are_told(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    for name in ("b.HEIC", "c.heic", "d.avif", "._e.heic"):
        write_text(tmp_path / "images" / "train" / name, "x")
    told = [(one.files, one.detail) for one in open_dataset(tmp_path).adjustments if one.kind == "ignored-file"]
    folder = tmp_path / "images" / "train"
    assert [files for files, _ in told] == [(folder / "b.HEIC", folder / "c.heic"), (folder / "d.avif",)]
    assert "2 HEIC images, which are not read; convert them" in told[0][1]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JIF"])
def test_other_suffixes_of_jpeg(tmp_path: Path, suffix: str) -> None:
    yolo_dataset(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    jpeg = write_image(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "images" / "train" / "a.png").unlink()
    write_text(tmp_path / "images" / "train" / f"a{suffix}", jpeg)
    assert len(open_dataset(tmp_path).splits["train"][0].class_ids) == 1
