"""YOLO datasets: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import re
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.boxes import Detections
from anchorite.data.dataset import NO_CLASS
from anchorite.data.formats import open_dataset
from anchorite.data.formats.yolo import RANGE_TOLERANCE, parse_row
from anchorite.errors import InputError
from anchorite.predict.outputs import yolo_lines
from tests.data.format_samples import boxes, kinds, write_image, write_text, yolo_dataset

GOOD = "0 0.5 0.5 0.25 0.5\n"


def test_rows_become_pixel_boxes_with_their_origin(tmp_path: Path) -> None:
    index = open_dataset(yolo_dataset(tmp_path, {"a": GOOD + "\n1\t0.25 0.25  0.5 0.5\n"}))
    record = index.splits["train"][0]
    assert index.format == "yolo"
    assert index.class_names == ("cat", "dog")
    assert boxes(index) == [[24, 12, 40, 36], [0, 0, 32, 24]]
    assert record.class_ids.tolist() == [0, 1]
    assert record.areas.tolist() == [16 * 24, 32 * 24]
    assert record.ignored.tolist() == [False, False]
    label = tmp_path / "labels" / "train" / "a.txt"
    assert record.origins == (f"{label}:1", f"{label}:3")
    assert index.adjustments == ()


BAD_ROWS = {
    "negative class": "-1 0.5 0.5 0.1 0.1",
    "fraction as class": "2.7 0.5 0.5 0.1 0.1",
    "almost a whole number as class": "0.99999999999999999999 0.5 0.5 0.1 0.1",
    "large number as class": "1e20 0.5 0.5 0.1 0.1",
    "nan": "0 nan 0.5 0.1 0.1",
    "infinite": "0 0.5 inf 0.1 0.1",
    "overflow": "0 0.5 0.5 1e400 0.1",
    "underscore in class": "1_0 0.5 0.5 0.1 0.1",
    "underscore in number": "0 0.5 0.5 0.1_0 0.1",
    "full-width digits": "0 \uff10.5 0.5 0.1 0.1",
    "full-width class": "\uff11 0.5 0.5 0.1 0.1",
    "four columns": "0 0.5 0.5 0.1",
    "fraction as sixth column": "0 0.5 0.5 0.1 0.1 1.9",
    "negative score": "0 0.5 0.5 0.1 0.1 -0.5",
    "infinite score": "0 0.5 0.5 0.1 0.1 inf",
    "eight columns": "0 0.5 0.5 0.1 0.1 0.5 0.5 2",
    "polygon in pixels": "0 10 10 20 10 20 20",
    "polygon with a word": "0 0.1 0.1 0.2 x 0.3 0.3",
    "corner far outside": "0 0.1 0.1 0.2 0.1 0.2 0.2 -0.6 0.2",
    "commas": "0,0.5,0.5,0.1,0.1",
    "NUL": "0 0.5 0.5 0.1 0.1\0",
    "no text": b"0 0.5 0.5 0.1 \xff\xfe",
    "above one": "0 1.2 0.5 0.1 0.1",
    "pixels": "0 320 240 20 20",
    "below zero": "0 -0.2 0.5 0.1 0.1",
    "negative width": "0 0.5 0.5 -0.00001 0.1",
    "hexadecimal": "0 0x1 0.5 0.1 0.1",
    "long line": "0 0.5 0.5 0.1 0." + "1" * 10_000_000,
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_refused_by_line_and_takes_its_image_out(tmp_path: Path, row: str | bytes) -> None:
    data = row.encode() if isinstance(row, str) else row
    yolo_dataset(tmp_path, {"a": GOOD.encode() + data + b"\n1 0.5 0.5 0.5 0.5\n", "b": GOOD})
    label = tmp_path / "labels" / "train" / "a.txt"
    with pytest.raises(InputError, match=re.escape(f"{label}:2: ")) as caught:
        open_dataset(tmp_path)
    assert "1 error " in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert len(str(caught.value)) < 1000
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.stem for record in index.splits["train"]] == ["b"], "an object must not become background"
    image = tmp_path / "images" / "train" / "a.png"
    assert [(a.kind, a.origin, a.image) for a in index.adjustments] == [("skipped-bad", f"{label}:2", image)]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.strip().encode(),
        b" 0  0.5 0.5\t.25 5e-1 \n\n \n",
        b"0 +0.5 0.5 0.25 0.50000",
    ],
)
def test_byte_order_marks_line_ends_and_spacing_are_accepted(tmp_path: Path, text: bytes) -> None:
    assert boxes(open_dataset(yolo_dataset(tmp_path, {"a": text}))) == [[24, 12, 40, 36]]


ROWS_OF_ALL_KINDS = {  # the box in 64 x 48, its class, and what is told of it
    "box": ("0 0.5 0.5 0.25 0.5", [24, 12, 40, 36], 0, None),
    "score": ("0 0.5 0.5 0.25 0.5 0.9312", [24, 12, 40, 36], 0, ("ignored-score", "score")),
    "score of one": ("1 0.5 0.5 0.25 0.5 1", [24, 12, 40, 36], 1, ("ignored-score", "score")),
    "track": ("1 0.5 0.5 0.25 0.5 7", [24, 12, 40, 36], 1, ("ignored-score", "track")),
    "track with a point": ("1 0.5 0.5 0.25 0.5 12.0", [24, 12, 40, 36], 1, ("ignored-score", "track")),
    "upright corners": (
        "0 0.375 0.25 0.625 0.25 0.625 0.75 0.375 0.75",
        [24, 12, 40, 36],
        0,
        ("shape-as-box", "corners"),
    ),
    "rotated corners": ("1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5", [16, 12, 48, 36], 1, ("shape-as-box", "corners")),
    "triangle": ("0 0.25 0.5 0.5 0.25 0.75 1", [16, 12, 48, 48], 0, ("shape-as-box", "polygons")),
    "five points": ("0 0 0 1 0 1 0.5 0.5 0.75 0 0.25", [0, 0, 64, 36], 0, ("shape-as-box", "polygons")),
    "polygon off by rounding": (
        "0 -0.00005 0.5 1.00005 0.5 0.5 1.00005",
        [0, 24, 64, 48],
        0,
        ("shape-as-box", "polygons"),
    ),
    "of numpy.savetxt": ("1.000000000000000000e+00 5.0e-01 5.0e-01 2.5e-01 5.0e-01", [24, 12, 40, 36], 1, None),
    "class with a point": ("1.0 0.5 0.5 0.25 0.5", [24, 12, 40, 36], 1, None),
    "class with an exponent": ("10e-1 0.5 0.5 0.25 0.5", [24, 12, 40, 36], 1, None),
    "class with noughts": ("001 0.5 0.5 0.25 0.5", [24, 12, 40, 36], 1, None),
}


@pytest.mark.parametrize(("row", "box", "class_id", "told"), ROWS_OF_ALL_KINDS.values(), ids=ROWS_OF_ALL_KINDS.keys())
def test_rows_of_all_kinds_are_read_as_their_boxes(
    tmp_path: Path, row: str, box: list[float], class_id: int, told: tuple[str, str] | None
) -> None:
    index = open_dataset(yolo_dataset(tmp_path, {"a": row}))
    assert boxes(index) == [box]
    assert index.splits["train"][0].class_ids.tolist() == [class_id]
    assert kinds(index) == ([told[0]] if told else [])
    if told:
        assert index.adjustments[0].origin == str(tmp_path / "labels" / "train" / "a.txt") + ":1"
        assert index.adjustments[0].detail.startswith("1 ")
        assert told[1] in index.adjustments[0].detail


def test_a_polygon_that_reaches_outside_is_cut_to_the_image(tmp_path: Path) -> None:
    index = open_dataset(yolo_dataset(tmp_path, {"a": "1 -0.4 0.5 0.5 0.5 0.5 1.4"}))
    assert boxes(index) == [[0, 24, 32, 48]]
    assert kinds(index) == ["shape-as-box", "clipped"]


def test_what_many_rows_have_in_common_is_told_once_a_split(tmp_path: Path) -> None:
    triangle, scored = "0 0.25 0.5 0.5 0.25 0.75 1\n", "1 0.5 0.5 0.25 0.5 0.9\n"
    rows = {"a": GOOD + triangle + scored, "b": triangle * 2 + "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n"}
    yolo_dataset(tmp_path, {**rows, "c": triangle + "x"}, "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    index, labels = open_dataset(tmp_path, skip_bad=True), tmp_path / "labels" / "train"
    for split in ("train", "val"):
        told = {(a.kind, a.origin, a.detail.split()[0]) for a in index.adjustments if a.split == split}
        assert {one for one in told if one[0] in ("shape-as-box", "ignored-score")} == {
            ("shape-as-box", f"{labels / 'a.txt'}:2", "3"),
            ("ignored-score", f"{labels / 'a.txt'}:3", "1"),
            ("shape-as-box", f"{labels / 'b.txt'}:3", "1"),
        }, "those of an image that is left out do not count"


def test_what_predict_writes_can_be_learned_from(tmp_path: Path) -> None:
    boxes_xyxy = torch.tensor([[3.25, 4.0, 61.0, 47.5], [0.0, 0.0, 64.0, 48.0]])
    found = Detections(boxes_xyxy, torch.tensor([0.9, 0.0]), torch.tensor([1, 0]), ("cat", "dog"), (48, 64))
    index = open_dataset(yolo_dataset(tmp_path, {"a": yolo_lines(found)}))
    np.testing.assert_allclose(index.splits["train"][0].boxes_xyxy, boxes_xyxy, rtol=0, atol=1e-6 * 64)
    assert index.splits["train"][0].class_ids.tolist() == [1, 0]
    assert [(a.kind, a.detail.split()[0]) for a in index.adjustments] == [("ignored-score", "2")]


POSE = "train: images/train\nnames: [cat, dog]\nkpt_shape: {}\n"


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("[2, 3]", "0.4 0.4 2 0 0 0"),
        ("[2, 2]", "0 0 1 1"),  # as many columns as four corners have
        ("[3, 2]", "0.4 0.4 -1.5 300 0 1e9"),
        ("[1.0, 3]", ".5 .5 1"),
        ("[0, 3]", ""),
    ],
)
def test_poses_are_read_as_their_boxes_where_kpt_shape_says_so(tmp_path: Path, shape: str, points: str) -> None:
    yolo_dataset(tmp_path, {"a": f"1 0.5 0.5 0.25 0.5 {points}\n0 0.25 0.25 0.5 0.5\n"}, POSE.format(shape))
    index = open_dataset(tmp_path)
    assert boxes(index) == [[24, 12, 40, 36], [0, 0, 32, 24]]
    assert [(a.kind, a.detail.split()[0]) for a in index.adjustments] == ([("shape-as-box", "1")] if points else [])


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        ("[2, 3]", "0 0.5 0.5 0.25 0.5 0.4 0.4 2 0 nan 0", "key point value 5 must be a plain finite number"),
        ("[2, 3]", "0 0.5 0.5 0.25 0.5 0.4 0.4 2 0 0", "10 columns, not the 5 of .* or the 11 of a pose"),
        ("[2, 3]", "0 0.25 0.5 0.5 0.25 0.75 1", "7 columns, not the 5 of .* or the 11 of a pose"),
        ("[2, 3]", "0 1.5 0.5 0.25 0.5 0.4 0.4 2 0 0 0", "cx must lie in 0..1"),
        ("null", "0 0.5 0.5 0.25 0.5 0.4 0.4 2 0 0 0 1", "kpt_shape: "),
        ("null", "0 0.5 0.5 0.25 0.5 0.4 0.4 2 0 0 0", "x4 must lie in 0..1"),
    ],
)
def test_a_pose_that_does_not_fit_is_refused_by_line(tmp_path: Path, shape: str, row: str, reason: str) -> None:
    yolo_dataset(tmp_path, {"a": GOOD + row}, POSE.format(shape))
    with pytest.raises(InputError, match=rf"a\.txt:2: .*{reason}"):
        open_dataset(tmp_path)


def test_a_long_line_is_refused_by_its_length_alone() -> None:
    assert "a line of 1000017 bytes" in str(parse_row(b"0 0.5 0.5 0.5 0.5" + b" " * 1_000_000, 1))


def test_nul_bytes_are_called_by_their_name() -> None:
    assert "NUL" in str(parse_row(b"0 0.5 0.5 0.5 0.5\0", 1))


def test_a_circle_of_links_within_the_dataset_gives_each_image_once(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD, "b": GOOD}, "train: images\nnames: [cat]\n")
    (tmp_path / "images" / "train" / "circle").symlink_to(tmp_path / "images")
    assert [record.path.stem for record in open_dataset(tmp_path).splits["train"]] == ["a", "b"]


def test_all_errors_are_counted_and_twenty_are_listed(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": "9 9 9 9 9\n" * 30, "b": "x\n" * 7})
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    lines = str(caught.value).splitlines()
    assert "37 errors" in lines[0]
    assert len(lines) == 22
    assert lines[20].strip().startswith(f"{tmp_path / 'labels' / 'train' / 'a.txt'}:20: ")


def test_images_without_labels_are_background(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD, "b": ""})
    write_image(tmp_path / "images" / "train" / "c.JPG")
    index = open_dataset(tmp_path)
    assert [(record.path.name, len(record.class_ids)) for record in index.splits["train"]] == [
        ("a.png", 1),
        ("b.png", 0),
        ("c.JPG", 0),
    ]
    assert index.splits["train"][2].boxes_xyxy.shape == (0, 4)
    assert index.splits["train"][2].boxes_xyxy.dtype == np.float64


def test_a_split_without_any_label_file_says_where_they_were_looked_for(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD})
    write_image(tmp_path / "images" / "train" / "more" / "b.png")
    shutil.move(tmp_path / "labels", tmp_path / "misplaced")
    index = open_dataset(tmp_path)
    assert kinds(index) == ["no-labels"]
    for folder in ("labels", "images"):
        assert str(tmp_path / folder / "train" / "a.txt") in index.adjustments[0].detail
    assert "2 images" in index.adjustments[0].detail
    assert "1 other folder" in index.adjustments[0].detail


def test_label_files_without_image_are_pointed_out_and_other_texts_are_not(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD})
    others = ("classes.txt", "README.dataset.txt", "readme.txt", "train.txt", "val2017.TXT", "notes.json", "obj.names")
    for name in others:
        write_text(tmp_path / "labels" / "train" / name, "a.png\n")
    for name in ("._a.txt", ".hidden.txt", "lost.txt", "lost too.TXT", "train_0007.txt"):
        write_text(tmp_path / "labels" / "train" / name, GOOD)
    write_text(tmp_path / "images" / "train" / "beside.txt", GOOD)
    write_text(tmp_path / "images" / "train" / "licence.txt", "CC BY 4.0\n")
    index = open_dataset(tmp_path)
    assert [(a.kind, [file.name for file in a.files]) for a in index.adjustments] == [
        ("unused-label", ["lost too.TXT", "lost.txt", "train_0007.txt"]),
        ("unused-label", ["beside.txt"]),
    ]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/train/a.jpg", "labels/train/a.TXT"),
        ("images/train/a.JPG", "labels/train/a.Txt"),
        ("Images/train/a.png", "Labels/train/a.txt"),
        ("IMAGES/Train/a.png", "labels/train/a.txt"),
        ("images/a.png", "LABELS/a.txt"),
        ("JPEGImages/a.png", "labels/a.txt"),
        ("VOC2007/JPEGImages/2007/a.png", "VOC2007/labels/2007/a.txt"),
        ("train/JPEGimages/a.png", "train/Labels/a.txt"),
        ("images/a.png", "images/a.TXT"),
        ("images/train/a.JPG", "labels/train/A.txt"),
        ("pictures/DSC_1.PNG", "pictures/dsc_1.TXT"),
    ],
)
def test_label_files_are_found_in_any_letter_case(tmp_path: Path, image: str, label: str) -> None:
    write_image(tmp_path / image)
    write_text(tmp_path / label, GOOD)
    write_text((tmp_path / label).with_name(f"._{Path(label).name}"), b"\0\5\x16\7")
    write_text(tmp_path / "data.yaml", f"train: {image.partition('/')[0]}\nnames: [cat]\n")
    index = open_dataset(tmp_path)
    assert boxes(index) == [[24, 12, 40, 36]]
    assert index.splits["train"][0].origins == (f"{tmp_path / label}:1",)
    assert index.adjustments == ()


@pytest.mark.parametrize(
    "labels",
    [
        ("labels/train/a.txt", "labels/train/a.TXT"),
        ("labels/train/a.txt", "images/train/a.txt"),
        ("labels/train/a.txt", "Labels/train/a.txt"),
        ("labels/train/A.txt", "images/train/A.txt"),
    ],
)
def test_of_two_label_files_for_an_image_none_is_chosen(tmp_path: Path, labels: tuple[str, str]) -> None:
    yolo_dataset(tmp_path, {"b": GOOD})
    image = write_image(tmp_path / "images" / "train" / "a.png")
    for label in labels:
        write_text(tmp_path / label, GOOD)
    with pytest.raises(InputError, match="1 error") as caught:
        open_dataset(tmp_path)
    assert f"{image}: " in str(caught.value)
    assert all(str(tmp_path / label) in str(caught.value) for label in labels)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.stem for record in index.splits["train"]] == ["b"]
    assert [(a.kind, a.image) for a in index.adjustments] == [("skipped-bad", image)]


def test_letter_case_gives_no_image_the_labels_of_another(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"A": GOOD})
    images = tmp_path / "images" / "train"
    write_image(images / "a.png")
    index = open_dataset(tmp_path)
    assert [(record.path.name, len(record.class_ids)) for record in index.splits["train"]] == [
        ("A.png", 1),
        ("a.png", 0),
    ]
    for name in ("cD.png", "Cd.png"):
        write_image(images / name)
    label = write_text(tmp_path / "labels" / "train" / "cd.txt", GOOD)
    with pytest.raises(InputError, match="2 errors") as caught:
        open_dataset(tmp_path)
    assert f"{images / 'cD.png'}: {label} could be its label file, or that of Cd" in str(caught.value)
    assert kinds(open_dataset(tmp_path, skip_bad=True)) == ["skipped-bad"] * 2


def test_labels_are_found_by_the_last_images_folder_within_the_dataset_or_beside(tmp_path: Path) -> None:
    home = tmp_path / "images" / "set"  # an `images` above the dataset must not count
    write_image(home / "images" / "old" / "images" / "a.png")
    write_text(home / "images" / "old" / "labels" / "a.txt", GOOD)
    write_image(home / "images" / "old" / "images" / "b.png")
    write_text(home / "images" / "old" / "images" / "b.txt", "1 0.5 0.5 0.5 0.5")
    write_image(home / "plain" / "c.png")
    write_text(home / "plain" / "c.txt", GOOD)
    write_text(tmp_path / "labels" / "set" / "plain" / "c.txt", "1 0.5 0.5 0.5 0.5")
    write_text(home / "data.yaml", "train: [images, plain]\nnames: [cat, dog]\n")
    records = open_dataset(home).splits["train"]
    assert [(record.path.name, record.class_ids.tolist()) for record in records] == [
        ("a.png", [0]),
        ("b.png", [1]),
        ("c.png", [0]),
    ]


def test_names_with_spaces_dots_and_any_script_work(tmp_path: Path) -> None:
    stems = ["\u0441\u043e\u0431\u0430\u043a\u0430", "a b", "v1.2 x", "\u732b" * 60]
    index = open_dataset(yolo_dataset(tmp_path, dict.fromkeys(stems, GOOD), names='["\u732b", "big dog"]'))
    assert index.class_names == ("\u732b", "big dog")
    assert [record.path.stem for record in index.splits["train"]] == sorted(stems)
    assert all(len(record.class_ids) == 1 for record in index.splits["train"])


def test_a_list_file_keeps_its_order_and_names_missing_images_by_line(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"b": GOOD, "a": GOOD, "c": ""}, "train: lists/train.txt\nnames: [cat]\n")
    listed = "\ufeffimages/train/c.png\r\n./images/train/a.png\n\nimages/train/c.png\n"
    path = write_text(tmp_path / "lists" / "train.txt", listed)
    index = open_dataset(tmp_path)
    assert [record.path.stem for record in index.splits["train"]] == ["c", "a"]
    assert [(a.kind, a.origin) for a in index.adjustments] == [("repeated-image", f"{path}:4")]
    path.write_bytes(b"images/train/a.png\nimages/train/gone.png\nnotes.md\n\xff.png\na\0.png\n")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    for line, reason in ((2, "does not exist"), (3, "not the name"), (4, "not UTF-8"), (5, "not the name")):
        assert re.search(rf"train\.txt:{line}: .*{reason}", str(caught.value))
    assert "4 errors" in str(caught.value)


FAR = {
    "backslashes": ("images\\train\\{}", 0),
    "the folder of another program": ("data/images/train/{}", 2),
    "absolute": ("/home/ann/set/images/train/{}", 2),
    "absolute, of Windows": ("D:\\set\\images\\train\\{}", 2),
    "another letter case": ("Images/Train/{}", 2),
    "URL": ("https://example.org/set/images/train/{}", 2),
}


@pytest.mark.parametrize(("line", "number"), FAR.values(), ids=FAR.keys())
def test_a_list_made_elsewhere_is_read_and_told_once(tmp_path: Path, line: str, number: int) -> None:
    yolo_dataset(tmp_path, {"b": GOOD, "a": ""}, "train: lists/train.txt\nnames: [cat]\n")
    path = write_text(
        tmp_path / "lists" / "train.txt", "".join(line.format(name) + "\n" for name in ("b.png", "a.png"))
    )
    index = open_dataset(tmp_path)
    assert [record.path for record in index.splits["train"]] == [
        tmp_path / "images" / "train" / "b.png",
        tmp_path / "images" / "train" / "a.png",
    ]
    assert boxes(index) == [[24, 12, 40, 36]]
    told = [(a.kind, a.origin, int(a.detail.split()[0])) for a in index.adjustments]
    assert told == ([("relocated", f"{path}:1", number)] if number else [])


def test_a_list_made_elsewhere_is_not_guessed_from(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD}, "path: images\ntrain: ../lists/train.txt\nnames: [cat]\n")
    lines = ["/x/train/a.png", "/x/val/train/a.png", "/x/b.png", "._a.png"]
    path = write_text(tmp_path / "images" / ".." / "lists" / "train.txt", "\n".join(lines))
    with pytest.raises(InputError, match="2 errors") as caught:
        open_dataset(tmp_path)
    assert f"{path}:2: the image does not exist ('/x/val/train/a.png'" in str(caught.value), "line 1 has it"
    assert f"{path}:3: the image does not exist ('/x/b.png'" in str(caught.value)
    assert len(open_dataset(tmp_path, skip_bad=True).splits["train"]) == 1
    write_image(tmp_path / "lists" / "a.png")
    write_image(tmp_path / "images" / "a.png")
    write_text(path, "/x/a.png")
    with pytest.raises(InputError, match=r"several could be meant: .*lists/a\.png, .*images/a\.png"):
        open_dataset(tmp_path)


def test_links_out_of_the_dataset_are_refused(tmp_path: Path) -> None:
    outside = write_image(tmp_path / "outside" / "b.png")
    secret = write_text(tmp_path / "outside" / "secret.txt", GOOD)
    home = yolo_dataset(tmp_path / "set", {"a": GOOD})
    link = home / "images" / "train" / "b.png"
    link.symlink_to(outside)
    with pytest.raises(InputError, match=re.escape(f"{link}: leads out of the dataset")):
        open_dataset(home)
    assert len(open_dataset(home, allow_outside=True).splits["train"]) == 2
    link.unlink()
    label = home / "labels" / "train" / "a.txt"
    label.unlink()
    label.symlink_to(secret)
    with pytest.raises(InputError, match=re.escape(f"{label}: leads out of the dataset")):
        open_dataset(home)
    assert open_dataset(home, skip_bad=True).splits["train"] == ()
    label.unlink()
    (home / "images" / "train" / "more").symlink_to(outside.parent)
    with pytest.raises(InputError, match="leads out of the dataset"):
        open_dataset(home)
    (home / "images" / "train" / "more").unlink()
    (home / "images" / "train" / "circle").symlink_to(home / "images")
    (home / "images" / "train" / "self.png").symlink_to("self.png")
    with pytest.raises(InputError, match=r"self\.png: the image cannot be read"):
        open_dataset(home)


def test_unreadable_images_are_collected_and_skipped_whole(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD, "b": GOOD})
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"text, not pixels")
    write_text(tmp_path / "images" / "train" / "c.jpg", b"")
    with pytest.raises(InputError, match="2 errors") as caught:
        open_dataset(tmp_path)
    assert "b.png: not a JPEG" in str(caught.value)
    assert "c.jpg: the file is empty" in str(caught.value)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.stem for record in index.splits["train"]] == ["a"]
    assert kinds(index) == ["skipped-bad", "skipped-bad"]


def test_normalised_boxes_refer_to_the_displayed_image(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {})
    write_image(tmp_path / "images" / "train" / "a.jpg", 64, 48, orientation=6)
    write_text(tmp_path / "labels" / "train" / "a.txt", "0 0.5 0.5 1 0.5")
    index = open_dataset(tmp_path)
    assert (index.splits["train"][0].width, index.splits["train"][0].height) == (48, 64)
    assert boxes(index) == [[0, 16, 48, 48]]


NUMBERS = st.one_of(
    st.floats(0, 1).map(lambda value: f"{value:.6f}"),
    st.floats(0, 1).map(repr),
    st.sampled_from(
        ["nan", "1e400", "-0.0", "1.00005", "1.1", "0x1", "1_0", "\uff10", "", "1e-9", ".5", "5.", "+1", "-1"]
    ),
)
CLASSES = st.one_of(st.integers(-2, 5).map(str), st.sampled_from(["1_0", "2.7", "\uff11", "", "00", "1" * 30]))
ROWS = st.one_of(
    st.tuples(CLASSES, NUMBERS, NUMBERS, NUMBERS, NUMBERS).map(lambda row: " ".join(row).encode()),
    st.lists(NUMBERS, max_size=7).map(lambda row: "\t".join(row).encode()),
    st.binary(max_size=30),
    st.text(max_size=20).map(str.encode),
)
LABEL_FILES = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]), st.sampled_from([b"\n", b"\r\n"]), st.lists(ROWS, max_size=8)
).map(lambda parts: parts[0] + parts[1].join(parts[2]))


@given(row=ROWS)
@settings(max_examples=150, deadline=None)
def test_every_accepted_row_satisfies_the_format(row: bytes) -> None:
    parsed = parse_row(row, 3)
    if isinstance(parsed, str):
        assert parsed
        assert parsed.isascii()
        return
    columns = row.decode("ascii").split()  # plain ASCII is part of the format
    if parsed.fault:
        assert (parsed.class_id, Decimal(columns[0]) >= 3) == (NO_CLASS, True)
    else:
        assert Decimal(columns[0]) == parsed.class_id in range(3)
    numbers = [float(column) for column in columns[1:]]
    if len(columns) in (5, 6):
        cx, cy, w, h = numbers[:4]
        assert parsed.xyxy == (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        assert min(w, h) >= 0
        assert all(-RANGE_TOLERANCE <= number <= 1 + RANGE_TOLERANCE for number in numbers[:4])
    else:
        assert len(columns) >= 7
        assert parsed.xyxy == (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
        assert all(-0.5 <= number <= 1.5 for number in numbers)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return yolo_dataset(tmp_path_factory.mktemp("generated"), {"a": ""}, names="[cat, dog, cow]")


@given(content=LABEL_FILES)
@settings(max_examples=100, deadline=None)
def test_a_generated_label_file_is_read_or_refused_line_by_line(home: Path, content: bytes) -> None:
    write_text(home / "labels" / "train" / "a.txt", content)
    index = open_dataset(home, skip_bad=True)
    skipped, regions = kinds(index).count("skipped-bad"), kinds(index).count("ignored-region")
    if skipped or regions:
        with pytest.raises(InputError, match=rf": {skipped + regions} errors? in"):
            open_dataset(home)
    if skipped:
        assert len(index.splits["train"]) == 0
        return
    record = index.splits["train"][0]
    dropped = sum(kind.startswith("dropped") for kind in kinds(index))
    assert (record.boxes_xyxy >= 0).all()
    assert (record.boxes_xyxy <= [64, 48, 64, 48]).all()
    assert (record.boxes_xyxy[:, 2:] > record.boxes_xyxy[:, :2]).all()
    assert np.isin(record.class_ids, [0, 1, 2, NO_CLASS]).all()
    assert np.array_equal(record.class_ids == NO_CLASS, record.ignored)
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r")]
    assert len(record.class_ids) + dropped == len(lines)
    if not regions:
        assert len(open_dataset(home).splits["train"][0].class_ids) == len(record.class_ids)
