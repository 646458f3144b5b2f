"""COCO files as tools and people write them: merged, with masks alone, with numbers and paths in other notations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as masks

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, coco_json, kinds, write_image, write_text


def image(number: Any, name: str, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 64, "height": 48} | changes


def annotation(number: Any = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [4, 6, 10, 20]} | changes


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        write_image(folder / name)


def names(index: DatasetIndex) -> list[str]:
    return [record.path.name for record in index.splits["train"]]


def fails(path: Path, *reasons: str) -> DatasetIndex:
    """Check that the dataset is refused with these reasons; it as read without what is bad."""
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    for reason in reasons:
        assert reason in str(caught.value)
    return open_dataset(path, skip_bad=True)


@pytest.mark.parametrize("other_name", ["a.png", "./a.png", "images/a.png", "images\\a.png", "../set/images/a.png"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_the_boxes_of_all_entries_of_a_file_are_read(tmp_path: Path, other_name: str, skip_bad: bool) -> None:
    write_images(tmp_path / "set", "images/a.png", "images/b.png")
    path = coco_json(
        tmp_path / "set" / "annotations" / "instances_train.json",
        [annotation(1), annotation(2, image_id=101, category_id=2, bbox=[30, 8, 5, 6]), annotation(3, image_id=2)],
        [image(1, "a.png"), image(2, "b.png"), image(101, other_name)],
    )
    index = open_dataset(tmp_path / "set", skip_bad=skip_bad)
    assert names(index) == ["a.png", "b.png"]
    assert boxes(index) == [[4, 6, 14, 26], [30, 8, 35, 14]]
    assert boxes(index, record=1) == [[4, 6, 14, 26]]
    assert index.splits["train"][0].class_ids.tolist() == [0, 1]
    assert index.splits["train"][0].origins == tuple(f"{path}: annotation id {number}" for number in (1, 2))
    assert kinds(index) == ["repeated-image"]


def test_every_entry_of_a_file_must_state_its_size(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    images = [image(1, "a.png"), image(2, "a.png", width=640), image(3, "b.png"), image(4, "b.png", width=None)]
    path = coco_json(tmp_path / "set.json", [annotation(), annotation(2, image_id=4)], images)
    index = fails(path, "image id 2 (a.png): the labels say the image is 640x48")
    assert names(index) == ["b.png"]
    assert boxes(index) == [[4, 6, 14, 26]]


def test_an_id_of_two_files_is_refused_and_neither_gets_the_boxes_of_the_other(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    images = [image(7, "a.png"), image(7, "b.png"), image(8, "c.png"), image(9, "b.png"), image("10", "d.png")]
    path = coco_json(
        tmp_path / "set.json",
        [annotation(1, image_id=7), annotation(2, image_id=8, bbox=[1, 2, 3, 4]), annotation(3, image_id=9)],
        images,
    )
    index = fails(path, "image id 7 (a.png): ", "image id 7 (b.png): ", "'a.png' and 'b.png'")
    assert names(index) == ["c.png", "d.png"]
    assert boxes(index) == [[1, 2, 4, 6]]
    left_out = {one.image.name for one in index.adjustments if one.kind == "skipped-bad" and one.image}
    assert left_out == {"a.png", "b.png"}


@pytest.mark.parametrize(
    "twin",
    [
        image(1, "gone.png"),
        image(1, "c.gif"),
        image(1, "c.png", width="64"),
        image(5, "a.png", width=64.5),
        {"file_name": "a.png"},
        image(None, "a.png"),
        image([], "./a.png"),
    ],
)
def test_an_image_is_left_out_with_a_bad_entry_of_its_file_or_id(tmp_path: Path, twin: dict[str, Any]) -> None:
    write_images(tmp_path, "a.png", "b.png")
    images = [image(1, "a.png"), image(2, "b.png"), twin]
    path = coco_json(tmp_path / "set.json", [annotation(), annotation(2, image_id=2)], images)
    assert names(fails(path)) == ["b.png"]


@pytest.mark.parametrize("bad", [{"bbox": [4, 6, 1]}, {"bbox": [4, 6, 1, "2"]}, {"iscrowd": 3}, {"area": -1}])
def test_an_image_goes_with_its_bad_annotation(tmp_path: Path, bad: dict[str, Any]) -> None:
    write_images(tmp_path, "a.png", "b.png")
    annotations = [annotation(1), annotation(2, **bad), annotation(3, image_id=2, bbox=[1, 2, 3, 4])]
    path = coco_json(tmp_path / "set.json", annotations, [image(1, "a.png"), image(2, "b.png")])
    index = fails(path, f"{path}: annotation id 2: ")
    assert names(index) == ["b.png"]
    assert [(one.kind, one.image) for one in index.adjustments] == [("skipped-bad", tmp_path / "a.png")]


@pytest.mark.parametrize(
    ("listed", "used"), [(1, "1"), ("1", 1), (1.0, 1), ("1", 1.0), ("1.0", 1), ("x", "x"), (0, 0.0)]
)
def test_ids_agree_whatever_their_type(tmp_path: Path, listed: Any, used: Any) -> None:
    write_images(tmp_path, "a.png")
    categories = [{"id": listed, "name": "cat"}]
    path = coco_json(
        tmp_path / "set.json", [annotation(image_id=used, category_id=used)], [image(listed, "a.png")], categories
    )
    index = open_dataset(path)
    assert boxes(index) == [[4, 6, 14, 26]]
    assert index.class_names == ("cat",)
    assert index.adjustments == ()


def test_text_ids_that_differ_stay_apart(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    images = [image("01", "a.png"), image("1", "b.png")]
    path = coco_json(
        tmp_path / "set.json", [annotation(image_id=1), annotation(2, image_id="01", bbox=[0, 0, 1, 1])], images
    )
    index = open_dataset(path)
    assert [boxes(index, record=number) for number in (0, 1)] == [[[0, 0, 1, 1]], [[4, 6, 14, 26]]]
    images[0]["id"] = 1.0
    coco_json(path, [], images)
    assert names(fails(path, "image id 1 (a.png): ")) == []


@pytest.mark.parametrize(("width", "height"), [(64.0, 48.0), (None, None), (0, 0), (6.4e1, 48)])
def test_sizes_are_whole_numbers_in_any_notation(tmp_path: Path, width: Any, height: Any) -> None:
    write_images(tmp_path, "a.png")
    path = coco_json(tmp_path / "set.json", [annotation()], [image(1, "a.png", width=width, height=height)])
    assert boxes(open_dataset(path)) == [[4, 6, 14, 26]]
    coco_json(path, [annotation()], [image(1, "a.png", width=width, height=96.0)])
    if width:
        fails(path, "the labels say the image is 64x96")


@pytest.mark.parametrize(
    ("iscrowd", "is_ignored"), [(None, False), (False, False), (0.0, False), (True, True), (1.0, True)]
)
def test_crowds_are_told_in_any_notation(tmp_path: Path, iscrowd: Any, is_ignored: bool) -> None:
    write_images(tmp_path, "a.png")
    record = open_dataset(coco_json(tmp_path / "set.json", [annotation(iscrowd=iscrowd, area=None)])).splits["train"][0]
    assert record.ignored.tolist() == [is_ignored]
    assert record.areas.tolist() == [200]


@pytest.mark.parametrize(
    ("written", "is_told"),
    [
        ("images\\a.png", False),
        (".\\images\\a.png", False),
        ("Images/A.PNG", True),
        ("C:\\label studio\\media\\images\\a.png", True),
        ("/home/somebody/images/a.png", True),
        ("../../data/media/upload/1/a.png", True),
        ("https://host/bucket/images/a.png?token=1", True),
    ],
)
def test_names_of_other_systems_are_found(tmp_path: Path, written: str, is_told: bool) -> None:
    write_images(tmp_path, "images/a.png")
    index = open_dataset(coco_json(tmp_path / "result.json", [annotation()], [image(1, written)]))
    assert [record.path for record in index.splits["train"]] == [tmp_path / "images" / "a.png"]
    assert boxes(index) == [[4, 6, 14, 26]]
    assert kinds(index) == ["relocated"] * is_told


def test_the_end_of_a_path_never_gives_an_image_the_boxes_of_another(tmp_path: Path) -> None:
    write_images(tmp_path, "images/a.png", "images/b.png", "images/val/c.png", "images/train/c.png")
    images = [image(1, "/cam1/a.png"), image(2, "/cam2/a.png"), image(3, "other/b.png"), image(4, "b.png")]
    path = coco_json(
        tmp_path / "annotations" / "instances_train.json", [annotation(), annotation(2, image_id=4)], images
    )
    index = fails(tmp_path, "both lead to", "'other/b.png'")
    assert names(index) == ["b.png"]
    (tmp_path / "images" / "train" / "c.png").unlink()
    coco_json(path, [], [image(1, "/elsewhere/c.png")])
    assert names(fails(tmp_path, "the image does not exist")) == []


def test_an_unused_category_that_groups_others_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "cards", "supercategory": "none"},
        {"id": 1, "name": "ace", "supercategory": "cards"},
        {"id": 2, "name": "king", "supercategory": "cards"},
    ]
    for split, used in (("train", 2), ("valid", 1)):
        write_images(tmp_path / split, "a.png")
        coco_json(tmp_path / split / "_annotations.coco.json", [annotation(category_id=used)], categories=categories)
    index = open_dataset(tmp_path)
    assert index.class_names == ("ace", "king")
    assert [index.splits[split][0].class_ids.tolist() for split in ("train", "val")] == [[1], [0]]
    assert kinds(index) == ["ignored-category"]
    assert "'cards'" in index.adjustments[0].detail
    coco_json(tmp_path / "valid" / "_annotations.coco.json", [annotation(category_id=0)], categories=categories)
    index = open_dataset(tmp_path)
    assert index.class_names == ("cards", "ace", "king")
    assert [index.splits[split][0].class_ids.tolist() for split in ("train", "val")] == [[2], [0]]
    assert index.adjustments == ()


def test_a_root_of_the_same_name_as_the_class_leaves_one_class(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    categories = [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "cat"}]
    index = open_dataset(coco_json(tmp_path / "set.json", [annotation()], categories=categories))
    assert index.class_names == ("cat",)
    alone = [{"id": 1, "name": "cat", "supercategory": "cat"}, {"id": 2, "name": "dog", "supercategory": "pets"}]
    assert open_dataset(coco_json(tmp_path / "set.json", [], categories=alone)).class_names == ("cat", "dog")


# A rectangle from (4, 6) to (14, 26) in an image of 64 x 48: 10 columns of 20 pixels.
RUNS = [4 * 48 + 6, *[20, 28] * 9, 20, 3072 - (13 * 48 + 26)]
OUTLINES: dict[str, tuple[Any, list[float]]] = {
    "polygons": ([[4, 6, 14, 6, 14, 26], [2, 30, 8, 30, 8, 40.5]], [2, 6, 14, 40.5]),
    "one polygon, not in a list": ([4, 6, 14, 6, 14, 26], [4, 6, 14, 26]),
    "polygon and an empty one": ([[], [4, 6, 14, 6, 14, 26]], [4, 6, 14, 26]),
    "run lengths": ({"size": [48, 64], "counts": RUNS}, [4, 6, 14, 26]),
    "run lengths as floats": ({"size": [48.0, 64], "counts": list(map(float, RUNS))}, [4, 6, 14, 26]),
    "compressed": ({"size": [48, 64], "counts": "V6d0l0" + "0" * 17 + "jZ2"}, [4, 6, 14, 26]),
    "a run over several columns": ({"size": [48, 64], "counts": [47, 2, 3023]}, [0, 0, 2, 48]),
    "all pixels": ({"size": [48, 64], "counts": [0, 3072]}, [0, 0, 64, 48]),
    "empty runs": ({"size": [48, 64], "counts": [0, 0, 49, 1, 0, 1, 3021]}, [1, 1, 2, 3]),
}


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], "absent"])
@pytest.mark.parametrize(("outline", "expected"), OUTLINES.values(), ids=OUTLINES.keys())
def test_without_a_bbox_the_box_around_the_mask_is_read(
    tmp_path: Path, outline: Any, expected: list[float], bbox: Any
) -> None:
    write_images(tmp_path, "a.png")
    one = annotation(bbox=bbox, segmentation=outline)
    if bbox == "absent":
        del one["bbox"]
    index = open_dataset(coco_json(tmp_path / "set.json", [one, annotation(2, bbox=[1, 2, 3, 4])]))
    assert boxes(index) == [expected, [1, 2, 4, 6]]
    assert kinds(index) == ["shape-as-box"]


@pytest.mark.parametrize(
    ("outline", "reason"),
    [
        (None, "bbox must be 4 finite numbers"),
        ([], "bbox must be 4 finite numbers"),
        ([[]], "bbox must be 4 finite numbers"),
        ([[], []], "the segmentation is empty"),
        ([[1, 2, 3, 4]], "a polygon must be"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon must be"),
        ([[1, 2, 3, 4, 5, None]], "a polygon must be"),
        ([[1, 2, 3, 4, 5, 1e400]], "a polygon must be"),
        ([[1, 2, 3, 4, 5, 6], 7], "a polygon must be"),
        ("text", "a polygon must be"),
        (7, "a polygon must be"),
        ({"size": [48, 64], "counts": RUNS[:-1]}, "add up to 48 x 64"),
        ({"size": [48, 64], "counts": [3073, -1]}, "add up to"),
        ({"size": [48, 64], "counts": [1.5, 3070.5]}, "add up to"),
        ({"size": [48, 64], "counts": "V6d"}, "add up to"),
        ({"size": [48, 64], "counts": "V6 d0"}, "add up to"),
        ({"size": [48, 64], "counts": "o" * 100_000}, "add up to"),
        ({"size": [48, 64], "counts": "00000O"}, "add up to"),
        ({"size": [48, 64], "counts": None}, "add up to"),
        ({"size": [48], "counts": RUNS}, "the size of a mask"),
        ({"size": [0, 64], "counts": []}, "the size of a mask"),
        ({"counts": RUNS}, "the size of a mask"),
        ({"size": [64, 48], "counts": RUNS}, "the labels say the image is 48x64"),
    ],
)
def test_a_mask_that_cannot_be_read_is_bad(tmp_path: Path, outline: Any, reason: str) -> None:
    write_images(tmp_path, "a.png", "b.png")
    one = annotation(5, bbox=None, segmentation=outline)
    path = coco_json(tmp_path / "set.json", [one, annotation(2)], [image(1, "a.png"), image(2, "b.png")])
    assert names(fails(path, f"{path}: annotation id 5: ", reason)) == ["b.png"]


def test_boxes_of_masks_are_those_that_the_library_finds(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    rng, path = np.random.default_rng(0), tmp_path / "set.json"
    annotations, expected = [], {}
    for number in range(40):
        mask = np.zeros((48, 64), np.uint8, order="F")
        x, y = rng.integers(0, 60), rng.integers(0, 44)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 40)] = 1
        mask[rng.random(mask.shape) < 0.3] = 0
        text = masks.encode(mask)["counts"]
        text = text.decode() if isinstance(text, bytes) else text
        annotations.append(annotation(number, bbox=None, segmentation={"size": [48, 64], "counts": text}))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if mask.any():
            expected[f"{path}: annotation id {number}"] = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    index = open_dataset(coco_json(path, annotations))
    found = dict(zip(index.splits["train"][0].origins, boxes(index), strict=True))
    assert len(found) > 30
    assert found == {origin: expected[origin] for origin in found}


def test_a_mask_without_a_pixel_is_dropped_as_a_box_without_area_is(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    empty = {"size": [48, 64], "counts": [3072]}
    index = open_dataset(coco_json(tmp_path / "set.json", [annotation(bbox=None, segmentation=empty), annotation(2)]))
    assert boxes(index) == [[4, 6, 14, 26]]
    assert sorted(kinds(index)) == ["dropped-empty", "shape-as-box"]


def test_a_bbox_goes_before_a_mask(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    runs = {"size": [1, 1], "counts": "anything"}
    index = open_dataset(coco_json(tmp_path / "set.json", [annotation(segmentation=runs, iscrowd=1)]))
    assert boxes(index) == [[4, 6, 14, 26]]
    assert index.splits["train"][0].ignored.tolist() == [True]
    assert index.adjustments == ()


@pytest.mark.parametrize("name", ["annotations/instances_train.json", "train.json", "train/_annotations.coco.json"])
def test_hidden_files_and_letter_case_of_files_and_folders(tmp_path: Path, name: str) -> None:
    path = Path(name)
    shown = path.parent.name.capitalize() if path.parent.name == "annotations" else path.parent.name
    folder = tmp_path / shown
    image_folder = folder if path.parent.name == "train" else tmp_path / "Images" / "Train"
    write_images(image_folder, "a.png")
    coco_json(folder / path.name.replace("instances_train.json", "Instances_Train.JSON"), [annotation()])
    for hidden in (folder, tmp_path):
        write_text(hidden / f"._{path.name}", b"\0\5\x16\7" + bytes(40))
        write_text(hidden / "._other.json", b"\0\5\x16\7")
    index = open_dataset(tmp_path)
    assert list(index.splits) == ["train"]
    assert boxes(index) == [[4, 6, 14, 26]]


def test_splits_are_found_in_words_of_file_names(tmp_path: Path) -> None:
    write_images(tmp_path, "images/a.png")
    for name in ("train_coco", "annotations-val"):
        coco_json(tmp_path / f"{name}.json", [annotation()])
    assert list(open_dataset(tmp_path).splits) == ["train", "val"]


def test_a_json_of_any_name_in_the_folder_of_each_split(tmp_path: Path) -> None:
    for split, x in (("train", 4), ("val", 5)):
        write_images(tmp_path / split / "data", "a.png")
        coco_json(tmp_path / split / "labels.json", [annotation(bbox=[x, 6, 10, 20])])
        write_text(tmp_path / split / "info.json", "{}")
    index = open_dataset(tmp_path)
    assert (boxes(index), boxes(index, "val")) == ([[4, 6, 14, 26]], [[5, 6, 15, 26]])
    path = tmp_path / "val" / "labels.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(InputError, match=r"labels\.json:1:[0-9]+: not valid JSON"):
        open_dataset(tmp_path)
    coco_json(path, [])
    coco_json(tmp_path / "val" / "more.json", [])
    with pytest.raises(InputError, match=r"several files .*labels\.json, more\.json"):
        open_dataset(tmp_path)


def test_two_files_of_a_name_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "images/a.png")
    for folder in (tmp_path, tmp_path / "annotations"):
        coco_json(folder / "instances_train.json", [annotation()])
    with pytest.raises(InputError, match=r"instances_train\.json"):
        open_dataset(tmp_path)


def test_among_hundreds_of_jsons_only_those_named_by_split_are_read(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    for number in range(101):
        write_text(tmp_path / f"{number}.json", json.dumps({"images": [], "annotations": []}))
    coco_json(tmp_path / "train.json", [annotation()])
    index = open_dataset(tmp_path)
    assert boxes(index) == [[4, 6, 14, 26]]
    assert index.adjustments == ()
