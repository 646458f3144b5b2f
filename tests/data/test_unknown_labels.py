"""What labels do not know, as files say it: ignored classes, scores as weights, objects whose class cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchorite.data import DatasetIndex, open_dataset
from anchorite.data.dataset import NO_CLASS, LabelSource, RecordTable, TableBuilder, pack_box
from anchorite.errors import InputError
from tests.data.format_samples import coco_json, kinds, voc_object, voc_xml, write_image, write_text, yolo_dataset

CAT, DOG, COW = [4.0, 6.0, 20.0, 30.0], [24.0, 12.0, 40.0, 36.0], [50.0, 2.0, 60.0, 12.0]
NAMES = ("cat", "dog", "cow")


def rows(index: DatasetIndex, split: str = "train") -> list[tuple[Any, ...]]:
    """Class, ignored, weight and box of each object of the first image."""
    one = index.splits[split][0]
    boxes = one.boxes_xyxy.round(6).tolist()
    return list(zip(one.class_ids.tolist(), one.ignored.tolist(), one.weights.tolist(), boxes, strict=True))


def yolo_row(class_id: int | str, box: list[float], *more: object) -> str:
    x1, y1, x2, y2 = box
    numbers = (x1 + x2) / 128, (y1 + y2) / 96, (x2 - x1) / 64, (y2 - y1) / 48
    return " ".join(map(str, (class_id, *numbers, *more))) + "\n"


def three_animals(folder: Path, format: str) -> Path:
    """A cat, a dog and a cow in one image, in that order, in a format."""
    write_image(folder / "a.png")
    boxes = dict(zip(NAMES, (CAT, DOG, COW), strict=True))
    if format == "yolo":
        text = "".join(yolo_row(number, box) for number, box in enumerate(boxes.values()))
        yolo_dataset(folder, {"a": text}, names="[cat, dog, cow]")
        (folder / "a.png").unlink()
    elif format == "coco":
        found = [coco_box(number, box) for number, box in enumerate(boxes.values(), start=1)]
        coco_json(folder / "train.json", found, None, [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)])
    elif format == "voc":
        write_text(folder / "classes.txt", "\n".join(NAMES))
        write_text(folder / "a.xml", voc_xml(*(voc_object(name, *box) for name, box in boxes.items())))
    else:
        lines = [f"a.png,{name},{','.join(map(str, box))}" for name, box in boxes.items()]
        write_text(folder / "labels.csv", "\n".join(["filename,class,xmin,ymin,xmax,ymax", *lines]))
    return folder


def coco_box(category: object, box: list[float], **more: object) -> dict[str, object]:
    x1, y1, x2, y2 = box
    return {"id": int(x1), "image_id": 1, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], **more}


# Ignored classes.


@pytest.mark.parametrize("format", ["yolo", "coco", "voc", "csv"])
def test_an_ignored_class_is_none_and_its_boxes_are_regions(format: str, tmp_path: Path) -> None:
    index = open_dataset(three_animals(tmp_path, format), ignore_classes=["dog"])
    assert (index.ignored_classes, set(index.class_names)) == (("dog",), {"cat", "cow"})
    ids = [index.class_names.index(name) for name in ("cat", "cow")]
    expected = [(ids[0], False, 1.0, CAT), (NO_CLASS, True, 1.0, DOG), (ids[1], False, 1.0, COW)]
    assert rows(index) == expected
    split = index.splits["train"]
    assert (split.num_boxes(), split.num_ignored(), split.class_counts(2).tolist()) == (3, 1, [1, 1])


def test_a_data_yaml_says_which_classes_are_ignored_and_a_flag_adds_to_it(tmp_path: Path) -> None:
    three_animals(tmp_path, "yolo")
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("ignore_classes: [cow]\n")
    index = open_dataset(tmp_path, ignore_classes=["dog"])
    assert (index.class_names, set(index.ignored_classes)) == (("cat",), {"dog", "cow"})
    assert [row[0] for row in rows(index)] == [0, NO_CLASS, NO_CLASS]
    assert open_dataset(tmp_path).class_names == ("cat", "dog")


def test_a_coco_json_says_which_classes_are_ignored(tmp_path: Path) -> None:
    three_animals(tmp_path, "coco")
    path = tmp_path / "train.json"
    info = {"year": 2026, "anchorite": {"ignore_classes": ["cat"], "scores": "as-weights"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"info": info}))
    index = open_dataset(tmp_path)
    assert (index.class_names, index.ignored_classes, index.scores) == (("dog", "cow"), ("cat",), "as-weights")
    assert [row[:2] for row in rows(index)] == [(NO_CLASS, True), (0, False), (1, False)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ignore_classes: [bird]", ["data.yaml:3: ", "'bird'", "'cat', 'dog', 'cow'"]),
        ("ignore_classes: cow", ["data.yaml:3: ", "list", "cow"]),
        ("ignore_classes: [no]", ["data.yaml:3: ", "quotes"]),
        ("ignore_classes: [cat, dog, cow]", ["all", "keep one"]),
        ("scores: as-confidence", ["data.yaml:3: ", "as-weights", "as-confidence"]),
    ],
)
def test_what_a_data_yaml_cannot_mean_is_refused_with_its_line(text: str, words: list[str], tmp_path: Path) -> None:
    three_animals(tmp_path, "yolo")
    with (tmp_path / "data.yaml").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(InputError) as error:
        open_dataset(tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"ignore_classes": ["bird"]}, ["train.json: info.anchorite", "'bird'", "'cat', 'dog', 'cow'"]),
        ({"ignore_classes": "cat"}, ["train.json: info.anchorite", "ignore_classes"]),
        ({"ignore_classes": [1]}, ["train.json: info.anchorite", "ignore_classes"]),
        ({"scores": True}, ["train.json: info.anchorite", "scores"]),
        (["scores"], ["train.json: info.anchorite"]),
    ],
)
def test_what_a_coco_json_cannot_mean_is_refused(told: object, words: list[str], tmp_path: Path) -> None:
    path = three_animals(tmp_path, "coco") / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"info": {"anchorite": told}}))
    with pytest.raises(InputError) as error:
        open_dataset(tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_and_wrong_arguments_are_refused(tmp_path: Path) -> None:
    three_animals(tmp_path, "voc")
    for wrong, words in (
        ({"ignore_classes": ["bird"]}, ["'bird'", "'cat', 'dog', 'cow'"]),
        ({"ignore_classes": NAMES}, ["all"]),
        ({"ignore_classes": "cat"}, ["list", "cat"]),
        ({"scores": "yes"}, ["as-weights", "yes"]),
    ):
        with pytest.raises(InputError) as error:
            open_dataset(tmp_path, **wrong)  # type: ignore[arg-type]
        assert all(word in str(error.value) for word in words), str(error.value)


def test_sources_cover_what_they_did_when_classes_close_up() -> None:
    builder = TableBuilder()
    source = LabelSource("a", (True, False, True), 0.5)
    box = pack_box(2, (1.0, 2.0, 3.0, 4.0), builder.head_id("a.txt:"), 1, weight=0.25)
    region = pack_box(NO_CLASS, (1.0, 2.0, 3.0, 4.0), builder.head_id("a.txt:"), 2, ignored=True)
    builder.add(Path("a.png"), 8, 8, box + region, source)
    table: RecordTable = builder.table().renumbered([0, NO_CLASS, 1])
    assert table.label_sources == (LabelSource("a", (True, True), 0.5),)
    assert (table[0].class_ids.tolist(), table[0].weights.tolist()) == ([1, NO_CLASS], [0.25, 1.0])
    assert np.array_equal(builder.table().boxes["class_id"], [2, NO_CLASS]), "the first table is as it was"


# Scores as weights.


def scored(folder: Path, format: str, *scores: object) -> Path:
    """A cat of each score (None: no score at all) in one image, in a format that has scores."""
    boxes = [[4.0 * number, 6.0, 20.0, 30.0] for number in range(len(scores))]
    pairs = list(zip(boxes, scores, strict=True))
    if format == "yolo":
        yolo_dataset(folder, {"a": "".join(yolo_row(0, box, *([] if n is None else [n])) for box, n in pairs)})
    elif format == "coco":
        write_image(folder / "a.png")
        found = [coco_box(1, box, **({} if score is None else {"score": score})) for box, score in pairs]
        coco_json(folder / "train.json", [one | {"id": number} for number, one in enumerate(found)])
    elif format == "open-images":
        write_image(folder / "train" / "a.png")
        lines = [
            f"a,cat,{x1 / 64},{x2 / 64},{y1 / 48},{y2 / 48},{'' if n is None else n}" for (x1, y1, x2, y2), n in pairs
        ]
        head = "ImageID,LabelName,XMin,XMax,YMin,YMax,Confidence"
        write_text(folder / "train-annotations-bbox.csv", "\n".join([head, *lines]))
    else:
        write_image(folder / "a.png")
        values = [
            {"x": x1 / 0.64, "y": y1 / 0.48, "width": (x2 - x1) / 0.64, "height": (y2 - y1) / 0.48}
            | {"rectanglelabels": ["cat"]}
            for (x1, y1, x2, y2), _ in pairs
        ]
        result = [
            {"type": "rectanglelabels", "value": value} | ({} if n is None else {"score": n})
            for value, (_, n) in zip(values, pairs, strict=True)
        ]
        write_text(
            folder / "tasks.json",
            json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": result}]}]),
        )
    return folder


SCORED = ["yolo", "coco", "open-images", "label-studio"]


@pytest.mark.parametrize("format", SCORED)
def test_scores_are_weights_where_that_is_asked_for(format: str, tmp_path: Path) -> None:
    scored(tmp_path, format, 0.25, None, 1, 0)
    plain, weighted = open_dataset(tmp_path), open_dataset(tmp_path, scores="as-weights")
    assert [row[2] for row in rows(weighted)] == [0.25, 1.0, 1.0, 0.0]
    assert (weighted.scores, weighted.splits["train"].num_weighted(), kinds(weighted)) == ("as-weights", 2, [])
    assert [row[2] for row in rows(plain)] == [1.0] * 4
    (told,) = plain.adjustments
    assert told.kind == "ignored-score"
    assert "--scores as-weights" in told.detail


@pytest.mark.parametrize("format", SCORED)
@pytest.mark.parametrize("score", [1.0001, -0.5, 7])
def test_a_score_that_is_no_weight_is_bad(format: str, score: float, tmp_path: Path) -> None:
    scored(tmp_path, format, 0.5, score)
    if format != "yolo" or score > 0:
        assert [row[2] for row in rows(open_dataset(tmp_path))] == [1.0] * 2
    with pytest.raises(InputError, match=r"0\.\.1"):
        open_dataset(tmp_path, scores="as-weights")


@pytest.mark.parametrize("score", ["half", True, [0.5]])
def test_a_score_that_is_no_number_is_bad(score: object, tmp_path: Path) -> None:
    scored(tmp_path, "coco", score)
    with pytest.raises(InputError, match="annotation id 0: the score must be a number in"):
        open_dataset(tmp_path, scores="as-weights")


def test_a_data_yaml_may_say_that_scores_are_weights(tmp_path: Path) -> None:
    scored(tmp_path, "yolo", 0.5)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("scores: as-weights\n")
    index = open_dataset(tmp_path)
    assert (index.scores, rows(index)[0][2]) == ("as-weights", 0.5)


def test_an_ignored_object_has_no_weight(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    coco_json(tmp_path / "train.json", [coco_box(1, CAT, score=0.5, iscrowd=1), coco_box(1, DOG, score=0.5)])
    assert [row[2] for row in rows(open_dataset(tmp_path, scores="as-weights"))] == [1.0, 0.5]


# Objects of which only the place can be read.


def shapes(folder: Path, format: str, label: object) -> Path:
    """A cat, and an object that has its place, but whose class is not known."""
    image, x1, y1, x2, y2 = write_image(folder / "a.png"), *DOG
    if format == "yolo":
        image.unlink()
        yolo_dataset(folder, {"a": yolo_row(0, CAT) + yolo_row(str(label), DOG)})
    elif format == "coco":
        coco_json(folder / "train.json", [coco_box(1, CAT), coco_box(label, DOG)])
    elif format == "voc":
        write_text(folder / "a.xml", voc_xml(voc_object("cat", *CAT), voc_object(str(label), *DOG)))
    elif format == "csv":
        lines = [f"a.png,{name},{','.join(map(str, box))}" for name, box in (("cat", CAT), (label, DOG))]
        write_text(folder / "labels.csv", "\n".join(["filename,class,xmin,ymin,xmax,ymax", *lines]))
    elif format == "cvat":
        drawn = "".join(
            f'<box label="{name}" xtl="{box[0]}" ytl="{box[1]}" xbr="{box[2]}" ybr="{box[3]}"/>'
            for name, box in (("cat", CAT), (label, DOG))
        )
        meta = "<meta><task><labels><label><name>cat</name></label></labels></task></meta>"
        text = f'<annotations><version>1.1</version>{meta}<image id="0" name="a.png">{drawn}</image></annotations>'
        write_text(folder / "annotations.xml", text)
    elif format == "via":
        regions = [
            {
                "shape_attributes": {"name": "rect", "x": b[0], "y": b[1], "width": b[2] - b[0], "height": b[3] - b[1]},
                "region_attributes": {"class": name},
            }
            for name, b in (("cat", CAT), (label, DOG))
        ]
        write_text(folder / "via.json", json.dumps({"a.png1": {"filename": "a.png", "size": 1, "regions": regions}}))
    elif format == "labelme":
        drawn_shapes = [
            {"label": name, "shape_type": kind, "points": [box[:2], box[2:]]}
            for name, kind, box in (("cat", "rectangle", CAT), (label, "rectangle" if label is None else "cube", DOG))
        ]
        write_text(folder / "a.json", json.dumps({"shapes": drawn_shapes, "imagePath": "a.png"}))
    else:
        scored(folder, format, None, None)
        tasks = json.loads((folder / "tasks.json").read_text())
        values = [one["value"] for one in tasks[0]["annotations"][0]["result"]]
        values[1] |= {"x": x1 / 0.64, "y": y1 / 0.48, "width": (x2 - x1) / 0.64, "height": (y2 - y1) / 0.48}
        values[1]["rectanglelabels"] = label
        write_text(folder / "tasks.json", json.dumps(tasks))
    return folder


@pytest.mark.parametrize(
    ("format", "label", "reason"),
    [
        ("yolo", 2, "a.txt:2: the class must be a whole number 0..1 ('2')"),
        ("yolo", "999999999999", "a.txt:2: the class must be"),
        ("coco", 7, "annotation id 24: no category has this category_id (7)"),
        ("coco", None, "annotation id 24: no category has this category_id"),
        ("coco", 2.5, "annotation id 24: no category has this category_id (2.5)"),
        ("voc", "", "a.xml:8: the object has no usable <name>"),
        ("voc", " ", "a.xml:8: the object has no usable <name>"),
        ("csv", "", "labels.csv:3: '' cannot name a class"),
        ("cvat", "", "annotations.xml:1: '' cannot name a class"),
        ("cvat", " ", "annotations.xml:1: ' ' cannot name a class"),
        ("cvat", "bird", "annotations.xml:1: 'bird' is not in the list of class names"),
        ("via", "", "image 'a.png1', region 1: the region attribute 'class' must name one class"),
        ("via", None, "image 'a.png1', region 1: the region attribute 'class' must name one class"),
        ("via", {"cat": True, "dog": True}, "image 'a.png1', region 1: the region attribute 'class' must name one"),
        ("via", "a\0b", "image 'a.png1', region 1: 'a\\x00b' cannot name a class"),
        ("labelme", None, "a.json: shape 2: label must be a text (None)"),
        ("labelme", "", "a.json: shape 2: a shape of this type is not read ('cube')"),
        ("label-studio", [], "task 1, result 2: the region has no label"),
        ("label-studio", [3], "task 1, result 2: the region has no label"),
        ("label-studio", [" "], "task 1, result 2: ' ' cannot name a class"),
    ],
)
def test_where_only_the_place_of_an_object_is_known_it_becomes_a_region(
    format: str, label: object, reason: str, tmp_path: Path
) -> None:
    shapes(tmp_path, format, label)
    with pytest.raises(InputError, match="1 error") as error:
        open_dataset(tmp_path)
    assert reason in str(error.value)
    index = open_dataset(tmp_path, skip_bad=True)
    assert [row[:3] for row in rows(index)] == [(0, False, 1.0), (NO_CLASS, True, 1.0)]
    assert rows(index)[1][3] == DOG
    (told,) = index.adjustments
    assert (told.kind, told.split, told.image) == ("ignored-region", "train", next(index.splits["train"].paths()))


@pytest.mark.parametrize(
    ("format", "label"), [("yolo", "0.31"), ("yolo", "-1"), ("yolo", "cat")]
)  # such numbers may be no class with a box
def test_a_row_that_may_be_anything_takes_its_image_out(format: str, label: object, tmp_path: Path) -> None:
    index = open_dataset(shapes(tmp_path, format, label), skip_bad=True)
    assert (len(index.splits["train"]), kinds(index)) == (0, ["skipped-bad"])


def test_an_image_with_another_fault_is_left_out_as_a_whole(tmp_path: Path) -> None:
    rows_of = {"a": yolo_row(0, CAT) + yolo_row(5, DOG) + "0 0.5 0.5 nan 0.5\n", "b": yolo_row(9, DOG)}
    index = open_dataset(yolo_dataset(tmp_path, rows_of), skip_bad=True)
    assert [path.stem for path in index.splits["train"].paths()] == ["b"]
    assert kinds(index) == ["skipped-bad", "skipped-bad", "ignored-region"]


def test_a_region_is_clipped_and_dropped_as_any_box(tmp_path: Path) -> None:
    text = yolo_row(9, [-10.0, 0.0, 20.0, 20.0]) + yolo_row(9, [-10.0, 0.0, 20.0, 20.0]) + yolo_row(9, [5, 5, 5, 9])
    index = open_dataset(yolo_dataset(tmp_path, {"a": text}), skip_bad=True)
    assert sorted(kinds(index)) == ["clipped", "dropped-duplicate", "dropped-empty", *["ignored-region"] * 3]
    assert rows(index) == [(NO_CLASS, True, 1.0, [0.0, 0.0, 20.0, 20.0])]


def test_a_region_that_is_an_objects_own_box_stays(tmp_path: Path) -> None:
    index = open_dataset(yolo_dataset(tmp_path, {"a": yolo_row(0, CAT) + yolo_row(7, CAT)}), skip_bad=True)
    assert [row[:2] for row in rows(index)] == [(0, False), (NO_CLASS, True)]


def test_sources_of_a_yaml_are_read_as_it_and_the_flags_say(tmp_path: Path) -> None:
    scored(tmp_path / "farm", "yolo", 0.5)
    scored(tmp_path / "street", "yolo", 0.25)
    write_text(tmp_path / "farm" / "labels" / "train" / "a.txt", yolo_row(0, CAT, 0.5) + yolo_row(1, DOG, 0.5))
    path = write_text(tmp_path / "both.yaml", "sources: [{data: farm, scores: as-weights}, {data: street}]\n")
    index = open_dataset(path, ignore_classes=["dog"])
    assert (index.class_names, index.ignored_classes) == (("cat",), ("dog",))
    weights = [(one.class_ids.tolist(), one.weights.tolist()) for one in index.splits["train"]]
    assert weights == [([0, NO_CLASS], [0.5, 1.0]), ([0], [1.0])]
    assert open_dataset(path, scores="as-weights").splits["train"][1].weights.tolist() == [0.25]
