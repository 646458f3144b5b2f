"""CVAT's own format: every shape as its box, images found as CVAT lays them out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from anchorite.reading import iterate_xml
from tests.data.format_samples import boxes, kinds, voc_object, voc_xml, write_image, write_text

# As CVAT writes it, by hand: 64x48 images.
SAMPLE = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job>
      <id>7</id>
      <labels>
        <label><name>dog</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
        <label><name>cat</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
        <label><name>blurred</name><type>tag</type><attributes></attributes></label>
        <label><name>man</name><type>skeleton</type><svg>&lt;line&gt;</svg></label>
        <label><name>head</name><type>points</type><parent>man</parent></label>
      </labels>
    </job>
    <dumped>2025-01-01 10:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="a.png" width="64" height="48">
    <box label="cat" source="manual" occluded="1" xtl="4.00" ytl="6.50" xbr="14.25" ybr="26.00" z_order="0">
      <attribute name="sex">f</attribute>
    </box>
    <box label="dog" source="manual" occluded="0" xtl="20.00" ytl="10.00" xbr="40.00" ybr="20.00" rotation="90.00">
    </box>
    <polygon label="dog" source="file" occluded="0" points="10.00,5.00;30.00,8.00;12.00,40.00" z_order="0"></polygon>
    <mask label="cat" source="manual" occluded="0" rle="1, 2, 2, 3, 4" left="50" top="30" width="4" height="3"></mask>
    <ellipse label="dog" source="manual" occluded="0" cx="30.00" cy="20.00" rx="8.00" ry="4.00" z_order="0"></ellipse>
    <tag label="blurred" source="manual"></tag>
    <polyline label="dog" points="0.00,0.00;60.00,40.00"></polyline>
  </image>
  <image id="1" name="sub/b.png" width="64" height="48">
  </image>
  <image id="2" name="c.png" width="64" height="48">
    <points label="cat" points="3.00,4.00;5.00,6.00"></points>
  </image>
</annotations>
"""
CUBOID = """<cuboid label="a" xtl1="10" ytl1="12" xbl1="10" ybl1="30" xtr1="25" ytr1="11" xbr1="25" ybr1="31"
xtl2="15" ytl2="8" xbl2="15" ybl2="26" xtr2="33" ytr2="7" xbr2="33" ybr2="27"/>"""
SKELETON = """<skeleton label="a"><points label="1" outside="0" points="10,20"/><points label="2" points="14,9"/>
<points label="3" outside="1" points="0,0"/></skeleton>"""


def cvat(folder: Path, *shapes: str, name: str = "a.png", xml: str = "annotations.xml") -> Path:
    body = "\n".join(shapes)
    text = f'<annotations>\n<image id="0" name="{name}" width="64" height="48">\n{body}\n</image>\n</annotations>\n'
    write_text(folder / xml, text)
    write_image(folder / "images" / "a.png")
    return folder


def class_names(index: DatasetIndex, split: str = "train", record: int = 0) -> list[str]:
    return [index.class_names[number] for number in index.splits[split][record].class_ids]


def test_the_boxes_of_a_sample_made_by_hand(tmp_path: Path) -> None:
    write_text(tmp_path / "annotations.xml", SAMPLE)
    for name in ("a.png", "sub/b.png", "c.png", "d.png"):
        write_image(tmp_path / "images" / name)
    index = open_dataset(tmp_path)
    assert index.format == "cvat"
    assert index.class_names == ("dog", "cat", "man")  # in the order of the labels, without tags and parts
    records = {record.path.name: record for record in index.splits["train"]}
    assert list(records) == ["a.png", "b.png"]
    assert class_names(index) == ["cat", "dog", "dog", "cat", "dog"]
    assert boxes(index) == [
        [4, 6.5, 14.25, 26],
        [25, 5, 35, 25],  # 20x10 about (30, 15), turned by a right angle
        [10, 5, 30, 40],
        [51, 30, 54, 32],  # of 4x3 the pixels 1, 2 and 5, 6, 7: columns 1..3 of both rows
        [22, 16, 38, 24],
    ]
    assert not len(records["b.png"].class_ids), "an image that was opened and has no shape is background"
    told = {(one.kind, one.detail) for one in index.adjustments}
    for number, shape in ((1, "rotated boxes"), (1, "polygons"), (1, "masks"), (1, "ellipses")):
        assert any(kind == "shape-as-box" and f"{number} {shape}" in detail for kind, detail in told)
    assert any(kind == "ignored-shape" and "1 tags" in detail for kind, detail in told)
    assert any(kind == "ignored-file" and "c.png has points" in detail for kind, detail in told)
    assert any(kind == "ignored-file" and "d.png" in detail for kind, detail in told)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # 20x10 about (30, 15), turned by 30 degrees: half sides 10 cos + 5 sin and 10 sin + 5 cos.
        (
            '<box label="a" xtl="20" ytl="10" xbr="40" ybr="20" rotation="30"/>',
            [18.839746, 5.669873, 41.160254, 24.330127],
        ),
        ('<box label="a" xtl="2e1" ytl="10" xbr="40" ybr="20.0" rotation="360"/>', [20, 10, 40, 20]),
        ('<box label="a" xtl="-4" ytl="10" xbr="70" ybr="20"/>', [0, 10, 64, 20]),
        # Semi-axes 8 and 4, turned by 45 degrees: both half sides sqrt((64 + 16) / 2).
        (
            '<ellipse label="a" cx="30" cy="20" rx="8" ry="4" rotation="45"/>',
            [23.675445, 13.675445, 36.324555, 26.324555],
        ),
        (CUBOID, [10, 7, 33, 31]),
        (SKELETON, [10, 9, 14, 20]),
        # The whole of the image but its first pixel: a run over several rows has every column.
        ('<mask label="a" rle="1,3071" left="0" top="0" width="64" height="48"/>', [0, 0, 64, 48]),
        ('<mask label="a" rle="130,1" left="0" top="0" width="64" height="48"/>', [2, 2, 3, 3]),
    ],
)
def test_the_box_of_each_shape(tmp_path: Path, shape: str, expected: list[float]) -> None:
    assert boxes(open_dataset(cvat(tmp_path, shape))) == [expected]


