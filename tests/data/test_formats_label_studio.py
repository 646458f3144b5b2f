"""Label Studio's JSON and JSON-MIN: every kind of region as its box, which annotation is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, kinds, write_image, write_text

# An image of 64x48 in percent: 1 % is 0.64 px across and 0.48 px down.
RECTANGLE = {"x": 12.5, "y": 25.0, "width": 25.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["cat"]}
RECTANGLE_PX = [8, 12, 24, 36]


def region(value: dict[str, Any], **more: Any) -> dict[str, Any]:
    kind = next((key for key in value if key.endswith("labels")), "choices")
    size = {"original_width": 64, "original_height": 48, "image_rotation": 0}
    return size | {"id": f"r{id(value)}", "type": kind, "from_name": "label", "to_name": "image", "value": value} | more


def annotation(*regions: Any, **more: Any) -> dict[str, Any]:
    return {"id": 11, "completed_by": 1, "result": list(regions), "was_cancelled": False, "ground_truth": False} | more


def task(*annotations: Any, image: str = "/data/upload/1/1a2b3c4d-a.png", **more: Any) -> dict[str, Any]:
    empty = {"drafts": [], "predictions": [{"result": [region(RECTANGLE | {"rectanglelabels": ["guess"]})]}]}
    return {"id": 1, "annotations": list(annotations), **empty, "data": {"image": image}} | more


def label_studio(folder: Path, *tasks: Any, name: str = "project-1-at-2025.json") -> Path:
    write_text(folder / name, json.dumps(list(tasks)))
    write_image(folder / "images" / "a.png")
    return folder


def packed(values: list[int]) -> list[int]:
    """Bytes as rle-pack writes them, by its document: counts of 3, 4, 8 or 16 bits; runs and lists of values."""
    bits = f"{len(values):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    start = 0
    while start < len(values):
        end = start + 1
        while end < len(values) and end - start < 65536 and values[end] == values[start]:
            end += 1
        is_repeated = end - start > 1
        while not is_repeated and end < min(len(values), start + 8) and values[end] != values[end - 1]:
            end += 1
        count = end - start - 1
        size, width = next((number, width) for number, width in enumerate((3, 4, 8, 16)) if count < 1 << width)
        bits += f"{int(is_repeated)}{size:02b}{count:0{width}b}"
        bits += "".join(f"{value:08b}" for value in ([values[start]] if is_repeated else values[start:end]))
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def brushed(*pixels: tuple[int, int], width: int = 64, height: int = 48) -> list[int]:
    """A mask of some pixels (column, row), half opaque, on transparent white."""
    values = [255, 255, 255, 0] * (width * height)
    for number, (column, row) in enumerate(pixels):
        values[4 * (row * width + column) + 3] = 128 + number
    return packed(values)


def test_the_boxes_of_a_sample_made_by_hand(tmp_path: Path) -> None:
    regions = (
        region(RECTANGLE),
        region({"points": [[25, 25], [75, 50], [50, 100]], "polygonlabels": ["dog"], "closed": True}),
        region({"x": 50, "y": 50, "radiusX": 12.5, "radiusY": 25, "rotation": 0, "ellipselabels": ["dog"]}),
        region({"format": "rle", "rle": brushed((3, 5), (9, 4), (4, 20)), "brushlabels": ["cat"]}),
        region({"x": 10, "y": 10, "width": 0.5, "keypointlabels": ["nose"]}),
        region({"choices": ["sunny"]}),
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    )
    label_studio(tmp_path, task(annotation(*regions)), task(annotation(), image="s3://bucket/x/b.png", id=2))
    write_image(tmp_path / "images" / "b.png")
    index = open_dataset(tmp_path)
    assert (index.format, index.class_names) == ("label-studio", ("cat", "dog"))
    assert boxes(index) == [RECTANGLE_PX, [16, 12, 48, 48], [24, 12, 40, 36], [3, 4, 10, 21]]
    assert index.splits["train"][0].class_ids.tolist() == [0, 1, 1, 0]
    assert len(index.splits["train"]) == 2, "a task that was submitted without a region is background"
    told = " / ".join(one.detail for one in index.adjustments)
    assert kinds(index).count("shape-as-box") == 3
    for words in ("1 polygons", "1 ellipses", "1 brushed masks", "1 key points", "1 tags"):
        assert words in told


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Turned by a right angle about its top left corner (32, 12): 16 px wide and 12 px high, to the left and down.
        ({"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90}, [20, 12, 32, 28]),
        # By 30 degrees: from x - 12 sin to x + 16 cos, from y to y + 16 sin + 12 cos.
        ({"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 30}, [26, 12, 45.856406, 30.392305]),
        ({"x": -1.25, "y": 0.0, "width": 100, "height": 50, "rotation": None}, [0, 0, 63.2, 24]),
        ({"x": 50, "y": 50, "radiusX": 12.5, "radiusY": 25, "rotation": 90}, [20, 16, 44, 32]),
    ],
)
def test_rotated_regions(tmp_path: Path, value: dict[str, Any], expected: list[float]) -> None:
    label_studio(tmp_path, task(annotation(region(value | {"rectanglelabels": ["cat"]}))))
    assert boxes(open_dataset(tmp_path)) == [expected]


def test_of_several_annotations_one_is_read(tmp_path: Path) -> None:
    mine, other = region(RECTANGLE), region(RECTANGLE | {"x": 50})
    cases = {
        "first": ([annotation(mine), annotation(other)], 8),
        "not skipped": ([annotation(mine, was_cancelled=True), annotation(other)], 32),
        "not empty": ([annotation(), annotation(other), annotation(mine)], 32),
        "ground truth": ([annotation(mine), annotation(other, ground_truth=True)], 32),
    }
    for name, (drawn, left) in cases.items():
        index = open_dataset(label_studio(tmp_path / name, task(*drawn)))
        assert [box[0] for box in boxes(index)] == [left]
        assert ("ignored-annotation" in kinds(index)) == (name != "not skipped")


def test_tasks_that_nobody_finished_are_left_out_and_told(tmp_path: Path) -> None:
    tasks = [
        task(annotation(region(RECTANGLE))),
        task(id=2, image="b.png"),
        task(annotation(was_cancelled=True), id=3, image="c.png"),
        task(annotation(region({"x": 1, "y": 1, "width": 1, "keypointlabels": ["cat"]})), id=4, image="d.png"),
        task(id=5, image="https://example.org/not-here.png"),
    ]
    label_studio(tmp_path, *tasks)
    for name in ("b.png", "c.png", "d.png"):
        write_image(tmp_path / "images" / name)
    index = open_dataset(tmp_path)
    assert [record.path.name for record in index.splits["train"]] == ["a.png"]
    out = {one.image.name: one.detail for one in index.adjustments if one.kind == "ignored-file" and one.image}
    assert out.keys() == {"b.png", "c.png", "d.png"}
    assert "not labelled" in out["b.png"]
    assert "not labelled" in out["c.png"]
    assert "key points" in out["d.png"]


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/1/1a2b3c4d-a.png",
        "1a2b3c4d-a.png",
        "/data/local-files/?d=photos%2Fimages/a.png",
        "https://example.org/images/a.png?X-Amz-Signature=00.5",
        "gs://bucket/a.png",
        "C:\\photos\\A.PNG",
        "/data/upload/1/1a2b3c4d-%61.png",
    ],
)
def test_the_image_is_found_by_each_way_of_naming_it(tmp_path: Path, name: str) -> None:
    assert boxes(open_dataset(label_studio(tmp_path, task(annotation(region(RECTANGLE)), image=name)))) == [
        RECTANGLE_PX
    ]


def test_a_name_of_a_megabyte_costs_no_more_than_reading_it(tmp_path: Path) -> None:
    label_studio(tmp_path, task(annotation(region(RECTANGLE)), image=f"/{'d' * 1_000_000}/?d=images/a.png"))
    assert boxes(open_dataset(tmp_path)) == [RECTANGLE_PX]


def test_an_upload_with_its_hash_goes_before_one_without(tmp_path: Path) -> None:
    label_studio(tmp_path, task(annotation(region(RECTANGLE))))
    write_image(tmp_path / "upload" / "1a2b3c4d-a.png")
    assert open_dataset(tmp_path).splits["train"][0].path == tmp_path / "upload" / "1a2b3c4d-a.png"


def test_two_uploads_of_one_name_never_share_a_file(tmp_path: Path) -> None:
    uploads = [task(annotation(region(RECTANGLE)), id=number, image=f"{number}a2b3c4d-a.png") for number in (1, 2)]
    label_studio(tmp_path, *uploads, task(annotation(region(RECTANGLE)), id=3, image="b.png"))
    write_image(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"2 errors(.|\n)*task 1: (.|\n)*task 2: "):
        open_dataset(tmp_path)
    assert [record.path.name for record in open_dataset(tmp_path, skip_bad=True).splits["train"]] == ["b.png"]


def test_labels_and_rectangle_apart_are_one_region(tmp_path: Path) -> None:
    plain = {key: RECTANGLE[key] for key in ("x", "y", "width", "height", "rotation")}
    regions = [
        region(plain, id="r", type="rectangle"),
        region(plain | {"labels": ["cat"]}, id="r", type="labels"),
        region(plain | {"text": ["words"]}, id="r", type="textarea"),
        region(plain | {"choices": ["old"]}, id="r", type="choices"),
    ]
    index = open_dataset(label_studio(tmp_path, task(annotation(*regions))))
    assert boxes(index) == [RECTANGLE_PX]
    assert kinds(index) == []


def test_a_region_with_two_labels_is_an_object_of_each(tmp_path: Path) -> None:
    both = region(RECTANGLE | {"rectanglelabels": ["cat", "animal", "cat"]})
    index = open_dataset(label_studio(tmp_path, task(annotation(both))))
    assert (index.class_names, boxes(index)) == (("animal", "cat"), [RECTANGLE_PX] * 2)


def test_json_min(tmp_path: Path) -> None:
    facts = {"original_width": 64, "original_height": 48}
    entry = {"image": "/data/upload/1/1a2b3c4d-a.png", "id": 1, "annotator": 1, "annotation_id": 1, "choice": "sunny"}
    polygon = {"points": [[25, 25], [75, 50], [50, 100]], "polygonlabels": ["dog"]} | facts
    tasks = [
        entry | {"label": [RECTANGLE | facts], "outline": [polygon]},
        entry | {"label": [RECTANGLE | {"x": 50} | facts], "annotator": 2, "annotation_id": 2},
        entry | {"id": 2, "image": "b.png"},
        {"id": 3, "image": "c.png", "label": []},
    ]
    label_studio(tmp_path, *tasks)
    for name in ("b.png", "c.png"):
        write_image(tmp_path / name)
    index = open_dataset(tmp_path)
    assert index.format == "label-studio"
    assert {record.path.name: record.boxes_xyxy.tolist() for record in index.splits["train"]} == {
        "a.png": [RECTANGLE_PX, [16, 12, 48, 48]],
        "b.png": [],
    }
    assert sorted(kinds(index)) == ["ignored-annotation", "ignored-file", "shape-as-box"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": None}, r"task 1, result 1: x must be a finite number \(None\)"),
        ({"width": "10"}, r"result 1: width must be a finite number"),
        ({"width": 101.0}, r"result 1: width and height must be percent"),
        ({"height": -1}, r"result 1: width and height must be percent"),
        ({"points": [[1, 2], [3, 4]]}, r"points must be 3 or more"),
        ({"points": [[1, 2], [3, 4], [5]]}, r"a point must be two finite numbers"),
        ({"rle": [1, 2, 3]}, "the rle of the brushed mask is damaged"),
        ({"rle": brushed((1, 1), width=63)}, "the rle of the brushed mask is damaged, or of another image"),
        ({"rle": brushed()}, "the brushed mask has no pixel"),
        ({"rle": brushed((1, 1))[:-4]}, "the rle of the brushed mask is damaged"),
        ({"rle": [300]}, "the rle of the brushed mask is damaged"),
    ],
)
def test_a_bad_region_is_named_and_its_image_left_out(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    bad = task(annotation(region(RECTANGLE | change), region(RECTANGLE)))
    label_studio(tmp_path, bad, task(annotation(region(RECTANGLE)), id=2, image="b.png"))
    write_image(tmp_path / "b.png")
    with pytest.raises(InputError, match=reason):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.name for record in index.splits["train"]] == ["b.png"]
    assert [one.image for one in index.adjustments if one.kind == "skipped-bad"] == [tmp_path / "images" / "a.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([task(annotation(region({"video": 1, "videolabels": ["a"]})))], "a region of this kind is not read"),
        ([task(annotation(region(RECTANGLE, image_rotation=90)))], "turned by 90 degrees"),
        (
            [task(annotation(region(RECTANGLE, original_width=65)))],
            "the labels say the image is 65x48, the file is 64x48",
        ),
        ([task(annotation(region(RECTANGLE, original_width=6.5)))], "original_width must be a whole number"),
        ([task(annotation(region(RECTANGLE | {"rotation": 5}, original_width=None)))], "original_height are missing"),
        ([task(annotation(region(RECTANGLE), region(RECTANGLE, original_width=32)))], "32x48 here, but 64x48 before"),
        ([task(annotation("x"))], "task 1, result 1: must be an object"),
        ([task(annotation(region(RECTANGLE) | {"value": 3}))], "value must be an object"),
        ([task("x")], "task 1: each of its annotations must be an object"),
        ([task() | {"annotations": "x"}], "task 1: annotations must be a list"),
        ([task(annotation()) | {"data": {"text": "words"}}], r"task 1: its data have no image \(keys 'text'\)"),
        ([task(annotation()) | {"data": {"left": "a.png", "right": "b.png"}}], "several images"),
        ([task(annotation(region(RECTANGLE)), image="gone.png")], r"task 1: the image does not exist \('gone.png'"),
        ([task(annotation(region(RECTANGLE)), "x"), 5], "task 2 of the list: must be an object"),
        ([task(annotation(region(RECTANGLE)), id=None, image="gone.png")], "task 1 of the list: the image"),
    ],
)
def test_a_task_that_cannot_be_read_is_named(tmp_path: Path, content: list[Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_dataset(label_studio(tmp_path, *content))


def test_a_damaged_json_is_named_by_line_and_column(tmp_path: Path) -> None:
    file = label_studio(tmp_path, task(annotation(region(RECTANGLE)))) / "project-1-at-2025.json"
    write_text(file, b"\xef\xbb\xbf" + file.read_bytes().replace(b"{", b"{\r\n", 1)[:-9])
    with pytest.raises(InputError, match=r"2025\.json:2:[0-9]+: not valid JSON"):
        open_dataset(tmp_path, "label-studio")


def test_a_number_that_is_nan_is_refused(tmp_path: Path) -> None:
    file = label_studio(tmp_path, task(annotation(region(RECTANGLE)))) / "project-1-at-2025.json"
    write_text(file, file.read_text().replace("12.5", "NaN", 1))
    with pytest.raises(InputError, match=r"x must be a finite number \(nan\)"):
        open_dataset(tmp_path)


def test_two_exports_of_a_project_are_refused_and_two_projects_joined(tmp_path: Path) -> None:
    label_studio(tmp_path, task(annotation(region(RECTANGLE))))
    label_studio(tmp_path, task(annotation(region(RECTANGLE | {"x": 50}))), name="project-1-at-2026.json")
    with pytest.raises(InputError, match=r"2026\.json: task 1: .*2025\.json: task 1.*two exports of a project"):
        open_dataset(tmp_path)
    assert boxes(open_dataset(tmp_path / "project-1-at-2026.json", "label-studio")) == [[32, 12, 48, 36]]
    label_studio(tmp_path, task(annotation(region(RECTANGLE | {"x": 50})), id=9), name="project-1-at-2026.json")
    assert boxes(open_dataset(tmp_path)) == [RECTANGLE_PX, [32, 12, 48, 36]]


def test_splits_are_told_by_the_json_or_by_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        one = task(annotation(region(RECTANGLE)), image=f"{split}/images/a.png")
        label_studio(tmp_path / split, one, name="tasks.json")
    assert list(open_dataset(tmp_path).splits) == ["train", "val"]
