"""VGG Image Annotator: projects and exports, shapes, and which attribute names the class."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, kinds, write_image, write_text

RECT = {"name": "rect", "x": 4, "y": 6, "width": 10, "height": 20}
CAT = {"class": "cat"}


def region(shape: Any = RECT, attributes: Any = CAT) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def entry(name: str, *regions: Any, **changes: Any) -> dict[str, Any]:
    return {"filename": name, "size": 120, "regions": list(regions), "file_attributes": {}} | changes


def via_json(folder: Path, *entries: Any, name: str = "via.json") -> Path:
    """An export in a folder with the images a.png and b.png, of 64 x 48 pixels."""
    for image in ("a.png", "b.png"):
        write_image(folder / image)
    return write_text(folder / name, json.dumps({f"{one['filename']}{one['size']}": one for one in entries}))


def via_csv(*rows: tuple[Any, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    writer.writerow(header.split(","))
    for name, count, number, shape, attributes in rows:
        writer.writerow([name, 120, "{}", count, number, json.dumps(shape), json.dumps(attributes)])
    return text.getvalue()


def names(index: DatasetIndex) -> list[str]:
    return [record.path.name for record in index.splits["train"]]


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    return str(caught.value)


def test_an_export_and_a_project_of_either_version(tmp_path: Path) -> None:
    dog = region({**RECT, "x": 30.5}, {"class": " dog "})
    path = via_json(tmp_path, entry("a.png", region(), dog), entry("b.png"))
    export = json.loads(path.read_text())
    first = {key: {**one, "regions": dict(enumerate(one["regions"])), "fileref": ""} for key, one in export.items()}
    project = {"_via_settings": {"project": {}}, "_via_img_metadata": export, "_via_attributes": {}}
    for content in (export, first, project):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
        for opened in (path, tmp_path):
            index = open_dataset(opened)
            assert (index.format, index.class_names) == ("via", ("cat", "dog"))
            assert names(index) == ["a.png", "b.png"]
            assert boxes(index) == [[4, 6, 14, 26], [30.5, 6, 40.5, 26]]
            assert boxes(index, record=1) == []
            assert index.splits["train"][0].class_ids.tolist() == [0, 1]
            assert index.adjustments == ()


@pytest.mark.parametrize("mark", ["", "#", "\ufeff"])
def test_a_csv(tmp_path: Path, mark: str) -> None:
    via_json(tmp_path).unlink()
    dog = {**RECT, "x": 30}
    rows = [("a.png", 2, 0, RECT, CAT), ("a.png", 2, 1, dog, {"class": "dog"}), ("b.png", 0, 0, {}, {})]
    path = write_text(tmp_path / "via_export.csv", mark + via_csv(*rows))
    for opened in (path, tmp_path):
        index = open_dataset(opened)
        assert (index.format, index.class_names) == ("via", ("cat", "dog"))
        assert boxes(index) == [[4, 6, 14, 26], [30, 6, 40, 26]]
        assert boxes(index, record=1) == []
        assert index.splits["train"][0].origins == (f"{path}:2", f"{path}:3")


def test_a_region_that_a_csv_lacks_takes_the_image_out(tmp_path: Path) -> None:
    via_json(tmp_path).unlink()
    path = write_text(tmp_path / "a.csv", via_csv(("a.png", 2, 0, RECT, CAT), ("b.png", 1, 0, RECT, CAT)))
    assert f"{path}:2: region_count is '2', but there are 1 regions" in refusal(tmp_path)
    assert names(open_dataset(tmp_path, skip_bad=True)) == ["b.png"]
    whole = path.read_text()
    path.write_text(whole.replace("a.png,120", "b.png,120,{},2\r\na.png,120").replace(",2,0,", ",1,0,"))
    assert f"{path}:2: 4 cells, not 7" in refusal(tmp_path)
    assert names(open_dataset(tmp_path, skip_bad=True)) == ["a.png"]
    path.write_text(whole.replace('"{""name"": ""rect""', '"{name', 1))
    assert f"{path}:2: the cells of a region must hold JSON" in refusal(tmp_path)
    assert names(open_dataset(tmp_path, skip_bad=True)) == ["b.png"]


SHAPES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "polygon": ({"name": "polygon", "all_points_x": [4, 14, 9.5], "all_points_y": [6, 8, 26]}, [4, 6, 14, 26]),
    "circle": ({"name": "circle", "cx": 20, "cy": 16, "r": 5}, [15, 11, 25, 21]),
    "ellipse": ({"name": "ellipse", "cx": 20, "cy": 16, "rx": 6, "ry": 3}, [14, 13, 26, 19]),
    "turned": ({"name": "ellipse", "cx": 20, "cy": 16, "rx": 6, "ry": 3, "theta": math.pi / 2}, [17, 10, 23, 22]),
    "turned by far": ({"name": "ellipse", "cx": 20, "cy": 16, "rx": 3, "ry": 3, "theta": 1e308}, [17, 13, 23, 19]),
    "by 30 degrees": (
        {"name": "ellipse", "cx": 20, "cy": 16, "rx": 6, "ry": 2, "theta": math.pi / 6},
        [20 - math.sqrt(28), 16 - math.sqrt(12), 20 + math.sqrt(28), 16 + math.sqrt(12)],
    ),
}


@pytest.mark.parametrize(("shape", "box"), SHAPES.values(), ids=SHAPES.keys())
def test_of_other_shapes_the_box_around_them_is_read(tmp_path: Path, shape: dict[str, Any], box: list[float]) -> None:
    via_json(tmp_path, entry("a.png", region(shape), region(shape)), entry("b.png", region()))
    index = open_dataset(tmp_path)
    assert boxes(index) == [pytest.approx(box, abs=1e-6)]
    assert sorted(kinds(index)) == ["dropped-duplicate", "shape-as-box"]
    assert next(one.detail for one in index.adjustments if one.kind == "shape-as-box").startswith("2 ")


@pytest.mark.parametrize("kind", ["point", "polyline", "line"])
def test_points_and_lines_outline_nothing(tmp_path: Path, kind: str) -> None:
    point = region({"name": kind, "cx": 1, "cy": 2})
    via_json(tmp_path, entry("a.png", point), entry("b.png", point, region()))
    index = open_dataset(tmp_path)
    assert names(index) == ["b.png"]
    assert boxes(index) == [[4, 6, 14, 26]]
    assert sorted(kinds(index)) == ["ignored-file", "ignored-shape"]


@pytest.mark.parametrize(
    ("attributes", "class_name"),
    [
        ({"Kind of thing": "cat"}, "cat"),
        ({"quality": "good", "Class": "cat", "name": "tom"}, "cat"),
        ({"quality": "good", "NAME": "tom", "type": "cat"}, "tom"),
        ({"type": {"cat": True, "dog": False}, "quality": "good"}, "cat"),
        ({"class": 7, "note": ""}, "7"),
    ],
)
def test_the_attribute_that_names_the_class(tmp_path: Path, attributes: dict[str, Any], class_name: str) -> None:
    via_json(tmp_path, entry("a.png", region(attributes=attributes)))
    assert open_dataset(tmp_path).class_names == (class_name,)


def test_without_any_attribute_all_regions_are_of_one_class(tmp_path: Path) -> None:
    via_json(tmp_path, entry("a.png", region(attributes={}), region({**RECT, "x": 20}, {})))
    index = open_dataset(tmp_path)
    assert index.class_names == ("object",)
    assert index.splits["train"][0].class_ids.tolist() == [0, 0]


def test_attributes_of_which_none_is_known_to_be_the_class_are_named(tmp_path: Path) -> None:
    via_json(tmp_path, entry("a.png", region(attributes={"breed": "x", "age": "3"})))
    message = refusal(tmp_path)
    assert "'age', 'breed'" in message
    assert "class" in message


BAD_REGIONS: list[tuple[Any, str]] = [
    (region({**RECT, "width": -1}), "not a shape"),
    (region({**RECT, "x": "4"}), "not a shape"),
    (region({**RECT, "x": None}), "not a shape"),
    (region({**RECT, "x": True}), "not a shape"),
    (region({**RECT, "x": float("nan")}), "not a shape"),
    (region({"name": "rect"}), "not a shape"),
    (region({"name": "star"}), "not a shape"),
    (region({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}), "not a shape"),
    (region({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}), "not a shape"),
    (region({"name": "polygon", "all_points_x": [1, 2, "3"], "all_points_y": [1, 2, 3]}), "not a shape"),
    (region({"name": "circle", "cx": 1, "cy": 2}), "not a shape"),
    (region({"name": "circle", "cx": 1, "cy": 2, "r": -3}), "not a shape"),
    (region({"name": "ellipse", "cx": 1, "cy": 2, "rx": 3, "ry": 3, "theta": "1"}), "not a shape"),
    (region(None), "not a shape"),
    ("text", "not a shape"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_REGIONS)
def test_a_bad_region_is_named_and_its_image_left_out(tmp_path: Path, bad: Any, reason: str) -> None:
    path = via_json(tmp_path, entry("a.png", region(), bad), entry("b.png", region({**RECT, "x": 1})))
    message = refusal(tmp_path)
    assert f"{path}: image 'a.png120', region 1: " in message
    assert reason in message
    index = open_dataset(tmp_path, skip_bad=True)
    assert names(index) == ["b.png"]
    assert boxes(index) == [[1, 6, 11, 26]]
    assert [(one.kind, one.image) for one in index.adjustments] == [("skipped-bad", tmp_path / "a.png")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry("a.png", regions=None), "regions must be a list"),
        (entry("a.png", regions="text"), "regions must be a list"),
        (entry("", region()), "filename must name an image"),
        (entry("c.png", region()), "the image does not exist ('c.png'"),
        (entry("a.png", region(), size=7), "several images 'a.png'"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    more = [entry("a.png", region())] if bad["size"] == 7 else []
    path = via_json(tmp_path, bad, *more, entry("b.png", region()))
    message = refusal(tmp_path)
    assert f"{path}: image " in message
    assert reason in message
    assert names(open_dataset(tmp_path, skip_bad=True)) == ["b.png"]


def test_splits_are_folders_with_a_file_each(tmp_path: Path) -> None:
    for split, x in (("train", 4), ("val", 5)):
        via_json(
            tmp_path / split, entry("a.png", region({**RECT, "x": x})), entry("b.png"), name="via_region_data.json"
        )
    index = open_dataset(tmp_path)
    assert (boxes(index), boxes(index, "val")) == ([[4, 6, 14, 26]], [[5, 6, 15, 26]])
    assert index.adjustments == ()


def test_other_jsons_are_none(tmp_path: Path) -> None:
    path = via_json(tmp_path, entry("a.png", region()), entry("b.png"))
    for name, text in {
        "list": "[]",
        "labelme": '{"shapes": [], "regions": 1}',
        "broken": '{"regions"',
        "none": "{}",
    }.items():
        write_text(tmp_path / f"{name}.json", text)
    assert boxes(open_dataset(tmp_path)) == [[4, 6, 14, 26]]
    path.unlink()
    assert "no dataset recognised" in refusal(tmp_path)
    assert "cannot be opened" in refusal(tmp_path / "list.json")
