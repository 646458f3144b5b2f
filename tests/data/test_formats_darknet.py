"""YOLO labels without a data.yaml, as annotation tools write them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anchorite.choices import WrittenFormat
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import (
    boxes,
    coco_json,
    kinds,
    voc_object,
    voc_xml,
    write_image,
    write_text,
    yolo_dataset,
)

GOOD = "0 0.5 0.5 0.25 0.5\n"  # [24, 12, 40, 36] of 64 x 48
OTHER = "1 0.25 0.25 0.5 0.5\n"  # [0, 0, 32, 24]


def labelled(image: Path, rows: str = GOOD, label: Path | None = None) -> Path:
    write_image(image)
    return write_text(label or image.with_suffix(".txt"), rows)


def contents(index: DatasetIndex) -> dict[str, dict[str, list[tuple[int, list[float]]]]]:
    """Of each split and image name the class numbers and boxes."""
    return {
        split: {
            record.path.name: list(zip(record.class_ids.tolist(), record.boxes_xyxy.round(6).tolist(), strict=True))
            for record in records
        }
        for split, records in index.splits.items()
    }


CAT, DOG = (0, [24.0, 12.0, 40.0, 36.0]), (1, [0.0, 0.0, 32.0, 24.0])


def cvat(folder: Path, prefix: str = "data/") -> Path:
    """CVAT's YOLO 1.1; older versions wrote all paths below data/, where darknet looked for them."""
    for split, name, rows in (("train", "frame_000000.PNG", GOOD), ("train", "b.png", ""), ("valid", "c.png", OTHER)):
        labelled(folder / f"obj_{split}_data" / name, rows)
    write_text(folder / "obj.names", "cat\r\ndog\r\n")
    entries = f"train = {prefix}train.txt\nvalid = {prefix}valid.txt\nnames = {prefix}obj.names\nbackup = backup/\n"
    write_text(folder / "obj.data", "classes = 2\n" + entries)
    write_text(folder / "train.txt", f"{prefix}obj_train_data/frame_000000.PNG\n{prefix}obj_train_data/b.png\n")
    write_text(folder / "valid.txt", f"{prefix}obj_valid_data/c.png\n")
    return folder


@pytest.mark.parametrize("prefix", ["data/", "", "data\\", "/home/ann/cvat/data/", "C:\\cvat\\"])
def test_cvat_yolo_1_1_is_read_wherever_its_paths_were_written_for(tmp_path: Path, prefix: str) -> None:
    index = open_dataset(cvat(tmp_path, prefix))
    assert index.format == "yolo"
    assert index.class_names == ("cat", "dog")
    assert contents(index) == {"train": {"frame_000000.PNG": [CAT], "b.png": []}, "val": {"c.png": [DOG]}}
    assert index.splits["train"][0].origins == (f"{tmp_path / 'obj_train_data' / 'frame_000000.txt'}:1",)
    told = [(a.split, a.detail.split()[0]) for a in index.adjustments if a.origin.endswith(".txt:1")]
    assert set(kinds(index)) == ({"relocated"} if prefix else set())
    assert told == ([("train", "2"), ("val", "1")] if prefix else []), "once a list, with the number of lines"


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_it_is_copied_into_every_format(tmp_path: Path, format: WrittenFormat) -> None:
    index = open_dataset(cvat(tmp_path / "data"))
    write_dataset(index, tmp_path / "out", format)
    copy = open_dataset(tmp_path / "out")
    assert (copy.format, copy.class_names, contents(copy)) == (format, index.class_names, contents(index))


def test_obj_data_may_be_named_and_may_leave_out_what_is_optional(tmp_path: Path) -> None:
    cvat(tmp_path, "")
    path = write_text(
        tmp_path / "obj.data", "# of darknet\n\nnames = obj.names # four words\nTrain=train.txt\nvalid =\n"
    )
    assert list(open_dataset(path).splits) == ["train"]
    write_text(path, "train = train.txt\n")
    assert open_dataset(tmp_path).class_names == ("cat", "dog"), "obj.names lies beside it"
    path.rename(tmp_path / "voc.data")
    assert list(open_dataset(tmp_path).splits) == ["train"]


