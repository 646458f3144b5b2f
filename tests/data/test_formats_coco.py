"""COCO datasets: categories by id, boxes, the places of images, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, coco_json, kinds, write_image, write_text


def annotation(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [4, 6, 10, 20], "iscrowd": 0} | changes


def image(number: int, name: str, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 64, "height": 48} | changes


def test_boxes_areas_crowds_and_origins(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = coco_json(
        tmp_path / "set.json",
        [
            annotation(7, area=123.5),
            annotation(8, category_id=2, bbox=[0, 0, 64, 48], iscrowd=1),
            annotation("x", bbox=[0.5, 0, 1, 2]),
        ],
    )
    index = open_dataset(path)
    record = index.splits["train"][0]
    assert index.format == "coco"
    assert boxes(index) == [[4, 6, 14, 26], [0, 0, 64, 48], [0.5, 0, 1.5, 2]]
    assert record.areas.tolist() == [123.5, 64 * 48, 2]
    assert record.ignored.tolist() == [False, True, False]
    assert record.class_ids.tolist() == [0, 1, 0]
    assert record.origins == tuple(f"{path}: annotation id {number}" for number in (7, 8, "x"))
    assert index.adjustments == ()


def test_categories_go_by_id_with_gaps_and_equal_names(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    names = [(90, "cat"), (7, "cat"), (3, "dog"), (12, "cat#90"), (0, "animals")]
    path = coco_json(
        tmp_path / "set.json",
        [annotation(category_id=90), annotation(category_id=7), annotation(category_id=0)],
        categories=[{"id": number, "name": name} for number, name in names],
    )
    index = open_dataset(path)
    assert index.class_names == ("animals", "dog", "cat", "cat#90", "cat#90#90")
    assert index.splits["train"][0].class_ids.tolist() == [4, 2, 0]


def test_strings_that_are_not_utf8_are_read_or_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    categories = [{"id": "\ud800", "name": "cat", "\ud800": 1}, {"id": 1, "name": "cat"}]
    path = coco_json(tmp_path / "set.json", [annotation() | {"\ud800": 1}], categories=categories)
    index = open_dataset(path)
    assert index.class_names[0] == "cat"
    assert index.class_names[1].encode().startswith(b"cat#")
    assert boxes(index) == [[4, 6, 14, 26]]
    write_text(path, '{"shapes": 1, "\\ud800": 1}')
    with pytest.raises(InputError, match="no dataset recognised"):
        open_dataset(tmp_path)


def test_a_made_name_never_takes_that_of_another_category(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    categories = [{"id": number, "name": name} for number, name in ((3, "cat"), (5, "cat"), (9, "cat#5"))]
    path = coco_json(tmp_path / "set.json", [], categories=categories)
    assert open_dataset(path).class_names == ("cat", "cat#5#5", "cat#5")


@pytest.mark.parametrize(
    ("val_categories", "message"),
    [
        ([{"id": 1, "name": "dog"}], "category 1 is 'dog', but in"),
        ([{"id": 2, "name": "cat"}, {"id": 1, "name": "cat"}], "category 'cat' has id 1, 2, but in"),
        ([{"id": 5, "name": "cat"}], "category 'cat' has id 5, but in"),
    ],
)
def test_splits_that_disagree_on_categories_are_refused(
    tmp_path: Path, val_categories: list[dict[str, Any]], message: str
) -> None:
    for split, categories in (("train", [{"id": 1, "name": "cat"}]), ("val", val_categories)):
        write_image(tmp_path / "images" / split / "a.png")
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", [], categories=categories)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(tmp_path)
    assert "instances_train.json" in str(caught.value)
    assert "instances_val.json" in str(caught.value)


def test_a_split_may_name_only_some_of_the_categories(tmp_path: Path) -> None:
    for split, numbers in (("train", (1, 4)), ("val", (2, 4))):
        write_image(tmp_path / "images" / split / "a.png")
        categories = [{"id": number, "name": f"c{number}"} for number in numbers]
        coco_json(
            tmp_path / "annotations" / f"instances_{split}.json", [annotation(category_id=4)], categories=categories
        )
    index = open_dataset(tmp_path)
    assert index.class_names == ("c1", "c2", "c4")
    assert index.splits["train"][0].class_ids.tolist() == index.splits["val"][0].class_ids.tolist() == [2]


BAD_ANNOTATIONS: list[tuple[Any, str]] = [
    (annotation(5, image_id=2), "no image has this image_id (2)"),
    (annotation(5, image_id="a"), "no image has this image_id"),
    (annotation(5, image_id=True), "no image has this image_id"),
    (annotation(5, bbox=[4, 6, -1, 2]), "negative width or height"),
    (annotation(5, bbox=[4, 6, 1]), "bbox must be 4 finite numbers"),
    (annotation(5, bbox=[4, 6, 1, float("nan")]), "bbox must be 4 finite numbers"),
    (annotation(5, bbox=[4, 6, 1, float("inf")]), "bbox must be 4 finite numbers"),
    (annotation(5, bbox=[4, 6, 1, 10**400]), "bbox must be 4 finite numbers"),
    (annotation(5, bbox=[4, 6, 1, "2"]), "bbox must be 4 finite numbers"),
    (annotation(5, bbox=[4, 6, 1, True]), "bbox must be 4 finite numbers"),
    (annotation(5, bbox=None), "bbox must be 4 finite numbers"),
    (annotation(5, iscrowd=2), "iscrowd must be 0 or 1"),
    (annotation(5, iscrowd=[]), "iscrowd must be 0 or 1"),
    (annotation(5, area=-1), "area must be"),
    (annotation(5, area="1"), "area must be"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_by_id_and_can_be_skipped_with_its_image(
    tmp_path: Path, bad: Any, reason: str
) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    annotations = [annotation(1), bad, annotation(6, image_id=9)]
    path = coco_json(tmp_path / "set.json", annotations, [image(1, "a.png"), image(9, "b.png")])
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    assert f"{path}: annotation id 5: " in str(caught.value)
    assert reason in str(caught.value)
    index = open_dataset(path, skip_bad=True)
    is_of_no_image = reason.startswith("no image")
    kept = ["a.png", "b.png"] if is_of_no_image else ["b.png"]
    assert [record.path.name for record in index.splits["train"]] == kept
    assert boxes(index) == [[4, 6, 14, 26]]
    assert [(a.kind, a.origin) for a in index.adjustments] == [("skipped-bad", f"{path}: annotation id 5")]
    assert index.adjustments[0].image == (None if is_of_no_image else tmp_path / "a.png")


def test_annotations_without_id_are_named_by_place(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = coco_json(tmp_path / "set.json", ["text", {"image_id": 1, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    assert f"{path}: annotations[0]: must be an object" in str(caught.value)
    assert f"{path}: annotations[1]: no category" in str(caught.value)


def test_bad_images_are_collected(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 32, 32)
    images: list[Any] = [
        image(1, "a.png"),
        image(2, "gone.png"),
        image(3, "b.png"),
        image(4, "a.gif"),
        image(6, "d.png", width="64"),
        image(7, "e\0.png"),
        {"file_name": "c.png"},
        "a.png",
    ]
    path = coco_json(tmp_path / "set.json", [annotation(image_id=2), annotation(2)], images)
    with pytest.raises(InputError, match="7 errors") as caught:
        open_dataset(path)
    for reason in (
        "image id 2: the image does not exist ('gone.png'; looked in ",
        "image id 3 (b.png): the labels say the image is 64x48, the file is 32x32",
        "image id 4: file_name must name an image ('a.gif')",
        "image id 6: width and height",
        "image id 7: file_name must name an image",
        "images[6]: must be an object",
        "images[7]: must be an object",
    ):
        assert f"{path}: {reason}" in str(caught.value)
    index = open_dataset(path, skip_bad=True)
    assert [record.path.name for record in index.splits["train"]] == ["a.png"]
    assert kinds(index) == ["skipped-bad"] * 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [\n  1,,\n]}', ":2:5: not valid JSON"),
        (b"\xff\xfe{", ":1: not UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b'{"categories": [{"id": ' + b"1" * 10_000 + b"}]}", "not readable as JSON"),
        (b"[]", "cannot be opened"),
        (b"{}", "cannot be opened"),
        (b'{"images": []}', "categories must be a list"),
        (b'{"categories": [], "images": [], "annotations": []}', "categories is empty"),
        (b'{"categories": [{"id": 1.5, "name": "a"}]}', "categories[0]: must be an object with a whole number"),
        (b'{"categories": [{"id": 1, "name": 7}]}', "category 1 must have a text"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "id 1 stands twice"),
        (b'{"categories": [{"id": 1, "name": "a"}], "annotations": []}', "images must be a list"),
    ],
)
def test_a_broken_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_text(tmp_path / "set.json", content)
    with pytest.raises(InputError) as caught:
        open_dataset(path, skip_bad=True)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = coco_json(tmp_path / "set.json", [annotation()])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert boxes(open_dataset(path)) == [[4, 6, 14, 26]]


def test_records_are_sorted_by_file_name_and_boxes_keep_their_order(tmp_path: Path) -> None:
    names = ["b.png", "a.png", "a/z.png", "B.png"]
    for name in names:
        write_image(tmp_path / name)
    images = [image(number, name) for number, name in enumerate(names)]
    annotations = [annotation(k, image_id=k % 4, bbox=[k, 0, 5, 5]) for k in range(8)]
    index = open_dataset(coco_json(tmp_path / "set.json", annotations, images))
    assert [str(record.path.relative_to(tmp_path)) for record in index.splits["train"]] == [
        "B.png",
        "a/z.png",
        "a.png",
        "b.png",
    ]
    assert boxes(index, record=2) == [[1, 0, 6, 5], [5, 0, 10, 5]]


@pytest.mark.parametrize(("size", "is_accepted"), [((48, 64), True), ((64, 48), False), ((0, 0), True)])
def test_sizes_of_turned_images_must_be_the_displayed_ones(
    tmp_path: Path, size: tuple[int, int], is_accepted: bool
) -> None:
    write_image(tmp_path / "a.jpg", 64, 48, orientation=6)
    path = coco_json(
        tmp_path / "set.json", [annotation(bbox=[0, 0, 48, 64])], [image(1, "a.jpg", width=size[0], height=size[1])]
    )
    if is_accepted:
        assert boxes(open_dataset(path)) == [[0, 0, 48, 64]]
        return
    with pytest.raises(InputError, match=r"shown as 48x64 after its EXIF orientation \(6\)"):
        open_dataset(path)
