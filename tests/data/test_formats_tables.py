"""Tables of boxes: those of TensorFlow, RetinaNet and Roboflow, and Open Images."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, kinds, write_image, write_text

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n"


def table(folder: Path, rows: str, header: str = HEADER, name: str = "labels.csv") -> Path:
    """A table in a folder with the images a.png and b.png, of 64 x 48 pixels."""
    for image in ("a.png", "b.png"):
        write_image(folder / image)
    return write_text(folder / name, header + rows)


def names(index: DatasetIndex, split: str = "train") -> list[str]:
    return [record.path.name for record in index.splits[split]]


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    return str(caught.value)


def test_a_table_of_tensorflow(tmp_path: Path) -> None:
    path = table(tmp_path, "a.png,64,48,cat,4,6,14,26\na.png,64,48,dog,1.5,2,3,4\nb.png,64,48,cat,0,0,64,48\n")
    for opened in (tmp_path, path):
        index = open_dataset(opened)
        assert (index.format, index.class_names) == ("csv", ("cat", "dog"))
        assert boxes(index) == [[4, 6, 14, 26], [1.5, 2, 3, 4]]
        assert boxes(index, record=1) == [[0, 0, 64, 48]]
        assert index.splits["train"][0].class_ids.tolist() == [0, 1]
        assert index.splits["train"][0].origins == (f"{path}:2", f"{path}:3")
        assert index.adjustments == ()


@pytest.mark.parametrize(
    "text",
    [
        "xmax,ymax,xmin,ymin,Class,FileName\n14,26,4,6,cat,a.png\n",
        "\ufefffilename;width;height;class;xmin;ymin;xmax;ymax\r\na.png;64;48;cat;4;6;14;26\r\n\r\n",
        "image_path\tlabel\tx_min\ty_min\tx_max\ty_max\na.png\tcat\t4.0\t6e0\t14\t26\n",
        'image,label,x1,y1,x2,y2,more\n"a.png"," cat ",4,6,14,26,"a, b"\n',
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64.0,,cat,4,6,14,26",
        "filename,class,xmin,ymin,xmax,ymax\nC:\\data\\A.PNG,cat,4,6,14,26\n",
        "filename,class,xmin,ymin,xmax,ymax\na.png,cat,0.0625,0.125,0.21875,0.5416666666666666\n",
        "a.png,4,6,14,26,cat\n",
        "/content/images/a.png,4,6,14,26,cat\nb.png,,,,,\n",
        "b.png,,,,,\na.png,4,6,14,26,cat\n",
    ],
)
def test_columns_in_any_order_and_notation(tmp_path: Path, text: str) -> None:
    table(tmp_path, text, header="")
    index = open_dataset(tmp_path)
    assert boxes(index) == [[4, 6, 14, 26]]
    assert index.class_names == ("cat",)
    assert names(index) == (["a.png", "b.png"] if ",,,,," in text else ["a.png"])
    assert kinds(index) == ([] if ",,,,," in text else ["ignored-file"])


@pytest.mark.parametrize("name", ["train/_annotations.csv", "train_labels.csv", "annotations/train.csv"])
def test_splits_come_from_the_names_of_tables_and_folders(tmp_path: Path, name: str) -> None:
    for split, number in (("train", 4), ("test", 5)):
        write_image(tmp_path / split / "a.png")
        write_text(tmp_path / name.replace("train", split), f"{HEADER}a.png,64,48,cat,{number},6,14,26\n")
    index = open_dataset(tmp_path)
    assert list(index.splits) == ["train", "test"]
    assert boxes(index) == [[4, 6, 14, 26]]
    assert boxes(index, "test") == [[5, 6, 14, 26]]
    assert [index.splits[split][0].path for split in index.splits] == [
        tmp_path / "train/a.png",
        tmp_path / "test/a.png",
    ]
    (tmp_path / "train" / "a.png").unlink()
    assert "the image does not exist" in refusal(tmp_path)


def test_one_table_of_all_splits_takes_those_of_the_images_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / f"{split}.png")
    write_text(tmp_path / "all.csv", f"{HEADER}train.png,64,48,cat,4,6,14,26\nval.png,64,48,cat,1,2,3,4\n")
    index = open_dataset(tmp_path)
    assert (boxes(index), boxes(index, "val")) == ([[4, 6, 14, 26]], [[1, 2, 3, 4]])


@pytest.mark.parametrize(("other", "is_kept"), [("a.png", False), ("cam2/a.png", True), ("train/a.png", True)])
def test_names_with_other_folders_never_share_an_image(tmp_path: Path, other: str, is_kept: bool) -> None:
    write_image(tmp_path / "train" / "a.png")
    write_image(tmp_path / "train" / "b.png")
    rows = f"train/a.png,64,48,cat,4,6,14,26\n{other},64,48,cat,1,2,3,4\nb.png,64,48,cat,5,6,7,8\n"
    write_text(tmp_path / "labels.csv", HEADER + rows)
    if other != "train/a.png":
        assert "labels.csv:3: " in refusal(tmp_path)
    index = open_dataset(tmp_path, skip_bad=True)
    assert names(index) == ["a.png", "b.png"][not is_kept :]
    assert boxes(index, record=-1) == [[5, 6, 7, 8]]
    if is_kept:
        assert boxes(index) == [[4, 6, 14, 26], [1, 2, 3, 4]][: 2 - (other == "cam2/a.png")]


def test_an_image_that_two_splits_list_is_in_both(tmp_path: Path) -> None:
    table(tmp_path, "a.png,64,48,cat,4,6,14,26\n", name="train.csv")
    table(tmp_path, "a.png,64,48,cat,1,2,3,4\n", name="val.csv")
    index = open_dataset(tmp_path)
    assert (boxes(index), boxes(index, "val")) == ([[4, 6, 14, 26]], [[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,64,48,cat,4,6,14", "7 cells"),
        ("a.png,64,48,cat,4,6,14,", "ymax must be a plain finite number ('')"),
        ("a.png,64,48,cat,4,six,14,26", "ymin must be a plain finite number ('six')"),
        ("a.png,64,48,cat,nan,6,14,26", "xmin must be"),
        ("a.png,64,48,cat,1e400,6,14,26", "xmin must be"),
        ("a.png,64,48,cat,1_0,6,14,26", "xmin must be"),
        ("a.png,64,48,cat,14,6,4,26", "xmax < xmin"),
        ("a.png,64.5,48,cat,4,6,14,26", "width and height must be whole numbers"),
        ("a.png,-64,48,cat,4,6,14,26", "width and height must be whole numbers"),
        ("a.png,65,48,cat,4,6,14,26", "the image is 65x48 here, but 64x48"),
        ("a.png,64", "2 cells"),
        ("gone.png,64,48,cat,4,6,14,26", "the image does not exist ('gone.png'"),
        (",64,48,cat,4,6,14,26", "the row names no image"),
    ],
)
def test_a_bad_row_is_named_and_its_image_left_out(tmp_path: Path, row: str, reason: str) -> None:
    path = table(tmp_path, f"a.png,64,48,cat,4,6,14,26\n{row}\nb.png,64,48,cat,1,2,3,4\n")
    message = refusal(tmp_path)
    assert f"{path}:3: " in message
    assert reason in message
    index = open_dataset(tmp_path, skip_bad=True)
    assert names(index) == (["b.png"] if row.startswith("a.png") else ["a.png", "b.png"])
    assert boxes(index, record=-1) == [[1, 2, 3, 4]]
    assert kinds(index) == ["skipped-bad"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ('a.png,64,48,"cat,4,6,14,26\nb.png,64,48,cat,1,2,3,4\n', ":2: "),
        ('a.png,64,48,"ca"t,4,6,14,26\n', ":2: "),
        ('a.png,64,48,"cat\nb.png,64,48,c"at,4,6,14,26\n', ":2: "),
        ('a.png,64,48,"cat\nb.png",4,6,14,26\n', ":2: "),
        (b"a.png,64,48,b\xe4r,4,6,14,26\n", ":2: not UTF-8"),
        ("a.png,64,48,cat,4,6,14,26\n" + "x" * 4_000_001, ":3: "),
        ("a.png,64,48," + "x" * 200_000 + ",4,6,14,26\n", ":2: "),
    ],
)
def test_a_damaged_table_is_refused_by_line(tmp_path: Path, rows: str | bytes, reason: str) -> None:
    path = table(tmp_path, "")
    path.write_bytes(HEADER.encode() + (rows if isinstance(rows, bytes) else rows.encode()))
    for skip_bad in (False, True):
        with pytest.raises(InputError) as caught:
            open_dataset(tmp_path, skip_bad=skip_bad)
        assert str(caught.value).startswith(f"{path}{reason}")


def test_other_tables_are_none(tmp_path: Path) -> None:
    table(tmp_path, "a.png,4,6,14,26,cat\n", header="", name="retina.csv")
    write_text(tmp_path / "_classes.csv", "cat,0\n")
    write_text(tmp_path / "results.csv", "epoch,loss\n1,2\n")
    write_text(tmp_path / "._labels.csv", b"\0\5\x16\7")
    write_text(tmp_path / "empty.csv", "")
    assert boxes(open_dataset(tmp_path)) == [[4, 6, 14, 26]]
    (tmp_path / "retina.csv").unlink()
    assert "no dataset recognised" in refusal(tmp_path)
    message = refusal(tmp_path / "results.csv")
    assert "cannot be opened" in message
    assert "filename, class, xmin" in message
    assert "data.yaml, or one" not in message


def test_a_table_outside_the_dataset_is_not_opened(tmp_path: Path) -> None:
    outside = table(tmp_path / "outside", "a.png,64,48,cat,4,6,14,26\n")
    write_image(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "labels.csv").symlink_to(outside)
    assert "no dataset recognised" in refusal(tmp_path / "set")
    assert boxes(open_dataset(tmp_path / "set", allow_outside=True)) == [[4, 6, 14, 26]]


def test_open_images(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_image(tmp_path / split / "0a.png")
    rows = "0a,xclick,/m/01yrx,1,0.0625,0.25,0.125,0.5,0,0,0\n0a,xclick,/m/0bt9lr,1,0,1,0,1,0,0,1\n"
    write_text(tmp_path / "oidv6-train-annotations-bbox.csv", OPEN_IMAGES + rows + "gone,x,/m/01yrx,1,0,1,0,1,0,0,0\n")
    write_text(
        tmp_path / "validation-annotations-bbox.csv", OPEN_IMAGES + "0a,xclick,/m/01yrx,1,0.5,1,0.5,1,-1,-1,-1\n"
    )
    write_text(tmp_path / "class-descriptions-boxable.csv", "/m/01yrx,Cat\n/m/0bt9lr,Dog\n/m/1,Bat\n/m/2,Bat\n")
    index = open_dataset(tmp_path)
    assert (index.format, index.class_names) == ("open-images", ("Cat", "Dog"))
    assert boxes(index) == [[4, 6, 16, 24], [0, 0, 64, 48]]
    assert boxes(index, "val") == [[32, 24, 64, 48]]
    assert index.splits["train"][0].ignored.tolist() == [False, True]
    assert index.splits["val"][0].ignored.tolist() == [False]  # -1 is unknown
    assert [(one.kind, one.split) for one in index.adjustments] == [("unused-label", None)]
    write_text(tmp_path / "class-descriptions-boxable.csv", "LabelName,DisplayName\n/m/01yrx,Bat\n/m/0bt9lr,Bat\n")
    assert open_dataset(tmp_path).class_names == ("Bat (/m/01yrx)", "Bat (/m/0bt9lr)")
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    assert open_dataset(tmp_path).class_names == ("/m/01yrx", "/m/0bt9lr")
    assert open_dataset(tmp_path / "validation-annotations-bbox.csv").class_names == ("/m/01yrx",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,x,cat,1,0.5,1.5,0,1,0,0,0", "in 0..1"),
        ("a,x,cat,1,0.5,one,0,1,0,0,0", "in 0..1"),
        ("a,x,cat,1,0.5,0.4,0,1,0,0,0", "XMax < XMin"),
        ("a,x,cat,1,0,1,0,1,0,0,2", "IsGroupOf"),
        ("a,x,cat,1,0,1", "in 0..1"),
        (",x,cat,1,0,1,0,1,0,0,0", "the row names no image"),
    ],
)
def test_a_bad_row_of_open_images(tmp_path: Path, row: str, reason: str) -> None:
    good = "a,x,cat,1,0.5,1,0,1,0,0,0\n"
    path = table(tmp_path, f"{good}{row}\nb,x,cat,0.5,0.25,1,0,1,0,0,0\n", OPEN_IMAGES)
    message = refusal(tmp_path)
    assert f"{path}:3: " in message
    assert reason in message
    index = open_dataset(tmp_path, skip_bad=True)
    assert names(index) == (["b.png"] if row.startswith("a") else ["a.png", "b.png"])
    assert boxes(index, record=-1) == [[16, 0, 64, 48]]
    assert sorted(kinds(index)) == ["ignored-score", "skipped-bad"]


def test_a_table_of_images_that_are_not_here_is_refused(tmp_path: Path) -> None:
    table(tmp_path, "c,x,cat,1,0.5,1,0,1,0,0,0\n", OPEN_IMAGES)
    assert "none of the images" in refusal(tmp_path)