BAD_DATA = {
    "another count": ("classes = 3\ntrain = train.txt\nnames = obj.names\n", ":1: ", "classes is '3'"),
    "fraction as count": ("classes = 1.5\ntrain = train.txt\nnames = obj.names\n", ":1: ", "classes is '1.5'"),
    "names that are not there": ("train = train.txt\nnames = x/gone.names\n", ":2: ", "gone.names does not exist"),
    "a list that is not there": ("names = obj.names\ntrain = gone.txt\n", ":2: ", "gone.txt does not exist"),
    "no value": ("names = obj.names\ntrain\n", ":2: ", "key = value"),
    "twice": ("names = obj.names\ntrain = train.txt\nTRAIN = train.txt\n", ":3: ", "stands twice"),
    "val twice": ("names = obj.names\nval = valid.txt\nvalid = valid.txt\n", ":3: ", "a second time"),
    "no split": ("names = obj.names\n", ": ", "no split"),
    "no list": ("names = obj.names\ntrain = obj.names\n", ":2: ", "neither a folder"),
    "NUL": ("names = obj.names\ntrain = a\0b\n", ":2: ", "must be a path"),
    "no text": (b"names = obj.names\n\xff\n", ":2: ", "not UTF-8"),
}


@pytest.mark.parametrize(("text", "where", "reason"), BAD_DATA.values(), ids=BAD_DATA.keys())
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_bad_obj_data_is_refused_by_line(
    tmp_path: Path, text: str | bytes, where: str, reason: str, skip_bad: bool
) -> None:
    path = write_text(cvat(tmp_path, "") / "obj.data", text)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path, skip_bad=skip_bad)
    assert str(caught.value).startswith(f"{path}{where}")
    assert reason in str(caught.value)


def test_obj_data_without_any_names_says_what_to_add(tmp_path: Path) -> None:
    cvat(tmp_path, "")
    (tmp_path / "obj.names").unlink()
    path = write_text(tmp_path / "obj.data", "train = train.txt\n")
    with pytest.raises(InputError, match=re.escape(f"{path}: no names; add a line")):
        open_dataset(tmp_path)


def test_several_descriptions_are_not_guessed_among(tmp_path: Path) -> None:
    cvat(tmp_path, "")
    write_text(tmp_path / "voc.data", "train = gone.txt\nnames = gone\n")
    write_text(tmp_path / "sensor.data", b"\0\1\2=\xff")
    assert len(open_dataset(tmp_path).splits["train"]) == 2, "obj.data goes first"
    (tmp_path / "obj.data").rename(tmp_path / "coco.data")
    with pytest.raises(InputError, match=r"coco\.data, voc\.data"):
        open_dataset(tmp_path)


def test_an_export_without_its_images_names_the_first_lines(tmp_path: Path) -> None:
    cvat(tmp_path)
    for image in tmp_path.rglob("*.[Pp][Nn][Gg]"):
        image.unlink()
    with pytest.raises(InputError, match=r"train\.txt:1: the image does not exist") as caught:
        open_dataset(tmp_path)
    assert "3 errors" in str(caught.value)


def test_label_studio_yolo_is_read(tmp_path: Path) -> None:
    labelled(tmp_path / "images" / "3f-a.png", GOOD, tmp_path / "labels" / "3f-a.txt")
    labelled(tmp_path / "images" / "3f-b.png", OTHER, tmp_path / "labels" / "3f-b.txt")
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    write_text(tmp_path / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2026}}')
    index = open_dataset(tmp_path)
    assert (index.format, index.class_names, index.adjustments) == ("yolo", ("cat", "dog"), ())
    assert contents(index) == {"train": {"3f-a.png": [CAT], "3f-b.png": [DOG]}}


