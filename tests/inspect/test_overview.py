"""What is said of a dataset before it is decoded: counts, sentences, images in two splits, nothing to learn from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anchorite.data import Adjustment, DatasetIndex, Record, RecordTable, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.errors import InputError
from anchorite.inspect import KINDS, corrected_dataset, look_over, overview, require_boxes, summary_text
from anchorite.inspect.overview import shared_images
from tests.data.format_samples import coco_json, write_image, write_text
from tests.inspect.samples import healthy, inspected, yolo_folder


def record(name: str, class_ids: Sequence[int] = (), num_ignored: int = 0) -> Record:
    """An image of 64 x 48 with a box for each class id, the last ones ignored."""
    number = len(class_ids)
    boxes = np.array([[4.0 * k, 4.0, 4.0 * k + 10, 20.0] for k in range(number)]).reshape(-1, 4)
    ignored = np.arange(number) >= number - num_ignored
    origins = tuple(f"{name}.txt:{k + 1}" for k in range(number))
    return Record(Path(f"{name}.png"), 64, 48, boxes, np.array(class_ids, np.int64), ignored, np.ones(number), origins)


def index(adjustments: Sequence[Adjustment] = (), names: Sequence[str] = ("cat", "dog"), **splits: Sequence[Record]):  # type: ignore[no-untyped-def]
    return DatasetIndex(Path("data"), "yolo", tuple(names), splits, tuple(adjustments))  # type: ignore[arg-type]


def told(dataset: DatasetIndex, **options: bool) -> dict[str, int]:
    """How many findings of each kind are told."""
    return {one.kind: one.number for one in look_over(dataset, **options).told}


def test_every_split_counts_what_is_learned_and_what_is_not() -> None:
    train = [record("a", [0, 1, 1]), record("b", [0, 0], num_ignored=2), record("c"), record("d", [1])]
    adjustments = [
        Adjustment("skipped-bad", "e.txt:1", "bad", "train", image=Path("e.png")),
        Adjustment("skipped-bad", "e.txt:2", "bad", "train", image=Path("e.png")),
        Adjustment("skipped-bad", "f.png", "cut", "train", image=Path("f.png")),
        Adjustment("ignored-file", "data", "2 images without xml", "train", files=(Path("g.png"), Path("h.png"))),
        Adjustment("ignored-file", "data", "1 xml", "train", files=(Path("h.xml"),)),
        Adjustment("skipped-bad", "v.txt:1", "bad", "val", image=Path("v.png")),
        Adjustment("clipped", "a.txt:1", "cut to the image", "train", image=Path("a.png")),
    ]
    found = look_over(index(adjustments, train=train, val=[record("w", [0])]))
    first, second = found.balances
    assert (first.images, first.boxes, first.ignored, first.empty_images) == (4, 4, 2, 1)
    assert first.boxes_per_class == (1, 3)
    assert first.left_out == {"malformed": 1, "unreadable-image": 1, "ignored-file": 2}
    assert (second.images, second.boxes, second.left_out) == (1, 1, {"malformed": 1})
    line = found.lines()[0]
    for said in ("4 images", "4 boxes to learn", "2 regions ignored", "1 image without labels", "4 images left out"):
        assert said in line
    values = json.loads(json.dumps(found.to_json()))
    assert values["splits"][0]["left_out"] == first.left_out
    assert [one["kind"] for one in values["findings"]] == [one.kind for one in found.told]


def test_weights_and_regions_without_a_class_are_counted_of_each_split() -> None:
    # Of five boxes one is a region of any class; of the four objects two are weighted, by .5 and .25.
    some = record("a", [0, 1, 1, NO_CLASS], num_ignored=1)
    weighted = replace(some, weights=np.array([0.5, 1, 0.25, 1], np.float32))
    (first, second) = look_over(index(train=[weighted, record("b", [1])], val=[record("w", [0])])).balances
    assert (first.boxes, first.ignored, first.weighted, first.mean_weight) == (4, 1, 2, 0.375)
    assert (second.ignored, second.weighted, second.mean_weight) == (0, 0, 1.0)
    assert "4 boxes to learn, 2 of them weighted (mean 0.38), 1 region ignored" in overview.balance_line(first)
    assert "weighted" not in overview.balance_line(second)


def test_sources_are_told_with_what_they_cover_and_their_images() -> None:
    assert look_over(index(train=[record("a", [0])])).sources == ()
    cats, rest = LabelSource("cats", (True, False), 0.5), LabelSource("rest")
    partly = {"covers": ("cat",), "not_covered": ("dog",)}
    train = [replace(record("a", [0]), source=cats), replace(record("b", [1]), source=rest)]
    found = look_over(index(train=train, val=[replace(record("c", [1]), source=rest)]))
    whole = {"covers": None, "not_covered": (), "background_weight": 1.0}
    assert found.to_json()["sources"] == [
        {"name": "cats", **partly, "background_weight": 0.5, "images": {"train": 1, "val": 0}},
        {"name": "rest", **whole, "images": {"train": 1, "val": 1}},
    ]
    first, second = (line for line in found.lines() if line.startswith("source "))
    for said in ("cats: ", "train 1", "covers cat, not dog", "background counts 0.5"):
        assert said in first
    assert "train 1, val 1; covers all classes" in second


def test_a_source_may_teach_objects_as_background() -> None:
    def warned(source: LabelSource, split: str = "train") -> bool:
        rest = replace(record("b", [0, 1]), source=LabelSource("rest"))
        splits = {"train": [rest], "val": [rest]}
        splits[split] = [*splits[split], replace(record("a", [0]), source=source)]
        return "uncovered-background" in told(index(**splits))  # type: ignore[arg-type]

    assert warned(LabelSource("cats", (True, False)))
    assert not warned(LabelSource("cats", (True, False), 0.5))
    assert not warned(LabelSource("cats"))
    assert not warned(LabelSource("cats", (True, False)), "val")
    many = tuple(number < 500 for number in range(1000))
    source = replace(record("a", [0]), source=LabelSource("half", many))
    lines = look_over(index(names=[f"class {number}" for number in range(1000)], train=[source])).lines()
    assert max(map(len, lines)) < 700


def test_a_set_of_regions_alone_is_refused_whatever_their_class() -> None:
    with pytest.raises(InputError, match="the only box of train is ignored"):
        require_boxes(index(train=[record("a", [NO_CLASS], num_ignored=1)]))


def test_no_record_is_made_however_many_images_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(healthy(tmp_path))

    def refuse(*_: object) -> Record:
        raise AssertionError("a record was made")

    monkeypatch.setattr(RecordTable, "_record", refuse)
    monkeypatch.setattr(RecordTable, "paths", refuse)
    assert look_over(dataset).told == ()


def test_what_is_said_by_training_has_the_words_and_gravity_of_an_inspection(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    write_text(
        folder / "labels/train/b.txt", "1 0.5 0.5 0 0\n1 0.95 0.5 0.3 0.4\n1 0.95 0.5 0.3 0.4\n0 0.5 0.5 0 0.1\n"
    )
    write_text(folder / "labels/train/stray.txt", "")
    inspection, found = inspected(folder), look_over(open_dataset(folder, skip_bad=True))
    assert {one.kind for one in found.told} == set(inspection.counts())
    by_kind = {one.kind: one for one in found.told}
    assert [by_kind[kind].number for kind in ("empty-box", "duplicate-box", "clipped-box")] == [2, 1, 1]
    assert by_kind["empty-box"].severity == "error"
    label = folder / "labels/train/b.txt"
    assert f"({label}:1, {label}:4)" in by_kind["empty-box"].text
    assert "stray.txt" in by_kind["unused-label"].text
    assert [one.severity for one in found.told] == sorted(
        (one.severity for one in found.told), key="error warning note".index
    )


def test_the_first_three_places_stand_for_all() -> None:
    many = [Adjustment("clipped", f"a.txt:{k}", f"box {k}", "train") for k in range(1, 6)]
    (one,) = (one for one in look_over(index(many, train=[record("a", [0, 1])])).told if one.kind == "clipped-box")
    assert one.number == 5
    assert "a.txt:1, a.txt:2, a.txt:3 and 2 more" in one.text
    assert "a.txt:4" not in one.text


def test_the_same_finding_on_the_same_file_is_told_once(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    write_text(folder / "labels/train/b.txt", "1 0.5 0.5 0 0\n1 0.95 0.5 0.3 0.4\n")
    write_text(folder / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    dataset = open_dataset(folder)
    assert len(dataset.adjustments) == 4
    found = told(dataset)
    assert (found["empty-box"], found["clipped-box"]) == (1, 1)
    counts = inspected(folder).counts()
    assert (counts["empty-box"], counts["clipped-box"]) == (1, 1)


def test_what_stands_for_many_labels_is_told_by_its_own_words() -> None:
    counted = [
        Adjustment("shape-as-box", "a.txt:1", "12 polygons, read as the boxes around them", "train"),
        Adjustment("shape-as-box", "b.txt:1", "3 poses, read as their boxes", "train"),
        Adjustment("no-labels", "data.yaml:1", "none of the 2 images has a label file; looked for x.txt", "val"),
        Adjustment("no-labels", "data.yaml:2", "none of the 2 images has a label file; looked for x.txt", "test"),
    ]
    texts = [one.text for one in look_over(index(counted, train=[record("a", [0, 1])])).told]
    assert [text for text in texts if "polygons" in text] == ["12 polygons, read as the boxes around them (a.txt:1)"]
    assert any(text.startswith("3 poses") for text in texts)
    assert [text for text in texts if "looked for" in text] == [f"{counted[2].detail} (data.yaml:1, data.yaml:2)"]
    more = [replace(counted[0], detail=f"{k} polygons in {k}") for k in range(9)]
    texts = [one.text for one in look_over(index(more, train=[record("a", [0, 1])])).told]
    assert len([text for text in texts if "polygons" in text]) == 3
    assert any("6 more" in text for text in texts)


def test_images_without_a_box_that_are_left_out_are_told_by_the_reason() -> None:
    def left_out(name: str, reason: str) -> Adjustment:
        return Adjustment("ignored-file", "all.json", f"{name} {reason}", "train", image=Path("x") / name)

    told_of = [left_out("a.png", "has points, but no box"), left_out("b.png", "has points, but no box")]
    told_of.append(left_out("c.png", "was skipped by its annotator"))
    found = look_over(index(told_of, train=[record("t", [0, 1])]))
    texts = [one.text for one in found.told if one.kind == "ignored-file"]
    assert texts == [
        "2 images left out: has points, but no box (all.json)",
        "1 image left out: was skipped by its annotator (all.json)",
    ]
    assert found.balances[0].left_out == {"ignored-file": 3}


def test_every_heading_agrees_with_its_number() -> None:
    for kind in KINDS.values():
        assert "|" not in kind.words(1) + kind.words(2)
    assert KINDS["clipped-box"].counted(1) == "1 box that reaches outside its image"
    assert KINDS["clipped-box"].counted(2) == "2 boxes that reach outside their image"


def test_most_images_without_labels_are_a_warning_unless_they_are_meant() -> None:
    labelled, empty = record("a", [0, 1]), [record(name) for name in "bcd"]
    assert "mostly-background" not in told(index(train=[labelled, empty[0]]))  # half of them
    assert "mostly-background" in told(index(train=[labelled, *empty]))
    assert "mostly-background" not in told(index(train=[labelled, *empty]), background_ok=True)
    assert "mostly-background" not in told(index(train=[labelled, record("w", [0])], val=empty))
    assert "3 of 4" in next(one.text for one in look_over(index(train=[labelled, *empty])).told)


def test_classes_that_cannot_be_learned_are_counted_and_the_first_named() -> None:
    names = [f"class {k}" for k in range(30)]
    dataset = index(names=names, train=[record("a", [0])], val=[record("v", [1]), record("w", [0])])
    (one,) = (one for one in look_over(dataset).told if one.kind == "class-without-training")
    assert one.number == 29
    assert "'class 1': only 1 in val" in one.text
    assert "'class 3': no box in any split" in one.text
    assert "class 4" not in one.text


# Nothing to learn from.


def test_a_split_of_crowds_alone_is_refused_with_the_first_and_the_remedy(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(2)]
    boxes = [
        {"id": 7 + n, "image_id": n % 2, "category_id": 1, "bbox": [4, 6, 10, 20 + n], "iscrowd": 1} for n in range(3)
    ]
    for n in range(2):
        write_image(tmp_path / f"{n}.png")
    path = coco_json(tmp_path / "train.json", boxes, images)
    with pytest.raises(InputError, match=r"all 3 boxes of train are ignored as crowds.*train\.json: annotation id 7"):
        require_boxes(open_dataset(tmp_path))
    boxes[1]["iscrowd"] = 0
    coco_json(path, boxes, images)
    require_boxes(open_dataset(tmp_path))


def test_where_no_label_was_found_the_places_looked_at_are_named(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    (folder / "labels").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=r"none of the 2 images has a label file.*labels/train/a\.txt"):
        require_boxes(open_dataset(folder))


@pytest.mark.parametrize(
    ("rows", "said"),
    [("", "none of its 1 images has a label"), ("0 0.5 0.5 0 0\n", "1 box without area, dropped")],
)
def test_labels_that_leave_nothing_are_told(rows: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        require_boxes(open_dataset(yolo_folder(tmp_path, {"train": {"a": rows}})))


def test_no_training_image_is_told_with_the_splits_there_are() -> None:
    with pytest.raises(InputError, match=r"no training images.*val"):
        require_boxes(index(train=[], val=[record("v", [0])]))


# Images in two splits.


def shared(dataset: DatasetIndex) -> dict[str, list[str]]:
    """Of each split the names of the images that an earlier one has, too."""
    rows, _ = shared_images(dataset.splits)
    return {name: [path.name for path in dataset.splits[name].paths_at(rows[name])] for name in rows if rows[name]}


def test_the_same_path_in_two_splits_is_found_through_links_and_dots(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "data")
    (folder / "link").symlink_to(folder / "images/train")
    write_text(folder / "val.txt", "images/val/../train/a.png\nimages/val/c.png\n")
    write_text(folder / "test.txt", "link/b.png\n")
    write_text(folder / "data.yaml", "train: images/train\nval: val.txt\ntest: test.txt\nnames: [cat, dog]\n")
    dataset = open_dataset(folder)
    assert shared(dataset) == {"val": ["a.png"], "test": ["b.png"]}
    train, val, test = (list(records.path_keys()) for records in dataset.splits.values())
    assert {*val, *test} & {*train} == {*train}  # whatever the files hold
    (one,) = (one for one in look_over(dataset).told if one.kind == "shared-image")
    assert (one.number, one.severity) == (2, "error")
    assert "a.png" in one.text


def test_the_same_bytes_under_another_name_are_found_and_files_of_one_size_are_not(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    pictures = {split: sorted((folder / "images" / split).iterdir()) for split in ("train", "val")}
    assert shared(open_dataset(folder)) == {}
    content = pictures["train"][0].read_bytes()
    pictures["val"][1].write_bytes(content)
    assert shared(open_dataset(folder)) == {"val": ["d.png"]}
    pictures["val"][1].write_bytes(content[:-1] + b"x")  # the same size and middle
    assert shared(open_dataset(folder)) == {}
    pictures["val"][1].write_bytes(content + b"x")  # another size; decoders pass over the end
    assert shared(open_dataset(folder)) == {}
    pictures["train"][1].write_bytes(content)  # twice in one split
    assert shared(open_dataset(folder)) == {}


def test_what_is_compared_is_bounded_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {f"{k}": "0 0.5 0.5 0.2 0.2\n" for k in range(6)}
    folder = yolo_folder(tmp_path, {"train": rows, "val": {f"v{k}": text for k, text in rows.items()}})
    for k in range(6):
        (folder / f"images/val/v{k}.png").write_bytes((folder / f"images/train/{k}.png").read_bytes())
    dataset = open_dataset(folder)
    assert len(shared(dataset)["val"]) == 6
    monkeypatch.setattr(overview, "_MOST_FILES", 3)  # every second one
    assert shared(dataset) == {"val": ["v0.png", "v2.png", "v4.png"]}
    assert "up to 3 files" in next(one.text for one in look_over(dataset).told if one.kind == "shared-image")
    monkeypatch.setattr(overview, "_MOST_FILES", 100)
    monkeypatch.setattr(overview, "_MOST_BYTES", 5 * (folder / "images/train/0.png").stat().st_size)
    assert 1 <= len(shared(dataset)["val"]) <= 3


def test_a_file_that_is_gone_is_left_to_the_decoder(tmp_path: Path) -> None:
    dataset = open_dataset(healthy(tmp_path))
    (tmp_path / "images/val/c.png").unlink()
    assert shared(dataset) == {}


def test_shards_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "data")
    (folder / "images/val/d.png").write_bytes((folder / "images/train/b.png").read_bytes())
    write_dataset(open_dataset(folder), tmp_path / "shards", "shards")
    found = look_over(open_dataset(tmp_path / "shards"))
    assert [(one.kind, one.number) for one in found.told] == [("shared-image", 1)]
    assert [(one.images, one.boxes) for one in found.balances] == [(2, 3), (2, 3)]


def test_images_that_no_split_names_are_told_by_folder(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    write_text(folder / "train.txt", "images/train/a.png\n")
    write_text(folder / "data.yaml", "train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    found = next(one for one in look_over(open_dataset(folder)).told if one.kind == "unlisted-image")
    assert "b.png" in found.text
    assert str(folder / "images/train") in found.text
    assert inspected(folder).counts()["unlisted-image"] == 1


def with_regions(*boxes: list[float]) -> DatasetIndex:
    """An image of 64 x 48 with a box to learn and these ignored regions for any class."""
    rows = np.array([[0, 0, 4, 4], *boxes], np.float64)
    ids = np.array([0] + [NO_CLASS] * len(boxes))
    one = Record(Path("a.png"), 64, 48, rows, ids, ids == NO_CLASS, np.ones(len(rows)), ("a.txt",) * len(rows))
    return index(train=[one], names=["cat"])


@pytest.mark.parametrize(
    ("boxes", "share"),
    [
        ([[0, 0, 64, 24]], 0.5),
        ([[0, 0, 64, 25]], 25 / 48),
        ([[0, 0, 64, 24], [0, 0, 64, 24]], 0.5),  # together the area of the image, but of one half
        ([[0, 0, 40, 40], [20, 10, 60, 48]], (1600 + 40 * 38 - 20 * 30) / (64 * 48)),
        ([[0, 0, 40, 40], [20, 10, 60, 48], [1, 1, 9, 9], [2, 2, 30, 30]], (1600 + 40 * 38 - 20 * 30) / (64 * 48)),
    ],
)
def test_regions_over_more_than_half_of_the_area_are_told(boxes: list[list[float]], share: float) -> None:
    dataset = with_regions(*boxes)
    assert overview.ignored_share(dataset.splits["train"]) == pytest.approx(share)
    assert told(dataset).get("mostly-ignored", 0) == (share > 0.5)


def test_the_area_of_regions_is_that_of_their_pixels() -> None:
    """Whole corners, so that every pixel is in a region or not: counting them is an oracle."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        corners = np.sort(rng.integers(0, 20, (rng.integers(1, 8), 2, 2)), axis=1).reshape(-1, 4)
        canvas = np.zeros((20, 20), bool)
        for x1, y1, x2, y2 in corners.tolist():
            canvas[y1:y2, x1:x2] = True
        assert overview._area_of_union(corners.astype(float)) == canvas.sum()


