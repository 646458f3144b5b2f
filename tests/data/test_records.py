"""A table of columns holds exactly the records that were put into it, whatever they are."""

from __future__ import annotations

import json
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.data import Record, open_dataset
from anchorite.data.dataset import RecordTable, as_split
from anchorite.data.formats import common
from tests.data.format_samples import coco_json, write_image
from tests.shared import shared_path

HEADS = ["a/b.txt:", "c.json: annotation id ", "c.json: annotations[", "", "0", "caf\u00e9 7:", "\udcff:", "[", "x]"]
ORIGINS = st.builds(
    "{}{}{}".format, st.sampled_from(HEADS), st.integers(-3, 10**20) | st.just("007"), st.sampled_from(["", "]", "x"])
) | st.text(max_size=5)
NAMES = st.sampled_from(["a.jpg", "b c.png", "\udce9.png", "\u4e2d.jpg", "7"])
FOLDERS = st.sampled_from(["/data/images", ".", "../x", "images/train", "/"])


@st.composite
def some_records(draw: st.DrawFn) -> Record:
    origins = tuple(draw(st.lists(ORIGINS, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    boxes = rng.normal(size=(len(origins), 4))
    ignored, areas = rng.random(len(origins)) < 0.3, rng.random(len(origins))
    class_ids = rng.integers(0, 5, len(origins))
    path = Path(draw(FOLDERS)) / draw(NAMES)
    return Record(path, draw(st.integers(1, 99)), draw(st.integers(1, 99)), boxes, class_ids, ignored, areas, origins)


def table_of(records: list[Record]) -> RecordTable:
    return as_split(records).table()


def bits(record: Record) -> tuple[Any, ...]:
    arrays = (record.boxes_xyxy, record.class_ids, record.ignored, record.areas)
    facts = [(array.dtype, array.shape, array.tobytes()) for array in arrays]
    return str(record.path), record.path, record.width, record.height, *facts, tuple(record.origins)


@given(records=st.lists(some_records(), max_size=6))
def test_a_table_holds_what_was_put_into_it(records: list[Record]) -> None:
    table = table_of(records)
    assert len(table) == len(records)
    assert list(map(bits, table)) == list(map(bits, records))
    assert [bits(table[index]) for index in range(-len(records), 0)] == list(map(bits, records))
    assert list(table.paths()) == [record.path for record in records]
    assert table == tuple(records)
    assert table != tuple(records[:-1]) or not records
    copy = pickle.loads(pickle.dumps(table))
    assert list(map(bits, copy)) == list(map(bits, records))


@given(records=st.lists(some_records(), max_size=6), data=st.data())
def test_slices_and_choices_are_those_of_a_tuple(records: list[Record], data: st.DataObject) -> None:
    bounds = st.none() | st.integers(-7, 7)
    cut = slice(data.draw(bounds), data.draw(bounds), data.draw(st.sampled_from([None, 1, 2, -1])))
    table = table_of(records)
    for part, expected in (
        (table[cut], records[cut]),
        (table[cut][::2], records[cut][::2]),
        (table[cut].select(list(range(len(records[cut])))[::-1]), records[cut][::-1]),
    ):
        assert list(map(bits, part)) == list(map(bits, expected))
        for name in ("xyxy", "class_id", "ignored", "area"):
            assert part.boxes[name].tobytes() == table_of(expected).boxes[name].tobytes()


def test_rows_are_the_records_labels_behind_one_another() -> None:
    records = open_dataset(shared_path("datasets/cards")).splits["train"]
    table = records.table()
    assert np.array_equal(table.boxes["xyxy"], np.concatenate([record.boxes_xyxy for record in records]))
    assert np.array_equal(table.images["num_boxes"], [len(record.class_ids) for record in records])
    assert np.array_equal(table.images["width"], [record.width for record in records])
    assert np.shares_memory(records[0].boxes_xyxy, table.boxes)


def test_different_records_make_different_tables() -> None:
    record = Record(Path("a.png"), 8, 8, np.zeros((1, 4)), np.zeros(1, int), np.zeros(1, bool), np.zeros(1), ("a:1",))
    others = [
        Record(Path("b.png"), *[getattr(record, name) for name in Record.__slots__[1:]]),
        *(
            Record(*[getattr(record, name) if name != changed else value for name in Record.__slots__])
            for changed, value in (
                ("width", 9),
                ("height", 9),
                ("boxes_xyxy", np.ones((1, 4))),
                ("class_ids", np.ones(1, int)),
                ("ignored", np.ones(1, bool)),
                ("areas", np.ones(1)),
                ("origins", ("a:2",)),
            )
        ),
    ]
    for other in others:
        assert table_of([record]) != table_of([other])
        assert record != other


def test_what_is_asked_of_a_split_is_what_its_records_say() -> None:
    split = open_dataset(shared_path("datasets/cards")).splits["train"]
    num_classes = 1 + max(int(record.class_ids.max(initial=0)) for record in split)
    expected = np.bincount(np.concatenate([record.class_ids for record in split]), minlength=num_classes)
    assert split.class_counts(num_classes, with_ignored=True).tolist() == expected.tolist()
    assert split.num_boxes() == expected.sum()
    assert split.num_background() == sum(not len(record.class_ids) for record in split)
    record, sides = split[0], split.box_sides(320)
    first = (record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]) * 320 / max(record.width, record.height)
    np.testing.assert_allclose(sides[: len(first)], first)
    gone = {split[0].path, split[2].path}
    assert split.without(gone) == [record for record in split if record.path not in gone]


def test_nothing_can_be_written_into_a_table() -> None:
    record = Record(Path("a.png"), 8, 8, np.zeros((1, 4)), np.zeros(1, int), np.zeros(1, bool), np.zeros(1), ("a:1",))
    with pytest.raises(ValueError, match="read-only"):
        table_of([record])[0].boxes_xyxy[0, 0] = 1.0


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_images_looked_at_together_get_what_each_would_get_alone(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Boxes on and over the edges, empty, repeated, crowds, bad ones, and images without a claimed size."""
    folder = tmp_path_factory.getbasetemp() / "together"
    rng = random.Random(seed)
    for number in range(4):
        if not (folder / "images" / f"{number}.png").exists():
            write_image(folder / "images" / f"{number}.png")
    sides = [-0.0, 0.0, 0.05, -0.05, 1.5, 30, 64, 64.05, 48, 47.99, 70, -3]
    boxes: list[list[Any]] = [
        [*(rng.choice(sides) for _ in range(2)), *(abs(rng.choice(sides)) for _ in range(2))] for _ in range(8)
    ]
    boxes += [[1, 2, 3, "4"], [1, 2, -3, 4]]
    annotations: list[Any] = [
        {
            "id": rng.choice([index, index, index, "word", None, -1, 10**30]),
            "image_id": rng.choice([0, 1, 2, 3, 3, 9]),
            "category_id": rng.choice([1, 1, 2, 2, 7]),
            "bbox": rng.choice(boxes),
            "iscrowd": rng.choice([0, 0, 0, 1, 2]),
            **rng.choice([{}, {"area": 3.5}, {"area": None}, {"area": 7}]),
        }
        for index in range(rng.randrange(30))
    ]
    annotations += rng.choice([[], [3]])
    images: list[Any] = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 48} for number in range(4)]
    images[rng.randrange(4)].pop("width")
    path = coco_json(folder / "train.json", annotations, images)
    together = open_dataset(path, skip_bad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "_may_repeat", lambda boxes, _: np.ones(len(boxes), bool))  # each box by itself
        alone = open_dataset(path, skip_bad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "_BLOCK", 2)
        blocks = open_dataset(path, skip_bad=True)
    for other in (alone, blocks):
        assert list(map(bits, together.splits["train"])) == list(map(bits, other.splits["train"]))
        assert together.adjustments == other.adjustments


def test_a_json_is_read_in_a_part_of_what_its_objects_take(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    boxes = [[n % 60, n % 20, 3, 1 + n / 1000] for n in range(10_000)]
    outline = [[n / 7 for n in range(40)]]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": outline} for n, box in enumerate(boxes)
    ]
    path = coco_json(tmp_path / "train.json", annotations)
    tracemalloc.start()
    records = open_dataset(path).splits["train"]
    _, read = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    content = json.loads(path.read_text())
    _, whole = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert records.num_boxes() == len(content["annotations"])
    assert read < 1.7 * path.stat().st_size
    assert whole > 2 * read
