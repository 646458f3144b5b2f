"""Malformed and unusable labels, through the command line: refused by file and line, or dropped one by one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from anchorite.cli import run
from anchorite.data.formats import open_dataset
from anchorite.data.formats.common import plain_number
from anchorite.data.formats.yolo import parse_row
from anchorite.errors import InputError
from tests.cli.commands import quick_recipe
from tests.cli.test_usage import refused
from tests.data.format_samples import coco_json, voc_object, voc_xml, write_image, write_text, yolo_dataset
from tests.data.test_formats_yolo import BAD_ROWS
from tests.faults.watch import unchanged

GOOD = "0 0.5 0.5 0.25 0.5"
MORE_BAD_ROWS = {
    "Arabic digits": "0 \u0660.\u0665 0.5 0.1 0.1",
    "minus zero as class": "-0 0.5 0.5 0.1 0.1",
    "signed class": "+0 0.5 0.5 0.1 0.1",
    "a class of 400 digits": "9" * 400 + " 0.5 0.5 0.1 0.1",
    "infinity": "0 Infinity 0.5 0.1 0.1",
    "two points": "0 0.5.5 0.5 0.1 0.1",
    "half a number": "0 0.5 0.5 0.1 1e",
    "no-break spaces": "0\u00a00.5 0.5 0.1 0.1",
    "one column": "0",
}
ALL_BAD_ROWS = {
    name: row.encode() if isinstance(row, str) else row for name, row in {**BAD_ROWS, **MORE_BAD_ROWS}.items()
}
COUNT = len(ALL_BAD_ROWS)


def one_image(folder: Path, rows: bytes) -> Path:
    """A dataset of one image with these rows; returns its label file."""
    yolo_dataset(folder, {"a": rows})
    return folder / "labels" / "train" / "a.txt"


@pytest.mark.parametrize("row", ALL_BAD_ROWS.values(), ids=ALL_BAD_ROWS.keys())
def test_a_bad_row_ends_training_with_its_line(
    row: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    label = one_image(tmp_path / "data", GOOD.encode() + b"\n" + row + b"\n")
    with unchanged(tmp_path / "data"):
        code, message = refused(capsys, "train", tmp_path / "data")
    assert code == 2
    assert message.splitlines()[1].startswith(f"  {label}:2: ")
    assert "--skip-bad" in message
    assert message.isascii() or not str(tmp_path).isascii()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_twenty_bad_rows_are_listed_and_all_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    label = one_image(tmp_path / "data", b"\n".join(ALL_BAD_ROWS.values()))
    code, message = refused(capsys, "train", tmp_path / "data", "--out", tmp_path / "run")
    listed = [line for line in message.splitlines() if line.startswith("  ")]
    assert code == 2
    assert f"{COUNT} errors in the labels, the first 20:" in message
    assert [line.split(": ")[0] for line in listed] == [f"  {label}:{number}" for number in range(1, 21)]
    assert all(line.split(": ", 1)[1] for line in listed)


def test_skip_bad_leaves_out_images_with_bad_rows_and_counts_the_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = b"\n".join([GOOD.encode(), *ALL_BAD_ROWS.values(), b"1 0.5 0.5 0.5 0.5"])
    label = one_image(tmp_path / "data", rows)
    yolo_dataset(tmp_path / "data", {"b": f"{GOOD}\n1 0.5 0.5 0.5 0.5\n"})
    words = ["train", tmp_path / "data", "--recipe", quick_recipe(), "--epochs", "1", "--out", tmp_path / "run"]
    with unchanged(tmp_path / "data"):
        assert run([str(word) for word in [*words, "--skip-bad"]]) == 0
    output = capsys.readouterr().out
    assert "train: 1 image, 2 boxes to learn" in output
    told = f"error: {COUNT} label rows or files that cannot be read, left out"
    assert f"{told} ({label}:2, {label}:3, {label}:4 and {COUNT - 3} more)" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["dataset"]["adjusted_labels"] == {"skipped-bad": COUNT}


def test_marks_line_ends_and_the_policy_through_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = yolo_dataset(
        tmp_path / "data",
        {
            "mark": "\ufeff" + GOOD + "\n",
            "windows": f"{GOOD}\r\n1 0.25 0.25 0.1 0.1\r\n",
            "outside": "0 0.95 0.5 0.2 0.4\n",
            "flat": "0 0.5 0.5 0 0.4\n",
            "twice": f"{GOOD}\n{GOOD}\n",
            "speck": "1 0.5 0.5 0.001 0.001\n",
        },
    )
    config = data / "data.yaml"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b"\n", b"\r\n"))
    words = ["train", data, "--recipe", quick_recipe(), "--epochs", "1", "--batch", "2", "--out", tmp_path / "run"]
    with unchanged(data):
        assert run([str(word) for word in words]) == 0
    output = capsys.readouterr().out
    labels = data / "labels" / "train"
    assert "train: 6 images, 6 boxes to learn" in output
    assert f"warning: 1 box that reaches outside its image, clipped ({labels / 'outside.txt'}:1)" in output
    assert f"error: 1 box without area, dropped ({labels / 'flat.txt'}:1)" in output
    assert f"error: 1 box written twice, dropped ({labels / 'twice.txt'}:2)" in output
    assert "cannot be read" not in output


BAD_JSON_VALUES = {
    "class beyond the last": ('"category_id": 1', '"category_id": 7', "annotation id 1: "),
    "fraction as class": ('"category_id": 1', '"category_id": 2.7', "annotation id 1: "),
    "nan": ("[4, 6", "[NaN, 6", "annotation id 1: "),
    "overflow": ("[4, 6", "[1e400, 6", "annotation id 1: "),
    "a whole number beyond floats": ("[4, 6", "[1" + "0" * 400 + ", 6", "annotation id 1: "),
    "three columns": ("[4, 6, ", "[4, ", "annotation id 1: "),
    "text": ("[4, 6", '["4", 6', "annotation id 1: "),
    "NUL": ('"bbox"', '\0"bbox"', "1:"),
    "a 10 MB line": ("[4, 6", "[" + "4" * 10_000_000 + ", 6", "not readable as JSON"),
    "underscore": ("[4, 6", "[1_0, 6", "not valid JSON"),
}


@pytest.mark.parametrize(("old", "new", "said"), BAD_JSON_VALUES.values(), ids=BAD_JSON_VALUES.keys())
def test_a_bad_coco_value_ends_training_with_its_place(
    old: str, new: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_image(tmp_path / "data" / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 10, 20]}
    path = coco_json(tmp_path / "data" / "annotations" / "instances_train.json", [annotation])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with unchanged(tmp_path / "data"):
        code, message = refused(capsys, "train", tmp_path / "data", "--format", "coco", "--out", tmp_path / "run")
    assert code == 2
    assert f"{path}:" in message
    assert said in message
    assert len(message) < 2000


@pytest.mark.parametrize("value", ["nan", "1e400", "1_0", "\uff11\uff10", "2.7.1", "", "\u0661", "9" * 5000 + "x"])
def test_a_bad_voc_value_ends_training_with_its_line(
    value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_image(tmp_path / "data" / "a.png")
    xml = write_text(tmp_path / "data" / "a.xml", voc_xml(voc_object("cat", 4, 6, value, 26)))
    with unchanged(tmp_path / "data"):
        code, message = refused(capsys, "train", tmp_path / "data", "--out", tmp_path / "run")
    assert code == 2
    assert f"  {xml}:5: <xmax> must be a plain finite number" in message
    assert len(message) < 1000


def test_a_megabyte_of_digits_is_refused_at_once() -> None:
    started = time.perf_counter()
    assert plain_number("1" * 50_000 + "x") is None
    assert isinstance(parse_row(b"0 0.5 0.5 0.5 " + b"1" * 900_000 + b"x", 1), str)
    assert time.perf_counter() - started < 5.0


def test_names_in_messages_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    evil = "\x1b[2J\x07" + "x" * 5000
    bad = {"id": evil, "image_id": 1, "category_id": 9, "bbox": [4, 6, 10, 20]}
    images = [{"id": 1, "file_name": "a.png"}, {"id": evil, "file_name": "\x1b[31mb.png"}]
    path = coco_json(tmp_path / "train.json", [bad], images)
    with pytest.raises(InputError, match="2 errors") as caught:
        open_dataset(path)
    message = str(caught.value)
    assert "\x1b" not in message
    assert len(message) < 3000
    image_set = write_text(tmp_path / "voc" / "ImageSets" / "Main" / "train.txt", "\x1b[2Jgone\n")
    write_text(tmp_path / "voc" / "Annotations" / "a.xml", voc_xml())
    with pytest.raises(InputError, match=re.escape(f"{image_set}:1: ")) as caught:
        open_dataset(tmp_path / "voc")
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[2Jgone.xml does not exist" in str(caught.value)
    write_text(tmp_path / "voc" / "classes.txt", "cat\n\x1b[2J\n")
    with pytest.raises(InputError, match=r"classes\.txt:2: .* cannot name a class"):
        open_dataset(tmp_path / "voc")


def test_a_json_nested_as_deep_as_python_reads_is_still_refused_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = coco_json(tmp_path / "train.json", ["HERE"])
    text = path.read_text()
    for depth in range(800, 1000):
        path.write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
        with pytest.raises(InputError, match=r"train\.json: "):
            open_dataset(path)


def test_a_text_in_a_million_pieces_takes_no_longer_than_reading_it(tmp_path: Path) -> None:
    pieces = "<a/>text" * 300_000
    write_image(tmp_path / "a.png")
    write_text(tmp_path / "a.xml", f"<annotation>{pieces}<object><name>cat</name></object></annotation>")
    started = time.perf_counter()
    with pytest.raises(InputError, match="no <bndbox>"):
        open_dataset(tmp_path)
    assert time.perf_counter() - started < 10
    write_text(tmp_path / "a.xml", f"<annotation>{'<a/>' * 600_000}</annotation>")
    with pytest.raises(InputError, match=r"a\.xml:1: more than 500000 elements"):
        open_dataset(tmp_path)


def test_boxes_of_every_format_end_up_inside_the_image(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box}
        for number, box in enumerate([[-1e308, 0, 1e308, 9], [1, 1, 1e308, 1e308], [1e308, 1e308, 1e308, 1e308]])
    ]
    index = open_dataset(coco_json(tmp_path / "train.json", annotations))
    (record,) = index.splits["train"]
    assert np.isfinite(record.boxes_xyxy).all()
    assert np.isfinite(record.areas).all()
    assert record.boxes_xyxy.tolist() == [[1, 1, 64, 48]]
    assert [adjustment.kind for adjustment in index.adjustments] == ["dropped-empty", "clipped", "dropped-empty"]
