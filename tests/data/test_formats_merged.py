"""Several data sets as one: `sources` of a YAML."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anchorite.choices import WrittenFormat
from anchorite.data import DatasetIndex, decode_image, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.errors import InputError
from tests.data.format_samples import coco_json, voc_object, voc_xml, write_image, write_text, yolo_dataset

COCO_BOX = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 16, 8], "area": 128, "iscrowd": 0}


def two_sources(root: Path, text: str = "sources:\n- data: farm\n- data: street\n") -> Path:
    """farm: YOLO with cat, dog; street: COCO with dog, bird, in train and val."""
    yolo_dataset(root / "farm", {"a": "1 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.25 0.25\n", "b": ""})
    categories = [{"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}]
    for split, category in (("train", 7), ("val", 9)):
        write_image(root / "street" / split / "s.png")
        image = {"id": 1, "file_name": "s.png", "width": 64, "height": 48}
        box = COCO_BOX | {"category_id": category}
        coco_json(root / "street" / split / "_annotations.coco.json", [box], [image], categories)
    return write_text(root / "merged.yaml", text)


def seen(index: DatasetIndex) -> list[tuple[str, str, list[str], LabelSource]]:
    """Split, image, names of its classes, and source of every record."""
    return [
        (split, one.path.name, [index.class_names[number] for number in one.class_ids], one.source)
        for split, records in index.splits.items()
        for one in records
    ]


def message(root: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(two_sources(root, text))
    return str(caught.value)


def test_classes_are_joined_by_name_and_splits_kept(tmp_path: Path) -> None:
    index = open_dataset(two_sources(tmp_path))
    assert (index.format, index.class_names) == ("merged", ("cat", "dog", "bird"))
    farm, street = LabelSource("farm", (True, True, False)), LabelSource("street", (False, True, True))
    assert seen(index) == [
        ("train", "a.png", ["dog", "cat"], farm),
        ("train", "b.png", [], farm),
        ("train", "s.png", ["dog"], street),
        ("val", "s.png", ["bird"], street),
    ]
    # Each record is what its source alone has, but for class numbers and source.
    alone = open_dataset(tmp_path / "street").splits["train"][0]
    here = index.splits["train"][2]
    assert np.array_equal(here.boxes_xyxy, alone.boxes_xyxy)
    assert (here.path, tuple(here.origins), here.areas.tolist()) == (alone.path, alone.origins, alone.areas.tolist())
    assert index.splits["val"].sources() == (street,)
    assert open_dataset(tmp_path).class_names == index.class_names  # the folder stands for its only list of sources


def test_the_yaml_says_order_coverage_and_background(tmp_path: Path) -> None:
    text = """
    names: [bird, cat, dog]
    sources:
    - {data: farm, covers: all, background_weight: 0.5}
    - data: street/train/_annotations.coco.json
      format: coco
      covers: [bird, dog, cat]
    """
    index = open_dataset(two_sources(tmp_path, text))
    assert index.class_names == ("bird", "cat", "dog")
    assert index.splits["train"].sources() == (
        LabelSource("farm", None, 0.5),
        LabelSource("street/train/_annotations.coco.json"),
    )
    assert [names for _, _, names, _ in seen(index)] == [["dog", "cat"], [], ["dog"]]


def test_crowds_may_be_of_classes_that_are_not_covered_and_adjustments_stay(tmp_path: Path) -> None:
    two_sources(tmp_path, "sources: [{data: farm}, {data: street, covers: [bird]}]\n")
    write_text(tmp_path / "farm/labels/train/a.txt", "0 0.9 0.5 0.4 0.5\n")  # reaches outside
    box = COCO_BOX | {"iscrowd": 1}
    categories = [{"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}]
    image = {"id": 1, "file_name": "s.png", "width": 64, "height": 48}
    coco_json(tmp_path / "street/train/_annotations.coco.json", [box], [image], categories)
    index = open_dataset(tmp_path / "merged.yaml")
    assert [one.kind for one in index.adjustments] == ["clipped"]
    assert index.splits["train"].sources()[1].covered == (False, False, True)
    assert index.splits["train"].class_counts(3).tolist() == [1, 0, 0]
    assert index.splits["train"].num_ignored() == 1


def test_an_object_of_a_class_that_is_not_covered_is_an_error_where_it_stands(tmp_path: Path) -> None:
    text = message(tmp_path, "sources:\n- data: farm\n  covers: [cat]\n- data: street\n")
    for part in ("merged.yaml:2: source farm", "labels/train/a.txt:1: dog", "ignore_classes: [dog]"):
        assert part in text
    rows = "1 0.5 0.5 0.5 0.5\n".replace("0.5 0.5 ", "0.{} 0.5 ")
    write_text(tmp_path / "farm/labels/train/a.txt", "".join(rows.format(number) for number in range(300, 350)))
    with pytest.raises(InputError, match="and 30 more"):
        open_dataset(tmp_path / "merged.yaml", skip_bad=True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sources: []\n", [":1:", "list of data sets"]),
        ("sources: {data: farm}\n", [":1:", "list of data sets"]),
        ("sources:\n- farm\n", [":2:", "mapping", "'farm'"]),
        ("sources:\n- {covers: all}\n", [":2:", "without data"]),
        ("sources:\n- {data: }\n", [":2:", "data must be"]),
        ("sources:\n- data: farm\n  backgroundweight: 1\n", [":3:", "'backgroundweight'", "background_weight?"]),
        ("train: farm\nsources:\n- data: farm\n", [":1:", "'train'", "sources, names"]),
        ("sources:\n- data: barn\n", [":2:", "source barn", "does not exist", "correct the path"]),
        ("sources:\n- data: ..\n", [":2:", "leads out", "--allow-outside"]),
        ("sources:\n- data: farm\n- data: ./farm/../farm\n", [":3:", "stands there already"]),
        ("sources:\n- data: farm\n- data: farm/data.yaml\n", [":3:", "a.png", "source farm"]),
        ("sources:\n- data: farm\n  covers: [cat, dog, cow]\n", [":2:", "'cow'", "cat, dog"]),
        ("sources:\n- data: farm\n  covers: cat\n", [":3:", "list of class names", "`all`"]),
        ("sources:\n- data: farm\n  covers: [cat, no]\n", [":3:", "quotes"]),
        ("sources:\n- data: farm\n  covers: [cat, cat]\n", [":3:", "twice"]),
        ("sources:\n- data: farm\n  background_weight: 1.5\n", [":3:", "0 to 1", "'1.5'"]),
        ("sources:\n- data: farm\n  background_weight: .nan\n", [":3:", "0 to 1"]),
        ("sources:\n- data: farm\n  scores: yes\n", [":3:", "as-weights"]),
        ("sources:\n- data: farm\n  format: merged\n", [":3:", "yolo", "'merged'"]),
        ("sources:\n- data: farm\n  format: voc\n", [":2: source farm", "voc"]),
        ("sources:\n- data: merged.yaml\n", [":2:", "lists sources itself"]),
        ("sources:\n- data: .\n", [":2:", "lists sources itself"]),
        ("sources:\n- data: farm\nnames: [cat]\n", [":3:", "'dog'"]),
        ("sources:\n- data: farm\nnames: [cat, dog, cow]\n", [":3:", "'cow'"]),
    ],
)
def test_whatever_is_amiss_is_told_with_line_value_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    told = message(tmp_path, text)
    assert all(part in told for part in ["merged.yaml", *parts]), told


def test_errors_of_a_source_name_it(tmp_path: Path) -> None:
    yaml = two_sources(tmp_path)
    write_text(tmp_path / "farm/labels/train/b.txt", "5 0.5 0.5 0.5 0.5\n")
    with pytest.raises(InputError, match=r"merged.yaml:2: source farm: [^\n]*\n.*b.txt:1"):
        open_dataset(yaml)
    assert len(open_dataset(yaml, skip_bad=True).splits["train"]) >= 2


def test_links_out_of_the_folder_need_leave(tmp_path: Path) -> None:
    yaml = two_sources(tmp_path / "here", "sources:\n- data: farm\n- data: ../elsewhere\n")
    (tmp_path / "here/street").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="allow-outside"):
        open_dataset(yaml)
    index = open_dataset(yaml, allow_outside=True)
    assert (index.allow_outside, len(index.splits["train"])) == (True, 3)


def test_names_of_classes_that_differ_in_case_are_told(tmp_path: Path) -> None:
    from anchorite.inspect import look_over

    two_sources(tmp_path)
    write_text(tmp_path / "farm/data.yaml", "train: images/train\nnames: [cat, Dog]\n")
    told = look_over(open_dataset(tmp_path / "merged.yaml")).told
    assert "similar-class-names" in [one.kind for one in told]


def test_a_source_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchorite.data import index_cache

    monkeypatch.setenv(index_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    monkeypatch.setattr(index_cache, "_SETTLED_NS", -(10**15))  # as if all files were old
    yaml = two_sources(tmp_path / "data")
    first = open_dataset(yaml)
    assert len(first.splits["train"].table().files) == 2
    assert open_dataset(yaml).splits == first.splits
    write_text(tmp_path / "data/farm/labels/train/b.txt", "0 0.5 0.5 0.5 0.5\n")
    assert open_dataset(yaml).splits["train"].num_boxes() == 4
    yaml.write_text(yaml.read_text() + "  background_weight: 0.25\n")
    assert open_dataset(yaml).splits["train"].sources()[1].background_weight == 0.25


def test_voc_and_a_single_source(tmp_path: Path) -> None:
    write_image(tmp_path / "v" / "train" / "a.png")
    write_text(tmp_path / "v" / "train" / "a.xml", voc_xml(voc_object("dog", 1, 1, 5, 5)))
    index = open_dataset(write_text(tmp_path / "all.yml", "sources: [{data: v}]\n"))
    assert seen(index) == [("train", "a.png", ["dog"], LabelSource("v"))]


def three_kinds(root: Path) -> Path:
    """Sources that know all classes, some, and some whose background counts less, one with a crowd."""
    two_sources(root, "sources: [{data: farm}, {data: street, background_weight: 0.5}, {data: all, covers: all}]\n")
    yolo_dataset(root / "all", {"c": "0 0.5 0.5 0.25 0.25\n"}, names="[cat]")
    box = COCO_BOX | {"iscrowd": 1, "category_id": 9}
    categories = [{"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}]
    image = {"id": 1, "file_name": "s.png", "width": 64, "height": 48}
    coco_json(root / "street" / "train" / "_annotations.coco.json", [box, COCO_BOX | {"id": 2}], [image], categories)
    return root / "merged.yaml"


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_a_copy_keeps_the_sources(tmp_path: Path, format: WrittenFormat) -> None:
    index = open_dataset(three_kinds(tmp_path / "data"))
    write_dataset(index, tmp_path / "copy", format)
    names = sorted(path.name for path in (tmp_path / "copy").iterdir() if path.name != "changes.txt")
    assert names == ["all", "farm", "merged.yaml", "street"]
    copy = open_dataset(tmp_path / "copy")
    assert copy.class_names == index.class_names
    assert copy.splits["train"].sources() == index.splits["train"].sources()
    for split, records in index.splits.items():
        for one, other in zip(records, copy.splits[split], strict=True):
            kept, there = (~some.ignored if format == "yolo" else slice(None) for some in (one, other))
            np.testing.assert_allclose(one.boxes_xyxy[kept], other.boxes_xyxy[there], atol=1e-4)
            assert one.class_ids[kept].tolist() == other.class_ids[there].tolist()
            assert one.ignored[kept].tolist() == other.ignored[there].tolist()
            assert one.source == other.source
    # Each folder is a data set of the classes that it knows of.
    assert open_dataset(tmp_path / "copy" / "farm").class_names == ("cat", "dog")


def test_a_copy_of_sources_that_know_everything_is_plain(tmp_path: Path) -> None:
    for name in ("farm", "street"):
        yolo_dataset(tmp_path / "data" / name, {"a": "1 0.5 0.5 0.5 0.5\n"})
    yaml = write_text(tmp_path / "data" / "all.yaml", "sources: [{data: farm}, {data: street}]\n")
    write_dataset(open_dataset(yaml), tmp_path / "copy", "coco")
    copy = open_dataset(tmp_path / "copy")
    assert (copy.format, copy.splits["train"].num_boxes()) == ("coco", 2)


def test_sources_whose_names_end_alike_get_folders_of_their_own(tmp_path: Path) -> None:
    yolo_dataset(tmp_path / "data" / "a b", {"a": "0 0.5 0.5 0.5 0.5\n"})
    yolo_dataset(tmp_path / "data" / "a-b", {"a": "1 0.5 0.5 0.5 0.5\n"})
    yaml = write_text(tmp_path / "data" / "m.yaml", "sources: [{data: ./a b, background_weight: 0}, {data: a-b}]\n")
    write_dataset(open_dataset(yaml), tmp_path / "copy", "yolo")
    copy = open_dataset(tmp_path / "copy" / "merged.yaml")
    assert copy.splits["train"].sources() == (LabelSource("a-b", None, 0.0), LabelSource("a-b_2"))


def test_splits_made_anew_keep_the_source_of_each_image(tmp_path: Path) -> None:
    index = open_dataset(three_kinds(tmp_path / "data"))
    train, val = index.splits["train"], index.splits["val"]
    turned = replace(index, splits={"train": [*val, train[3], train[0]], "val": [train[2], train[1]]})
    write_dataset(turned, tmp_path / "copy", "coco")
    copy = open_dataset(tmp_path / "copy")
    for split, records in turned.splits.items():
        assert Counter(one.source for one in records) == Counter(one.source for one in copy.splits[split])


def test_ignored_classes_of_the_command_hold_for_all_sources_and_those_of_a_source_for_it_alone(tmp_path: Path) -> None:
    yaml = two_sources(tmp_path, "sources:\n- data: farm\n  ignore_classes: [dog]\n- data: street\n  covers: [dog]\n")
    with pytest.raises(InputError, match=r"street labels objects of classes.*bird"):
        open_dataset(yaml)
    index = open_dataset(yaml, ignore_classes=["bird"])
    assert index.class_names == ("cat", "dog")
    assert index.splits["train"].sources() == (LabelSource("farm", (True, False)), LabelSource("street", (False, True)))
    ids = [(one.class_ids.tolist(), one.ignored.tolist()) for one in index.splits["train"]]
    assert ids == [([NO_CLASS, 0], [True, False]), ([], []), ([1], [False])]
    assert index.splits["val"][0].class_ids.tolist() == [NO_CLASS]
    ordered = write_text(yaml, yaml.read_text() + "names: [dog, bird, cat]\n")
    assert open_dataset(ordered, ignore_classes=["bird"]).class_names == ("dog", "cat")
    with pytest.raises(InputError, match=r"merged.yaml: ignore class 'brid'.*did you mean bird"):
        open_dataset(yaml, ignore_classes=["brid"])
    with pytest.raises(InputError, match=r"merged.yaml:2: source farm: .*'cow'"):
        open_dataset(write_text(yaml, "sources:\n- data: farm\n  ignore_classes: [cow]\n"))


def test_shards_keep_the_sources_and_can_be_one(tmp_path: Path) -> None:
    index = open_dataset(three_kinds(tmp_path / "data"))
    write_dataset(index, tmp_path / "all" / "shards", "shards")
    copy = open_dataset(tmp_path / "all" / "shards")
    for split, records in index.splits.items():
        assert Counter(one.source for one in copy.splits[split]) == Counter(one.source for one in records)
        assert set(copy.splits[split].sources()) == set(records.sources())
    yaml = write_text(tmp_path / "all" / "m.yaml", "sources: [{data: shards}]\n")
    with pytest.raises(InputError, match=r"m.yaml:1: source shards was made of several sources.*name these"):
        open_dataset(yaml)
    # Shards of one source are read as any other, images and all.
    write_dataset(open_dataset(tmp_path / "data" / "farm"), tmp_path / "all" / "farm", "shards")
    index = open_dataset(write_text(yaml, "sources: [{data: farm, covers: [dog, cat], background_weight: .5}]\n"))
    assert Counter(len(one.class_ids) for one in index.splits["train"]) == {2: 1, 0: 1}
    assert index.splits["train"].sources() == (LabelSource("farm", None, 0.5),)
    assert all(decode_image(one.path).shape == (48, 64, 3) for one in index.splits["train"])
    write_dataset(index, tmp_path / "copy", "coco")
    assert open_dataset(tmp_path / "copy").splits["train"].sources() == (LabelSource("farm", None, 0.5),)


def test_a_source_of_background_alone_may_cover_no_class_and_is_written_so(tmp_path: Path) -> None:
    two_sources(tmp_path / "data", "sources: [{data: none, covers: []}, {data: farm}]\n")
    yolo_dataset(tmp_path / "data" / "none", {"n": ""})
    index = open_dataset(tmp_path / "data" / "merged.yaml")
    assert index.splits["train"].sources()[0].covered == (False, False)
    write_dataset(index, tmp_path / "copy", "yolo")
    assert open_dataset(tmp_path / "copy").splits["train"].sources() == index.splits["train"].sources()
