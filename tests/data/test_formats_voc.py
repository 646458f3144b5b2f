"""Pascal VOC datasets: the xml, the layouts, and the real counts of two published sets."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, kinds, voc_object, voc_xml, write_image, write_text
from tests.shared import shared_path

CAT = voc_object("cat", 4, 6, 14, 26)


def voc_dataset(folder: Path, xml: str | bytes = voc_xml(CAT), name: str = "a") -> Path:
    write_image(folder / "JPEGImages" / f"{name}.png")
    write_text(folder / "ImageSets" / "Main" / "train.txt", f"{name}\n")
    return write_text(folder / "Annotations" / f"{name}.xml", xml)


def test_corners_are_taken_as_they_stand(tmp_path: Path) -> None:
    things = [
        voc_object("cat", 1, 1, 64, 48),
        voc_object("dog", 0, "0.5", "10.25", 8, extra="<difficult>1</difficult>"),
        voc_object("ant", 60, 40, 64, 48, extra="<part><name>head</name><bndbox/></part><difficult>0</difficult>"),
    ]
    xml = voc_dataset(tmp_path, voc_xml(*things))
    index = open_dataset(tmp_path)
    record = index.splits["train"][0]
    assert index.format == "voc"
    assert index.class_names == ("ant", "cat", "dog")
    assert boxes(index) == [[1, 1, 64, 48], [0, 0.5, 10.25, 8], [60, 40, 64, 48]]
    assert record.class_ids.tolist() == [1, 2, 0]
    assert record.ignored.tolist() == [False, True, False]
    assert record.origins == (f"{xml}:5", f"{xml}:8", f"{xml}:11")
    assert index.adjustments == ()


BAD_OBJECTS = {
    "no bndbox": ("<object><name>cat</name></object>", 7, "no <bndbox>"),
    "reversed": (voc_object("cat", 14, 6, 4, 26), 8, "xmax < xmin"),
    "text": (voc_object("cat", 4, "six", 14, 26), 8, "<ymin> must be a plain finite number ('six')"),
    "nan": (voc_object("cat", "nan", 6, 14, 26), 8, "<xmin> must be"),
    "overflow": (voc_object("cat", 4, 6, "1e400", 26), 8, "<xmax> must be"),
    "underscore": (voc_object("cat", 4, 6, "1_4", 26), 8, "<xmax> must be"),
    "missing corner": ("<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>", 7, "<ymin> must be"),
    "no name": ("<object><bndbox/></object>", 7, "no usable <name>"),
    "difficult": (voc_object("cat", 4, 6, 14, 26, extra="<difficult>maybe</difficult>"), 8, "<difficult> must be"),
}


@pytest.mark.parametrize(("bad", "line", "reason"), BAD_OBJECTS.values(), ids=BAD_OBJECTS.keys())
def test_a_bad_object_is_named_by_line_and_can_be_skipped_with_its_image(
    tmp_path: Path, bad: str, line: int, reason: str
) -> None:
    xml = voc_dataset(tmp_path, voc_xml(CAT, bad))
    voc_dataset(tmp_path, voc_xml(CAT), "b")
    write_text(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    assert f"{xml}:{line}: " in str(caught.value)
    assert reason in str(caught.value)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.stem for record in index.splits["train"]] == ["b"]
    assert boxes(index) == [[4, 6, 14, 26]]
    image = tmp_path / "JPEGImages" / "a.png"
    assert [(a.kind, a.origin, a.image) for a in index.adjustments] == [("skipped-bad", f"{xml}:{line}", image)]


BAD_FILES = {
    "external entity": (
        '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n<annotation>&x;</annotation>',
        ":2: a DOCTYPE is not read",
    ),
    "entity bomb": ('<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>', ":1: a DOCTYPE"),
    "undeclared entity": ("<annotation>\n&x;</annotation>", ":2: not valid XML: undefined entity"),
    "200 000 levels": ("<annotation>" + "<a>" * 200_000, ":1: nested deeper"),
    "cut": ("<annotation>\n<object>", ":2: not valid XML"),
    "empty": ("", ":1: not valid XML: no element found"),
    "another root": ("\n<html/>", ":2: the root element is <html>"),
    "binary": (b"\0\1\2", "not valid XML"),
    "unknown encoding": ('<?xml version="1.0" encoding="x-none"?><annotation/>', "XML"),
    "multi-byte encoding": ('<?xml version="1.0" encoding="gbk"?><annotation/>', "XML"),
    "size": (voc_xml(CAT, size=(64, -1)), ":3: <size> must hold"),
    "another size": (voc_xml(CAT, size=(640, 480)), ": the labels say the image is 640x480, the file is 64x48"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_xml_is_refused_and_skipped_with_its_image(tmp_path: Path, content: str | bytes, reason: str) -> None:
    xml = voc_dataset(tmp_path, content, "bad")
    write_image(tmp_path / "JPEGImages" / "a.png")
    write_text(tmp_path / "Annotations" / "a.xml", voc_xml(CAT))
    write_text(tmp_path / "ImageSets" / "Main" / "train.txt", "bad\na\n")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    assert "1 error " in str(caught.value)
    assert re.search(re.escape(str(xml)) + ".*" + re.escape(reason), str(caught.value))
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.stem for record in index.splits["train"]] == ["a"]
    assert kinds(index)[0] == "skipped-bad"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings_are_honoured(tmp_path: Path, encoding: str) -> None:
    declared = {"utf-8-sig": "utf-8", "latin-1": "iso-8859-1"}.get(encoding, encoding)
    text = f'<?xml version="1.0" encoding="{declared}"?>\r\n' + voc_xml(voc_object("b\xe4r", 4, 6, 14, 26))
    voc_dataset(tmp_path, text.encode(encoding))
    assert open_dataset(tmp_path).class_names == ("b\xe4r",)


def test_a_list_of_class_names_gives_the_order_and_the_limit(tmp_path: Path) -> None:
    xml = voc_dataset(tmp_path)
    write_text(tmp_path / "classes.txt", "dog\r\ncat\n\n")
    assert open_dataset(tmp_path).class_names == ("dog", "cat")
    assert open_dataset(tmp_path).splits["train"][0].class_ids.tolist() == [1]
    write_text(tmp_path / "classes.txt", "dog\n")
    with pytest.raises(InputError, match=re.escape(f"{xml}:5: the class is not in the dataset's list")):
        open_dataset(tmp_path)


def test_classes_are_the_sorted_names_of_all_splits(tmp_path: Path) -> None:
    voc_dataset(tmp_path)
    voc_dataset(tmp_path, voc_xml(voc_object("ant", 1, 1, 5, 5)), "b")
    write_text(tmp_path / "ImageSets" / "Main" / "train.txt", "a\n")
    write_text(tmp_path / "ImageSets" / "Main" / "val.txt", "b\n")
    index = open_dataset(tmp_path)
    assert index.class_names == ("ant", "cat")
    assert [index.splits[split][0].class_ids.tolist() for split in ("train", "val")] == [[1], [0]]


def test_image_sets_decide_the_order_and_the_splits(tmp_path: Path) -> None:
    for name in ("b", "a", "sub dir/c", "d"):
        voc_dataset(tmp_path, voc_xml(CAT), name)
    main = tmp_path / "ImageSets" / "Main"
    write_text(main / "train.txt", "sub dir/c\r\nb.png\n\na\nb\n")
    write_text(main / "trainval.txt", "a\nb\nd\n")
    write_text(main / "test.txt", "d\n")
    write_text(main / "cat_train.txt", "a  1\nb -1\n")
    write_text(main / "cat_trainval.txt", "a  1\nb -1\n")
    index = open_dataset(tmp_path)
    assert [record.path.stem for record in index.splits["train"]] == ["c", "b", "a"]
    assert list(index.splits) == ["train", "test"]
    assert [(a.kind, a.origin) for a in index.adjustments] == [("repeated-image", f"{main / 'train.txt'}:5")]
    write_text(main / "test.txt", "d\ngone\n")
    with pytest.raises(InputError, match=r"test\.txt:2: .*gone\.xml does not exist"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["default", "trainval"])
def test_a_single_set_is_the_train_split(tmp_path: Path, name: str) -> None:
    voc_dataset(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").rename(tmp_path / "ImageSets" / "Main" / f"{name}.txt")
    assert list(open_dataset(tmp_path).splits) == ["train"]


@pytest.mark.parametrize(
    ("xml_folder", "image_folder", "split"),
    [
        ("train", "train", "train"),
        ("valid", "valid", "val"),
        ("train/Annotations", "train/JPEGImages", "train"),
        ("test", "images/test", "test"),
        ("voc/test", "images/test", "test"),
        ("voc/test", "images", "test"),
        ("Annotations/val", "images/val", "val"),
        ("annotations/val", "val", "val"),
        ("Annotations", "images", "train"),
        ("Annotations", "JPEGImages", "train"),
        ("Annotations", "", "train"),
        ("", "", "train"),
        ("", "images", "train"),
    ],
)
def test_plain_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xml_folder: str, image_folder: str, split: str
) -> None:
    home = tmp_path / "set"
    image = write_image(home / image_folder / "a.PNG")
    write_text(home / xml_folder / "a.xml", voc_xml(CAT))
    index = open_dataset(home)
    assert (index.format, list(index.splits)) == ("voc", [split])
    assert index.splits[split][0].path.samefile(image)
    monkeypatch.chdir(home)
    assert len(open_dataset(".").splits[split]) == 1


def test_the_stem_goes_before_the_file_name(tmp_path: Path) -> None:
    write_text(tmp_path / "a.xml", voc_xml(CAT, filename="b.png"))
    write_text(tmp_path / "x.xml", voc_xml(CAT, filename="C:\\photos\\b.png"))
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    index = open_dataset(tmp_path)
    assert [record.path.name for record in index.splits["train"]] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("images", "filename", "reason"),
    [
        ([], "a.png", "no image named a or 'a.png'; looked in "),
        (["b.png"], "../b.png/", None),
        (["a.png", "a.jpg"], "c.png", "two images could be meant (a.jpg, a.png)"),
        (["a.png", "a.jpg"], "a.png", None),
        (["o.png"], "o.png", "no image named a"),
    ],
)
def test_the_image_must_be_beyond_doubt(tmp_path: Path, images: list[str], filename: str, reason: str | None) -> None:
    xml = write_text(tmp_path / "train" / "a.xml", voc_xml(CAT, filename=filename))
    write_text(tmp_path / "train" / "o.xml", voc_xml(filename="o.bmp"))
    write_image(tmp_path / "train" / "o.png")
    for name in images:
        write_image(tmp_path / "train" / name)
    if reason is None:
        assert len(open_dataset(tmp_path).splits["train"]) == 2
        return
    with pytest.raises(InputError, match=re.escape(f"{xml}: {reason}")):
        open_dataset(tmp_path)


def test_two_files_for_one_image_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_text(tmp_path / f"{name}.xml", voc_xml(CAT, filename="z.png"))
    write_image(tmp_path / "z.png")
    write_text(tmp_path / "c.xml", voc_xml(CAT, filename="c.png"))
    write_image(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"b\.xml: .*z\.png belongs to .*a\.xml"):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.name for record in index.splits["train"]] == ["c.png"]


def test_files_of_macos_are_passed_over(tmp_path: Path) -> None:
    apple_double = bytes.fromhex("00051607000200004d6163204f5320582020202020202020") + bytes(80)
    for number in range(3):
        write_image(tmp_path / f"i{number}.jpg")
        write_text(tmp_path / f"i{number}.xml", voc_xml(voc_object("cat", 36, 16, 60, 48), filename=f"i{number}.jpg"))
        for suffix in ("jpg", "xml"):
            write_text(tmp_path / f"._i{number}.{suffix}", apple_double)
    index = open_dataset(tmp_path)
    assert [boxes(index, record=number) for number in range(3)] == [[[36, 16, 60, 48]]] * 3
    assert index.adjustments == ()
    write_text(tmp_path / "sets" / "Annotations" / "a.xml", voc_xml(CAT))
    write_image(tmp_path / "sets" / "JPEGImages" / "a.png")
    write_text(tmp_path / "sets" / "ImageSets" / "Main" / "train.txt", "a\n")
    write_text(tmp_path / "sets" / "ImageSets" / "Main" / "._train.txt", apple_double)
    assert boxes(open_dataset(tmp_path / "sets")) == [[4, 6, 14, 26]]


@pytest.mark.parametrize(
    "names", [("ANNOTATIONS", "jpegimages", "imagesets", "MAIN"), ("annotations", "Images", "", "")]
)
def test_letter_case_of_folders_suffixes_and_stems(tmp_path: Path, names: tuple[str, str, str, str]) -> None:
    xmls, images, lists, main = names
    write_image(tmp_path / images / "a.PNG")
    write_image(tmp_path / images / "B.png")
    write_text(tmp_path / xmls / "a.XML", voc_xml(CAT))
    write_text(tmp_path / xmls / "b.Xml", voc_xml(voc_object("cat", 1, 2, 3, 4)))
    if lists:
        write_text(tmp_path / lists / main / "train.TXT", "a\nb\n")
    index = open_dataset(tmp_path)
    assert [record.path.name for record in index.splits["train"]] == ["a.PNG", "B.png"]
    assert [boxes(index, record=number) for number in (0, 1)] == [[[4, 6, 14, 26]], [[1, 2, 3, 4]]]


def test_xmls_that_differ_in_letter_case_never_share_an_image(tmp_path: Path) -> None:
    for name in ("a", "A", "b", "B", "c"):
        write_text(tmp_path / f"{name}.xml", voc_xml(CAT, filename=f"{name}.png"))
    write_text(tmp_path / "c.XML", voc_xml(voc_object("cat", 1, 2, 3, 4)))
    for name in ("a", "A", "b", "c"):
        write_image(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=r"(?s)B\.xml: no image named B.*c\.XML: .*belongs to"):
        open_dataset(tmp_path)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.name for record in index.splits["train"]] == ["A.png", "a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "is_difficult"), [("", False), ("1.0", True), ("0.0", False), ("True", True), ("false", False)]
)
def test_numbers_and_names_in_other_notations(tmp_path: Path, text: str, is_difficult: bool) -> None:
    cat = voc_object(" cat\n", "4.0", "6e0", " 14 ", "+26", extra=f"<difficult>{text}</difficult>")
    size = "<size><width>64.0</width><height>4.8e1</height></size>"
    voc_dataset(tmp_path, voc_xml(cat, size, size=None, filename=r"C:\photos\a.png"))
    index = open_dataset(tmp_path)
    assert boxes(index) == [[4, 6, 14, 26]]
    assert index.class_names == ("cat",)
    assert index.splits["train"][0].ignored.tolist() == [is_difficult]
    voc_dataset(tmp_path, voc_xml(cat, "<size><width/><height></height></size>", size=None))
    assert boxes(open_dataset(tmp_path)) == [[4, 6, 14, 26]]


def test_images_left_out_as_bad_are_not_said_to_lack_an_xml(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    write_text(tmp_path / "a.xml", voc_xml(CAT))
    write_text(tmp_path / "b.xml", "<annotation>")
    index = open_dataset(tmp_path, skip_bad=True)
    assert [(one.kind, one.image) for one in index.adjustments] == [("skipped-bad", tmp_path / "b.png")]


def test_lists_of_a_class_are_no_splits(tmp_path: Path) -> None:
    for name in ("a", "sub dir/b"):
        voc_dataset(tmp_path, voc_xml(CAT), name)
    main = tmp_path / "ImageSets" / "Main"
    (main / "train.txt").unlink()
    write_text(main / "default.txt", 'a\n"sub dir/b"\n')
    for name in ("cat", "dog"):
        write_text(main / f"{name}_default.txt", 'a  1\n"sub dir/b" -1\n')
    index = open_dataset(tmp_path)
    assert [record.path.stem for record in index.splits["train"]] == ["a", "b"]
    assert list(index.splits) == ["train"]


def test_names_of_a_list_may_have_backslashes(tmp_path: Path) -> None:
    voc_dataset(tmp_path, voc_xml(CAT), "sub/a")
    write_text(tmp_path / "ImageSets" / "Main" / "train.txt", "sub\\a\r\n")
    assert boxes(open_dataset(tmp_path)) == [[4, 6, 14, 26]]


def test_images_without_xml_are_left_out_and_pointed_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "train" / f"{name}.png")
    write_text(tmp_path / "train" / "a.xml", voc_xml(CAT))
    index = open_dataset(tmp_path)
    assert len(index.splits["train"]) == 1
    assert kinds(index) == ["ignored-file"]
    assert "b.png" in index.adjustments[0].detail


def test_links_out_of_the_dataset_are_refused(tmp_path: Path) -> None:
    outside = write_text(tmp_path / "outside.xml", voc_xml(CAT))
    xml = voc_dataset(tmp_path / "set")
    xml.unlink()
    xml.symlink_to(outside)
    with pytest.raises(InputError, match=re.escape(f"{xml}: leads out of the dataset")):
        open_dataset(tmp_path / "set")
    assert len(open_dataset(tmp_path / "set", allow_outside=True).splits["train"]) == 1


def test_names_in_an_image_set_cannot_leave_the_dataset(tmp_path: Path) -> None:
    write_text(tmp_path / "outside.xml", voc_xml(CAT))
    voc_dataset(tmp_path / "set")
    write_text(tmp_path / "set" / "ImageSets" / "Main" / "train.txt", "../../outside\n")
    with pytest.raises(InputError, match="leads out of the dataset"):
        open_dataset(tmp_path / "set")
    write_text(tmp_path / "set" / "ImageSets" / "Main" / "train.txt", "a\nb\0\n")
    with pytest.raises(InputError, match=r"train\.txt:2: .*NUL"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_an_xml_without_size_takes_the_file_s(tmp_path: Path, size: tuple[int, int] | None) -> None:
    voc_dataset(tmp_path, voc_xml(CAT, size=size))
    assert boxes(open_dataset(tmp_path)) == [[4, 6, 14, 26]]


def test_bccd_is_read_to_the_last_box() -> None:
    index = open_dataset(shared_path("datasets/bccd"))
    assert index.format == "voc"
    assert index.class_names == ("Platelets", "RBC", "WBC")
    counts = {
        split: Counter(index.class_names[i] for record in records for i in record.class_ids)
        for split, records in index.splits.items()
    }
    assert {split: len(records) for split, records in index.splits.items()} == {"train": 205, "val": 87, "test": 72}
    dropped = {"train": 0, "val": 0, "test": 0}
    stems = {record.path.stem: split for split, records in index.splits.items() for record in records}
    assert kinds(index) == ["dropped-empty", "dropped-empty"]
    for adjustment in index.adjustments:
        assert adjustment.detail.startswith("RBC ")
        dropped[stems[Path(adjustment.origin.rsplit(":", 1)[0]).stem]] += 1
    assert {Path(a.origin.rsplit(":", 1)[0]).stem for a in index.adjustments} == {
        "BloodImage_00343",
        "BloodImage_00338",
    }
    assert counts == {
        "train": {"RBC": 2382 - dropped["train"], "WBC": 214, "Platelets": 209},
        "val": {"RBC": 968 - dropped["val"], "WBC": 87, "Platelets": 83},
        "test": {"RBC": 805 - dropped["test"], "WBC": 71, "Platelets": 69},
    }
    corners = [corner for records in index.splits.values() for record in records for corner in record.boxes_xyxy]
    assert sum(corner[2] == 640 for corner in corners) == 237
    assert sum(corner[3] == 480 for corner in corners) == 318
    assert not any(record.ignored.any() for records in index.splits.values() for record in records)