def test_weights_that_are_all_0_leave_nothing_to_learn() -> None:
    weightless = replace(record("a", [0, 1]), weights=np.zeros(2, np.float32))
    dataset = index(train=[weightless])
    assert told(dataset)["no-training-boxes"] == 1
    with pytest.raises(InputError, match=r"weight 0 \(the first: a.txt:1\)"):
        require_boxes(dataset)
    require_boxes(index(train=[weightless, record("b", [0])]))


def test_that_all_classes_with_boxes_were_ignored_is_said(tmp_path: Path) -> None:
    yolo_folder(tmp_path, {"train": {"a": "0 0.5 0.5 0.2 0.2\n"}})
    with pytest.raises(InputError, match=r"of ignored classes \(cat\).*Leave one of these"):
        require_boxes(open_dataset(tmp_path, ignore_classes=["cat"]))


def test_an_inspection_stands_regions_and_weights(tmp_path: Path) -> None:
    rows = {"a": "0 0.5 0.5 0.2 0.2 0.5\n1 0.5 0.2 0.1 0.1\n7 0.2 0.2 0.1 0.1\n", "b": "0 0.5 0.5 0.3 0.4\n"}
    folder = yolo_folder(tmp_path / "data", {"train": rows})
    with (folder / "data.yaml").open("a") as file:
        file.write("scores: as-weights\nignore_classes: [dog]\n")
    inspection = inspected(folder)
    (balance,) = inspection.balances
    assert (balance.boxes, balance.ignored, balance.weighted, balance.boxes_per_class) == (2, 2, 1, (2,))
    counts = inspection.counts()
    assert (counts["ignored-region"], counts["ignored-box"]) == (1, 2)
    text = summary_text(inspection)
    assert re.search(r"ignored regions +2\n", text)
    assert re.search(r"boxes of weight under 1 +1\n", text)
    assert "a.txt:3: the class must be a whole number 0..1 ('7')" in text
    fixed, changes = corrected_dataset(inspection)
    write_dataset(fixed, tmp_path / "fixed", "yolo")
    ours, theirs = (open_dataset(tmp_path / "fixed").splits["train"][k] for k in (0, 1))
    assert [what for what, _ in changes] == ["ignored"]
    assert (ours.class_ids.tolist(), ours.weights.tolist()) == ([0, NO_CLASS, NO_CLASS], [0.5, 1.0, 1.0])
    assert theirs.class_ids.tolist() == [0]