@pytest.mark.parametrize("home", [".", "2026", "images"])
def test_a_flat_labelimg_folder_is_read(tmp_path: Path, home: str) -> None:
    folder = tmp_path / home
    labelled(folder / "a.png")
    labelled(folder / "b.JPG", OTHER, folder / "b.TXT")
    write_image(folder / "c.png")
    write_text(folder / "classes.txt", "\ufeffcat\r\ndog \r\n\r\n")
    write_text(folder / "notes.txt", "ask Ann")
    write_text(folder / "lost.txt", GOOD)
    write_text(folder / "._a.txt", b"\0\5\x16\7")
    write_image(folder / "._a.png")
    index = open_dataset(folder)
    assert index.class_names == ("cat", "dog")
    assert contents(index) == {"train": {"a.png": [CAT], "b.JPG": [DOG], "c.png": []}}
    assert [(a.kind, a.files) for a in index.adjustments] == [("unused-label", (folder / "lost.txt",))]
    assert contents(open_dataset(folder / "classes.txt")) == contents(index)


def test_the_list_of_names_may_lie_with_the_labels(tmp_path: Path) -> None:
    labelled(tmp_path / "images" / "a.png", GOOD, tmp_path / "labels" / "a.txt")
    write_text(tmp_path / "labels" / "classes.txt", "cat\n")
    index = open_dataset(tmp_path)
    assert (index.class_names, index.adjustments) == (("cat",), ())


@pytest.mark.parametrize(
    "folders", [("train/{}", "valid/{}"), ("images/train/{}", "images/val/{}"), ("Train/Images/{}", "Test/Images/{}")]
)
@pytest.mark.parametrize("names", ["_darknet.labels", "classes.txt", "obj.names"])
def test_folders_named_by_split_are_the_splits(tmp_path: Path, folders: tuple[str, str], names: str) -> None:
    for folder, rows in zip(folders, (GOOD, OTHER), strict=True):
        image = tmp_path / folder.format("a.png")
        labelled(
            image, rows, Path(str(image.with_suffix(".txt")).replace("images", "labels").replace("Images", "Labels"))
        )
        write_text(image.parent / names, "cat\ndog\n")
    index = open_dataset(tmp_path)
    split = "test" if "Test" in folders[1] else "val"
    assert contents(index) == {"train": {"a.png": [CAT]}, split: {"a.png": [DOG]}}
    assert index.adjustments == ()
    path = write_text((tmp_path / folders[1].format(names)), "dog\ncat\n")
    with pytest.raises(InputError, match="different class names") as caught:
        open_dataset(tmp_path)
    assert str(path) in str(caught.value)


def test_lists_of_images_are_the_splits_without_obj_data_too(tmp_path: Path) -> None:
    cvat(tmp_path)
    (tmp_path / "obj.data").unlink()
    index = open_dataset(tmp_path)
    assert contents(index) == {"train": {"frame_000000.PNG": [CAT], "b.png": []}, "val": {"c.png": [DOG]}}
    write_text(tmp_path / "train.txt", "the camera stood in the yard\n")
    (tmp_path / "valid.txt").unlink()
    assert [len(records) for records in open_dataset(tmp_path).splits.values()] == [3]


def test_images_that_nobody_labelled_are_left_out_by_folder_and_told(tmp_path: Path) -> None:
    labelled(tmp_path / "train" / "a.png")
    labelled(tmp_path / "extra" / "b.png")
    write_image(tmp_path / "drawings" / "c.png")
    write_image(tmp_path / "val" / "d.png")
    write_text(tmp_path / "classes.txt", "cat\n")
    index = open_dataset(tmp_path)
    assert contents(index) == {"train": {"a.png": [CAT]}}
    assert {(a.kind, *a.files) for a in index.adjustments} == {
        ("ignored-file", tmp_path / "extra" / "b.png"),
        ("ignored-file", tmp_path / "drawings" / "c.png"),
        ("ignored-file", tmp_path / "val" / "d.png"),
    }


