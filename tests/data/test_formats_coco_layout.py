"""Where the jsons and images of COCO datasets lie, and which split they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import coco_json, kinds, write_image, write_text


def annotation(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [4, 6, 10, 20], "iscrowd": 0} | changes


def image(number: int, name: str, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 64, "height": 48} | changes


@pytest.mark.parametrize(
    ("json_path", "image_path", "file_name"),
    [
        ("annotations/instances_val.json", "images/val/a.png", "a.png"),
        ("annotations/instances_val.json", "val/a.png", "a.png"),
        ("annotations/instances_val.json", "images/a.png", "a.png"),
        ("annotations/instances_val.json", "a.png", "a.png"),
        ("annotations/instances_val.json", "val/a.png", "val/a.png"),
        ("annotations/instances_val.json", "images/a.png", "../images/a.png"),
        ("annotations/instances_val2017.json", "val2017/a.png", "a.png"),
        ("annotations/instances_val.json", "val2017/a.png", "a.png"),
        ("annotations/instances_val2017.json", "images/val2017/sub dir/a.png", "sub dir/a.png"),
        ("annotations/valid.json", "images/valid/a.png", "a.png"),
        ("valid/_annotations.coco.json", "valid/a.png", "a.png"),
        ("val.json", "images/a.png", "a.png"),
    ],
)
@pytest.mark.parametrize("opened", ["folder", "json"])
def test_images_are_found_where_tools_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json_path: str, image_path: str, file_name: str, opened: str
) -> None:
    write_image(tmp_path / "set" / image_path)
    coco_json(tmp_path / "set" / json_path, [annotation()], [image(1, file_name)])
    index = open_dataset(tmp_path / "set" / (json_path if opened == "json" else ""))
    assert list(index.splits) == ["val"]
    assert index.splits["val"][0].path.samefile(tmp_path / "set" / image_path)
    monkeypatch.chdir((tmp_path / "set" / json_path).parent)
    assert len(open_dataset(Path(json_path).name, "coco").splits["val"]) == 1


def test_the_folder_of_a_split_goes_before_a_folder_of_all(tmp_path: Path) -> None:
    for folder in ("", "images", "images/train", "images/val"):
        write_image(tmp_path / folder / "a.png")
    for split in ("train", "val"):
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", [annotation()])
    index = open_dataset(tmp_path)
    assert [index.splits[split][0].path.parent.name for split in ("train", "val")] == ["train", "val"]


def test_file_names_cannot_leave_the_dataset(tmp_path: Path) -> None:
    outside = write_image(tmp_path / "outside" / "a.png")
    for name in ("../../outside/a.png", "../outside/a.png", str(outside)):
        path = coco_json(tmp_path / "set" / "annotations" / "instances_train.json", [], [image(1, name)])
        for opened in (path, tmp_path / "set"):
            with pytest.raises(InputError, match="leads out of the dataset"):
                open_dataset(opened)
    assert len(open_dataset(path, allow_outside=True).splits["train"]) == 1


def test_images_beside_the_named_folder_are_none_of_the_dataset(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    coco_json(tmp_path / "set" / "train.json", [annotation()])
    with pytest.raises(InputError, match="the image does not exist"):
        open_dataset(tmp_path / "set")


def test_sets_without_a_split_name(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    folder = tmp_path / "annotations"
    coco_json(folder / "instances_default.json", [annotation()])
    assert list(open_dataset(tmp_path).splits) == ["train"]
    coco_json(folder / "instances_test.json", [annotation()])
    index = open_dataset(tmp_path)
    assert list(index.splits) == ["test"]
    assert kinds(index) == ["ignored-file"]
    (folder / "instances_default.json").rename(folder / "instances_trainval.json")
    assert list(open_dataset(tmp_path).splits) == ["train", "test"]
    coco_json(folder / "instances_val.json", [annotation()])
    assert list(open_dataset(tmp_path).splits) == ["val", "test"]
    coco_json(folder / "instances_val2017.json", [annotation()])
    with pytest.raises(InputError, match="both name the val split"):
        open_dataset(tmp_path)


def test_several_jsons_without_split_names_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        coco_json(tmp_path / f"{name}.json", [])
    write_text(tmp_path / "package.json", json.dumps({"name": "x"}))
    with pytest.raises(InputError, match="which split is which"):
        open_dataset(tmp_path)
