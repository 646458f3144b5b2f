"""The fingerprint of a dataset: what changes it, and what does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anchorite.data import DatasetIndex, Record, dataset_fingerprint, open_dataset
from tests.data.format_samples import write_text, yolo_dataset

ROWS: dict[str, str | bytes] = {"a": "0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.125 0.125\n", "b": ""}


def record(name: str = "a.png", **changed: object) -> Record:
    whole = Record(
        path=Path("data/images") / name,
        width=64,
        height=48,
        boxes_xyxy=np.array([[0.0, 0, 10, 20], [5, 6, 7, 8]]),
        class_ids=np.array([0, 1]),
        ignored=np.array([False, True]),
        areas=np.array([200.0, 4]),
        origins=("a.txt:1", "a.txt:2"),
    )
    return replace(whole, **changed)  # type: ignore[arg-type]


def index(*records: Record, names: tuple[str, ...] = ("cat", "dog"), split: str = "train") -> DatasetIndex:
    return DatasetIndex(Path("data"), "yolo", names, {split: records})


@pytest.mark.parametrize(
    "changed",
    [
        index(record(boxes_xyxy=np.array([[0.0, 0, 10, 20], [5, 6, 7, 8.000001]])), record("b.png")),
        index(record(class_ids=np.array([0, 0])), record("b.png")),
        index(record(ignored=np.array([False, False])), record("b.png")),
        index(record(width=65), record("b.png")),
        index(record(height=49), record("b.png")),
        index(record("c.png"), record("b.png")),
        index(record("sub/a.png"), record("b.png")),
        index(record("b.png"), record("a.png")),
        index(record()),
        index(record(), record("b.png"), split="val"),
        index(record(), record("b.png"), names=("cat", "dog", "cow")),
        index(record(), record("b.png"), names=("dog", "cat")),
        index(record(), record("b.png"), names=("catdog", "")),
        index(record(), record("b.png"), names=("cat ", "dog")),
    ],
)
def test_every_change_of_substance_is_noticed(changed: DatasetIndex) -> None:
    assert dataset_fingerprint(changed) != dataset_fingerprint(index(record(), record("b.png")))


def test_rows_that_run_into_each_other_are_told_apart() -> None:
    """The same numbers in another image: lengths are part of what is hashed."""
    one, none = record(), record("b.png", boxes_xyxy=np.zeros((0, 4)), class_ids=np.zeros(0, np.int64))
    none = replace(none, ignored=np.zeros(0, bool), areas=np.zeros(0), origins=(), weights=np.zeros(0, np.float32))
    moved = (replace(none, path=one.path), replace(one, path=none.path))
    assert dataset_fingerprint(index(one, none)) != dataset_fingerprint(index(*moved))


def test_what_is_no_change_is_none() -> None:
    plain = dataset_fingerprint(index(record()))
    assert dataset_fingerprint(index(record(origins=("b", "c"), areas=np.array([1.0, 1])))) == plain
    assert dataset_fingerprint(index(record(boxes_xyxy=np.array([[-0.0, 0, 10, 20], [5, 6, 7, 8]])))) == plain
    assert dataset_fingerprint(index(record(path=Path("elsewhere/images/a.png")))) == plain
    assert dataset_fingerprint(index(record(class_ids=np.array([0, 1], np.int32)))) == plain


def test_a_folder_that_moves_or_is_named_by_its_yaml_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = yolo_dataset(tmp_path / "here", ROWS)
    first = dataset_fingerprint(open_dataset(folder))
    assert dataset_fingerprint(open_dataset(folder / "data.yaml")) == first
    monkeypatch.chdir(folder)
    assert dataset_fingerprint(open_dataset(".")) == first
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "there")
    assert dataset_fingerprint(open_dataset(tmp_path / "there")) == first


def test_an_edit_of_the_same_length_with_its_time_restored_is_noticed(tmp_path: Path) -> None:
    folder = yolo_dataset(tmp_path, ROWS)
    label = folder / "labels/train/a.txt"
    before, status = dataset_fingerprint(open_dataset(folder)), label.stat()
    write_text(label, str(ROWS["a"]).replace("0.125", "0.126"))
    os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (label.stat().st_size, label.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert dataset_fingerprint(open_dataset(folder)) != before


def test_a_split_has_its_own() -> None:
    both = DatasetIndex(Path("data"), "yolo", ("cat",), {"train": (record(),), "val": (record("b.png"),), "test": ()})
    prints = {split: records.fingerprint() for split, records in both.splits.items()}
    assert list(prints) == ["train", "val", "test"]
    assert len(set(prints.values())) == 3
    assert prints["val"] == index(record("b.png")).splits["train"].fingerprint()


def test_a_name_that_is_no_text_is_no_obstacle() -> None:
    strange = record(path=Path(os.fsdecode(b"data/images/\xff.png")))
    assert dataset_fingerprint(index(strange)) != dataset_fingerprint(index(record()))