def test_a_bad_row_is_refused_by_line_and_takes_its_image_out(tmp_path: Path) -> None:
    label = labelled(tmp_path / "a.png", GOOD + "2 0.5 0.5 0.1 0.1\n-1 0.5 0.5 0.1 0.1\n")
    labelled(tmp_path / "b.png")
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    with pytest.raises(InputError, match=re.escape(f"{label}:2: the class must be a whole number 0..1 ('2')")):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, skip_bad=True)
    assert contents(index) == {"train": {"b.png": [CAT]}}
    assert [(a.kind, a.image) for a in index.adjustments] == [("skipped-bad", tmp_path / "a.png")] * 2


@pytest.mark.parametrize(
    ("text", "line", "reason"), [("", 1, "cannot name"), ("cat\n\ndog\n", 2, "cannot name"), ("a\nb\na\n", 3, "twice")]
)
def test_a_bad_list_of_names_is_refused_by_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    labelled(tmp_path / "a.png")
    path = write_text(tmp_path / "classes.txt", text)
    with pytest.raises(InputError, match=re.escape(f"{path}:{line}: ") + f".*{reason}"):
        open_dataset(tmp_path)


def test_labels_without_names_and_names_without_images_say_what_is_missing(tmp_path: Path) -> None:
    labelled(tmp_path / "a.png")
    for format in (None, "yolo"):
        with pytest.raises(InputError, match="no dataset recognised") as caught:
            open_dataset(tmp_path, format)  # type: ignore[arg-type]
        assert "classes.txt" in str(caught.value).splitlines()[-1]
        assert "data.yaml" in str(caught.value).splitlines()[-1]
    write_text(tmp_path / "classes.txt", "cat\n")
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="no dataset recognised") as caught:
        open_dataset(tmp_path)
    assert "images" in str(caught.value).splitlines()[-1]


def test_an_export_one_folder_further_down_is_pointed_to(tmp_path: Path) -> None:
    cvat(tmp_path / "export")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'export' / 'obj.data'}: name its folder")):
        open_dataset(tmp_path)


def test_text_files_that_are_no_labels_make_no_dataset(tmp_path: Path) -> None:
    labelled(tmp_path / "a.png", "a cat on a mat, 1 of 2\n")
    write_text(tmp_path / "classes.txt", "cat\n")
    with pytest.raises(InputError, match="no dataset recognised"):
        open_dataset(tmp_path)


def test_formats_that_say_what_they_are_go_first(tmp_path: Path) -> None:
    labelled(tmp_path / "a.png")
    write_text(tmp_path / "classes.txt", "cat\n")
    voc = write_text(tmp_path / "a.xml", voc_xml(voc_object("cat", 1, 2, 3, 4)))
    assert open_dataset(tmp_path).format == "voc"
    assert boxes(open_dataset(tmp_path, "yolo")) == [[24, 12, 40, 36]]
    voc.unlink()
    coco_json(tmp_path / "train.json", [])
    assert open_dataset(tmp_path).format == "coco"
    yolo_dataset(tmp_path, {"b": OTHER})
    assert [record.path.name for record in open_dataset(tmp_path).splits["train"]] == ["b.png"]


def test_links_out_of_the_dataset_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "set"
    labelled(home / "a.png")
    names = write_text(tmp_path / "outside.txt", "cat\n")
    (home / "classes.txt").symlink_to(names)
    with pytest.raises(InputError, match=re.escape(f"{home / 'classes.txt'}: leads out of the dataset")):
        open_dataset(home)
    assert open_dataset(home, allow_outside=True).class_names == ("cat",)
    (home / "classes.txt").unlink()
    write_text(home / "obj.data", f"train = train.txt\nnames = {names}\n")
    write_text(home / "train.txt", "a.png\n")
    with pytest.raises(InputError, match=r"obj\.data:2: names: .*does not exist"):
        open_dataset(home)
