"""YOLO datasets: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.data.formats import open_dataset
from anchorite.data.formats.yolo import RANGE_TOLERANCE, parse_row
from anchorite.errors import InputError
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
    "class beyond the last": "2 0.5 0.5 0.1 0.1",
    "negative class": "-1 0.5 0.5 0.1 0.1",
    "fraction as class": "2.7 0.5 0.5 0.1 0.1",
    "whole class with a point": "1.0 0.5 0.5 0.1 0.1",
    "nan": "0 nan 0.5 0.1 0.1",
    "infinite": "0 0.5 inf 0.1 0.1",
    "overflow": "0 0.5 0.5 1e400 0.1",
    "underscore in class": "1_0 0.5 0.5 0.1 0.1",
    "underscore in number": "0 0.5 0.5 0.1_0 0.1",
    "full-width digits": "0 \uff10.5 0.5 0.1 0.1",
    "full-width class": "\uff11 0.5 0.5 0.1 0.1",
    "four columns": "0 0.5 0.5 0.1",
    "six columns": "0 0.5 0.5 0.1 0.1 0.9",
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
def test_a_bad_row_is_refused_by_line_and_can_be_skipped_alone(tmp_path: Path, row: str | bytes) -> None:
    data = row.encode() if isinstance(row, str) else row
    yolo_dataset(tmp_path, {"a": GOOD.encode() + data + b"\n1 0.5 0.5 0.5 0.5\n"})
    label = tmp_path / "labels" / "train" / "a.txt"
    with pytest.raises(InputError, match=re.escape(f"{label}:2: ")) as caught:
        open_dataset(tmp_path)
    assert "1 error " in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert len(str(caught.value)) < 1000
    index = open_dataset(tmp_path, skip_bad=True)
    assert index.splits["train"][0].class_ids.tolist() == [0, 1]
    assert [(a.kind, a.origin) for a in index.adjustments] == [("skipped-bad", f"{label}:2")]


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


def test_a_long_line_is_refused_by_its_length_alone() -> None:
    assert parse_row(b"0 0.5 0.5 0.5 0.5" + b" " * 1_000_000, 1) == "a line of 1000017 bytes; a row has five numbers"


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


def test_a_split_without_any_label_file_is_pointed_out(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD})
    shutil.move(tmp_path / "labels", tmp_path / "misplaced")
    index = open_dataset(tmp_path)
    assert kinds(index) == ["no-labels"]
    assert str(tmp_path / "labels" / "train" / "a.txt") in index.adjustments[0].detail


def test_label_files_without_image_are_pointed_out(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD})
    write_text(tmp_path / "labels" / "train" / "lost.txt", GOOD)
    write_text(tmp_path / "labels" / "train" / "classes.txt", "cat\n")
    index = open_dataset(tmp_path)
    assert kinds(index) == ["unused-label"]
    assert "1 label files without image: lost.txt" in index.adjustments[0].detail


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
    assert len(columns) == 5
    assert re.fullmatch(r"[0-9]+", columns[0])
    assert parsed[0] == int(columns[0]) in range(3)
    assert list(parsed[1:]) == [float(column) for column in columns[1:]]
    assert all(-RANGE_TOLERANCE <= number <= 1 + RANGE_TOLERANCE for number in parsed[1:])
    assert parsed[3] >= 0
    assert parsed[4] >= 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return yolo_dataset(tmp_path_factory.mktemp("generated"), {"a": ""}, names="[cat, dog, cow]")


@given(content=LABEL_FILES)
@settings(max_examples=100, deadline=None)
def test_a_generated_label_file_is_read_or_refused_line_by_line(home: Path, content: bytes) -> None:
    write_text(home / "labels" / "train" / "a.txt", content)
    index = open_dataset(home, skip_bad=True)
    record = index.splits["train"][0]
    skipped = kinds(index).count("skipped-bad")
    dropped = sum(kind.startswith("dropped") for kind in kinds(index))
    assert (record.boxes_xyxy >= 0).all()
    assert (record.boxes_xyxy <= [64, 48, 64, 48]).all()
    assert (record.boxes_xyxy[:, 2:] > record.boxes_xyxy[:, :2]).all()
    assert np.isin(record.class_ids, [0, 1, 2]).all()
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r")]
    assert len(record.class_ids) + skipped + dropped == len(lines)
    if skipped:
        with pytest.raises(InputError, match=rf": {skipped} errors? in"):
            open_dataset(home)
    else:
        assert len(open_dataset(home).splits["train"][0].class_ids) == len(record.class_ids)
