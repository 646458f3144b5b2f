"""The corrected copy: every defect gone, everything else as it was, the source untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anchorite.data import open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.formats import FormatName
from anchorite.inspect import corrected_dataset
from tests.cli.commands import contents
from tests.data.format_samples import voc_object, voc_xml, write_text
from tests.inspect.samples import healthy, inspected, texture, write_picture, write_texture, yolo_folder

# Corners in an image of 128 x 96: good, without area, outside, clipped, the first again, almost the first twice.
BOXES = (
    ("cat", 10.25, 10.5, 40, 40),
    ("cat", 60, 60, 60, 70),
    ("dog", 130, 10, 140, 20),
    ("dog", 110, 80, 140, 100),
    ("cat", 10.25, 10.5, 40, 40),
    ("cat", 11, 11, 41, 41),
    ("dog", 11, 11, 40.5, 40.5),
)
KEPT = [("cat", 10.25, 10.5, 40, 40), ("dog", 110, 80, 128, 96), ("dog", 11, 11, 40.5, 40.5)]


def yolo_source(folder: Path) -> None:
    rows = []
    for name, x1, y1, x2, y2 in BOXES:
        if x1 > 128:
            continue  # YOLO calls a centre outside the image malformed
        number = ("cat", "dog").index(name)
        rows.append(f"{number} {(x1 + x2) / 256} {(y1 + y2) / 192} {(x2 - x1) / 128} {(y2 - y1) / 96}\n")
    bad = {"cut": "0 0.5 0.5 0.2 0.2\n", "both": "1 0.5 0.5 0.5 0.5\n", "bad": "0 0.5 0.5 nan 0.2\n"}
    yolo_folder(folder, {"train": {"a": "".join(rows), **bad}, "val": {"v": "0 0.5 0.5 0.2 0.2\n"}})


def coco_source(folder: Path) -> None:
    splits = {"train": ("a", "cut", "both", "bad"), "val": ("v",)}
    for split, stems in splits.items():
        images = [{"id": k, "file_name": f"{stem}.png", "width": 128, "height": 96} for k, stem in enumerate(stems)]
        annotations = [
            {"id": 9 - k, "image_id": 0, "category_id": 3 if name == "cat" else 7, "bbox": [x, y, x2 - x, y2 - y]}
            for k, (name, x, y, x2, y2) in enumerate(BOXES)
        ]
        annotations.append({"id": 99, "image_id": 3, "category_id": 3, "bbox": [1, 1, 2]})
        if split == "val":
            annotations = [{"id": 1, "image_id": 0, "category_id": 3, "bbox": [51.2, 38.4, 25.6, 19.2]}]
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content))


def voc_source(folder: Path) -> None:
    objects = {"a": [voc_object(*box) for box in BOXES], "bad": [voc_object("cat", 40, 1, 20, 9)]}
    for stem, some in objects.items():
        write_text(folder / f"train/{stem}.xml", voc_xml(*some, size=(128, 96), filename=f"{stem}.png"))
    for split, stem in (("train", "cut"), ("train", "both"), ("val", "v")):
        text = voc_xml(voc_object("cat", 51.2, 38.4, 76.8, 57.6), size=(128, 96), filename=f"{stem}.png")
        write_text(folder / split / f"{stem}.xml", text)


def planted(folder: Path, format: str) -> Path:
    """A dataset with every defect that a copy corrects: train a, cut (damaged), both, and bad (a malformed label); val
    v, the pixels of both."""
    {"yolo": yolo_source, "coco": coco_source, "voc": voc_source}[format](folder)
    for seed, stem in enumerate(("a", "cut", "both", "bad")):
        write_texture(folder / "images/train" / f"{stem}.png", seed)
    write_picture(folder / "images/val/v.png", texture(2))
    cut = folder / "images/train/cut.png"
    cut.write_bytes(cut.read_bytes()[:-50])
    return folder


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_a_planted_dataset_is_corrected(format: FormatName, tmp_path: Path) -> None:
    source = planted(tmp_path / "data", format)
    before = contents(source)
    inspection = inspected(source)
    assert {"malformed", "unreadable-image", "empty-box", "duplicate-box", "shared-image"} <= set(inspection.counts())
    dataset, changes = corrected_dataset(inspection)
    write_dataset(dataset, tmp_path / "out", format)
    assert contents(source) == before

    copy = open_dataset(tmp_path / "out", format)
    assert copy.adjustments == ()
    assert [[one.path.name for one in copy.splits[split]] for split in ("train", "val")] == [["a.png"], ["v.png"]]
    record = copy.splits["train"][0]
    names = [copy.class_names[number] for number in record.class_ids]
    assert sorted(names) == sorted(name for name, *_ in KEPT)
    for name, *box in KEPT:
        rows = record.boxes_xyxy[[name == one for one in names]]
        assert np.abs(rows - box).max(axis=1).min() <= (1e-6 * 128 if format == "yolo" else 0)
    assert contents(tmp_path / "out/images/val" if format != "voc" else tmp_path / "out/JPEGImages")
    again = inspected(tmp_path / "out")
    assert set(again.counts()) == {"single-image-split", "class-conflict"}

    done = sorted((done, finding.kind) for done, finding in changes)
    expected = [
        ("clipped", "clipped-box"),
        ("dropped", "duplicate-box"),
        ("dropped", "empty-box"),
        ("dropped", "similar-box"),
        ("image out", "shared-image"),
        ("left out", "malformed"),
        ("left out", "unreadable-image"),
    ]
    assert done == sorted(expected + ([] if format == "yolo" else [("dropped", "empty-box")]))


def test_an_image_of_three_splits_stays_in_test(tmp_path: Path) -> None:
    row = "0 0.5 0.5 0.2 0.2\n"
    splits = {split: {"x": row, f"other-{split}": row} for split in ("train", "val", "test")}
    folder = yolo_folder(tmp_path, splits)
    for split in splits:
        write_texture(folder / "images" / split / "x.png", 99)
    dataset, changes = corrected_dataset(inspected(folder))
    stems = {split: [record.path.stem for record in records] for split, records in dataset.splits.items()}
    assert stems == {"train": ["other-train"], "val": ["other-val"], "test": ["other-test", "x"]}
    assert [(done, finding.split) for done, finding in changes] == [("image out", "train"), ("image out", "val")]


def test_similar_views_and_repeats_within_a_split_stay(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    write_texture(folder / "images/train/twin.png", 0)
    write_picture(folder / "images/val/c.png", np.roll(texture(1), 3, axis=1))
    inspection = inspected(folder)
    assert {"repeated-picture", "similar-shared-image"} <= set(inspection.counts())
    dataset, changes = corrected_dataset(inspection)
    assert changes == []
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 3, "val": 2}


def test_a_healthy_dataset_is_not_changed(tmp_path: Path) -> None:
    inspection = inspected(healthy(tmp_path / "data"))
    dataset, changes = corrected_dataset(inspection)
    assert changes == []
    assert dataset.splits == inspection.dataset.splits