def test_what_lies_outside_the_image_is_no_object(tmp_path: Path) -> None:
    gone = '<box label="a" outside="1" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    skeleton = '<skeleton label="a"><points label="1" outside="1" points="1,1"/></skeleton>'
    index = open_dataset(cvat(tmp_path, gone, skeleton, '<box label="a" xtl="2" ytl="1" xbr="9" ybr="9"/>'))
    assert boxes(index) == [[2, 1, 9, 9]]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<box label="a" xtl="1" ytl="1" xbr="inf" ybr="9"/>', r"xbr must be a plain finite number \('inf'\)"),
        ('<box label="a" xtl="1" ytl="1" ybr="9"/>', r"xbr must be a plain finite number \(None\)"),
        ('<box label="a" xtl="9" ytl="1" xbr="1" ybr="9"/>', r"xbr < xtl or ybr < ytl \(9, 1, 1, 9\)"),
        ('<box label="a" xtl="1e308" ytl="1" xbr="1.7e308" ybr="9" rotation="45"/>', "the corners must be finite"),
        ('<polygon label="a" points="1,2;3,4"/>', "2 points outline nothing"),
        ('<polygon label="a" points="1,2;3,4;5"/>', r"x,y;x,y \('5'\)"),
        ('<polygon label="a"/>', "x,y;x,y"),
        ('<ellipse label="a" cx="30" cy="20" rx="-8" ry="4"/>', "negative"),
        (
            '<mask label="a" rle="1,2" left="0" top="0" width="1.5" height="2"/>',
            r"width must be a whole number \('1.5'\)",
        ),
        (
            '<mask label="a" rle="1,20" left="0" top="0" width="4" height="2"/>',
            "rle must be counts of pixels, at most 4x2",
        ),
        ('<mask label="a" rle="1,-2" left="0" top="0" width="4" height="2"/>', "rle must be counts"),
        ('<mask label="a" rle="8" left="0" top="0" width="4" height="2"/>', "the mask has no pixel"),
        ('<skeleton label="a"/>', "no points"),
        ('<star label="a" points="1,2;3,4;5,6"/>', "<star> is no shape that is read"),
    ],
)
def test_a_bad_shape_is_named_by_its_line_and_its_image_left_out(tmp_path: Path, shape: str, reason: str) -> None:
    good = '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/>'
    cvat(tmp_path, good, shape)
    with pytest.raises(InputError, match=rf"annotations\.xml:4: .*{reason}"):
        open_dataset(tmp_path)
    write_image(tmp_path / "images" / "b.png")
    text = (tmp_path / "annotations.xml").read_text()
    other = f'<image id="1" name="b.png" width="64.0" height="48">{good}</image></annotations>'
    write_text(tmp_path / "annotations.xml", text.replace("</annotations>", other))
    index = open_dataset(tmp_path, skip_bad=True)
    assert [record.path.name for record in index.splits["train"]] == ["b.png"]
    assert [one.image for one in index.adjustments if one.kind == "skipped-bad"] == [tmp_path / "images" / "a.png"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<image", "<track id='0' label='a'></track><image", r"xml:2: .*\"CVAT for video\".*\"CVAT for images 1.1\""),
        ('width="64"', 'width="65"', r"xml:2: the labels say the image is 65x48, the file is 64x48"),
        ('width="64"', 'width="6.5"', r"xml:2: width must be a whole number"),
        ("a.png", "gone.png", r"xml:2: the image does not exist \('gone.png'"),
        ("</annotations>", "", r"xml:[67]: not valid XML"),
        ("<annotations>", "<!DOCTYPE a [<!ENTITY x 'y'>]><annotations>", r"xml:1: a DOCTYPE is not read"),
        ("<box", "<a><b>" * 20 + "<box", r"xml:3: nested deeper than"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    cvat(
        tmp_path, '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/>', '<box label="a" xtl="2" ytl="2" xbr="3" ybr="4"/>'
    )
    text = (tmp_path / "annotations.xml").read_text()
    write_text(tmp_path / "annotations.xml", text.replace(old, new, 1))
    with pytest.raises(InputError, match=reason):
        open_dataset(tmp_path)


def test_subsets_are_splits_and_folders_of_images(tmp_path: Path) -> None:
    box = '<box label="a" xtl="{0}" ytl="2" xbr="{0}9" ybr="9"/>'
    images = "".join(
        f'<image id="0" name="a.png" subset="{subset}" width="64" height="48">{box.format(number)}</image>'
        for number, subset in enumerate(("Train", "Validation", "default"), start=1)
    )
    write_text(tmp_path / "annotations.xml", f"<annotations><version>1.1</version>{images}</annotations>")
    for subset in ("Train", "Validation", "default"):
        write_image(tmp_path / "images" / subset / "a.png")
    index = open_dataset(tmp_path)
    read = {
        (split, record.path.parent.name): record.boxes_xyxy[0, 0]
        for split in index.splits
        for record in index.splits[split]
    }
    assert read == {("train", "Train"): 1, ("val", "Validation"): 2, ("train", "default"): 3}


def test_several_tasks_side_by_side_keep_their_images_apart(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val"), start=1):
        cvat(tmp_path / split, f'<box label="{split}" xtl="{number}" ytl="2" xbr="9" ybr="9"/>')
    index = open_dataset(tmp_path)
    assert index.class_names == ("train", "val")
    assert [boxes(index, split) for split in ("train", "val")] == [[[1, 2, 9, 9]], [[2, 2, 9, 9]]]
    assert {split: index.splits[split][0].path.parent.parent.name for split in index.splits} == {
        "train": "train",
        "val": "val",
    }


def test_frames_of_a_video_have_no_suffix_in_the_xml(tmp_path: Path) -> None:
    cvat(tmp_path, '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/>', name="frame_000007")
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "frame_000007.PNG")
    assert boxes(open_dataset(tmp_path)) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("place", ["annotations.xml", "Annotations/job_3.XML", "annotations.xml as a file"])
def test_places_of_the_xml(tmp_path: Path, place: str) -> None:
    file = place.removesuffix(" as a file")
    cvat(tmp_path, '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/>', xml=file)
    index = open_dataset(tmp_path if file == place else tmp_path / file)
    assert (index.format, boxes(index)) == ("cvat", [[1, 2, 3, 4]])


def test_an_xml_in_a_folder_of_that_name_finds_the_images_beside_the_folder(tmp_path: Path) -> None:
    cvat(tmp_path, '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/>', xml="annotations/a.xml")
    assert boxes(open_dataset(tmp_path / "annotations" / "a.xml")) == [[1, 2, 3, 4]]


def test_voc_is_still_voc(tmp_path: Path) -> None:
    write_text(tmp_path / "a.xml", voc_xml(voc_object("cat", 1, 2, 3, 4)))
    write_image(tmp_path / "a.png")
    assert open_dataset(tmp_path).format == "voc"


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    cvat(tmp_path, '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/>')
    for name in ("._annotations.xml", ".other/annotations.xml", "images/._a.png"):
        write_text(tmp_path / name, b"\0\5\x16\7 Mac OS X <annotations>")
    assert boxes(open_dataset(tmp_path)) == [[1, 2, 3, 4]]


def test_an_xml_is_read_child_by_child(tmp_path: Path) -> None:
    size = 3 << 20  # three blocks of the reader
    children = "".join(f"<image id='{number}'><box/></image>\n" for number in range(size // 28))
    path = write_text(tmp_path / "a.xml", f"<annotations a='1'>\n{children}</annotations>")
    root, *read = [(one.tag, one.get("id"), one.get("line"), len(one)) for one in iterate_xml(path, max_elements=3)]
    assert root == ("annotations", None, "1", 0)
    assert read == [("image", str(number), str(number + 2), 1) for number in range(size // 28)]
    with pytest.raises(InputError, match=r"a.xml:2: more than 1 elements"):
        list(iterate_xml(path, max_elements=1))
    with pytest.raises(InputError, match=r"gone\.xml: cannot be read"):
        list(iterate_xml(tmp_path / "gone.xml"))


def test_kinds_that_are_counted_are_told_once_a_split(tmp_path: Path) -> None:
    polygon = '<polygon label="a" points="1,2;3,4;5,{}"/>'
    index = open_dataset(cvat(tmp_path, *(polygon.format(number) for number in range(6, 20))))
    assert kinds(index) == ["shape-as-box"]
    assert index.adjustments[0].detail.startswith("14 polygons")
    assert index.adjustments[0].origin == f"{tmp_path / 'annotations.xml'}:2"
