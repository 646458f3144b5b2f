"""A kept index is what a fresh reading gives, is given up for any change, and is never believed when it is damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anchorite.data import DatasetIndex, formats, index_cache, open_dataset
from anchorite.data.dataset import BOX_ROW, IMAGE_ROW, RecordTable
from anchorite.data.index_cache import VARIABLE
from anchorite.data.store import ImageStore
from anchorite.errors import InputError
from tests.data.format_samples import coco_json, voc_object, voc_xml, write_image, write_text, yolo_dataset
from tests.data.test_formats_darknet import cvat
from tests.processes import ForkedProcess

ROWS = {"a": "0 0.5 0.5 0.2 0.2\n1 0.4 0.4 0.9 0.9\n", "b": "", "c": "1 0.5 0.5 0 0\n1 0.25 0.25 0.5 0.5\n"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, for datasets of any size, of files written just now."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    monkeypatch.setattr(index_cache, "_SETTLED_NS", 0)
    return folder


def write_yolo(root: Path) -> Path:
    return yolo_dataset(root, ROWS)


def write_coco(root: Path) -> Path:
    for name in "abc":
        write_image(root / "images" / "train" / f"{name}.png")
    images = [{"id": n, "file_name": f"{name}.png", "width": 64, "height": 48} for n, name in enumerate("abc")]
    boxes = [[1, 2, 30, 20], [40, 30, 50, 50], [5, 5, 0, 4], [1, 2, 30, 20]] * 2
    annotations = [{"id": n, "image_id": n % 2, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    coco_json(root / "annotations" / "instances_train.json", annotations, images)
    return root


def write_voc(root: Path) -> Path:
    for name in "abc":
        write_image(root / "train" / f"{name}.png")
        text = voc_xml(voc_object("cat", 1, 2, 30, 99), filename=f"{name}.png")
        write_text(root / "train" / f"{name}.xml", text)
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "yolo": write_yolo,
    "darknet": cvat,
    "coco": write_coco,
    "voc": write_voc,
}


def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DatasetIndex, bool]:
    """The dataset, and whether it was read rather than taken from the cache."""
    with monkeypatch.context() as patch:
        reads: list[int] = []
        real = formats.ReadingLog
        patch.setattr(formats, "ReadingLog", lambda *args: (reads.append(1), real(*args))[1])
        return open_dataset(root), bool(reads)


def assert_equal(one: DatasetIndex, other: DatasetIndex) -> None:
    for name in (
        "root",
        "format",
        "class_names",
        "adjustments",
        "allow_outside",
        "skip_bad",
        "ignored_classes",
        "scores",
    ):
        assert getattr(one, name) == getattr(other, name), name
    assert list(one.splits) == list(other.splits)
    assert all(one.splits[split] == other.splits[split] for split in one.splits)


@pytest.mark.parametrize("format", WRITERS)
def test_the_second_opening_reads_no_label_and_gives_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    root = WRITERS[format](tmp_path / "data")
    monkeypatch.setenv(VARIABLE, "off")
    plain = open_dataset(root)
    assert not cache.exists()
    monkeypatch.setenv(VARIABLE, str(cache))
    first, was_read = opened(root, monkeypatch)
    second, was_read_again = opened(root, monkeypatch)
    assert (was_read, was_read_again) == (True, False)
    assert plain.adjustments, "nothing to compare"
    for index in (first, second):
        assert_equal(index, plain)
        for table in index.splits.values():
            assert isinstance(table, RecordTable)
            assert table.files
            assert not table.boxes.flags.writeable
    assert not [path for path in root.rglob("*") if "index" in path.name]


def edit_in_secret(path: Path, old: str, new: str) -> None:
    """Change a file's content, but neither its size nor its time of modification."""
    status, text = path.stat(), path.read_text()
    assert old in text
    assert len(old) == len(new)
    time.sleep(0.02)
    path.write_text(text.replace(old, new, 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a label": ("yolo", lambda root: edit_in_secret(root / "labels/train/a.txt", "0 0.5", "1 0.5")),
    "a class name": ("yolo", lambda root: edit_in_secret(root / "data.yaml", "dog", "cow")),
    "a class name in a list": ("darknet", lambda root: edit_in_secret(root / "obj.names", "dog", "cow")),
    "the key of a split": ("darknet", lambda root: edit_in_secret(root / "obj.data", "valid =", "other =")),
    "a list of images": ("darknet", lambda root: edit_in_secret(root / "train.txt", "_data/b", "_data/z")),
    "a data.yaml": ("darknet", lambda root: write_text(root / "data.yaml", "train: train.txt\nnames: [x]\n")),
    "an annotation": ("coco", lambda root: edit_in_secret(root / "annotations/instances_train.json", "30", "31")),
    "an xml": ("voc", lambda root: edit_in_secret(root / "train/b.xml", "cat", "cow")),
    "a new image": ("yolo", lambda root: write_image(root / "images/train/d.png")),
    "a new label": ("yolo", lambda root: write_text(root / "labels/train/d.txt", "")),
    "an image gone": ("yolo", lambda root: (root / "images/train/a.png").unlink()),
    "a label gone": ("yolo", lambda root: (root / "labels/train/a.txt").unlink()),
    "an image of another size": ("yolo", lambda root: write_image(root / "images/train/a.png", 32, 24)),
    "another format": ("coco", lambda root: write_text(root / "data.yaml", "train: images/train\nnames: [x]\n")),
    "labels beside images no more": ("yolo", lambda root: (root / "labels").rename(root / "elsewhere")),
    "a new list of classes": ("voc", lambda root: write_text(root / "classes.txt", "dog\ncat\n")),
    "a new xml": ("voc", lambda root: shutil.copy(root / "train/a.xml", root / "train/d.xml")),
    "an image moved nearer": ("coco", lambda root: shutil.copytree(root / "images/train", root / "annotations/train")),
    "a list of classes above": ("voc", lambda root: write_text(root.parent / "classes.txt", "dog\ncat\n")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    format, make = CHANGES[change]
    root = WRITERS[format](tmp_path / "home" / "data")
    before = open_dataset(root)
    assert opened(root, monkeypatch)[1] is False
    make(root)
    try:
        after, was_read = opened(root, monkeypatch)
    except InputError:
        return  # what is there now is refused
    assert was_read
    monkeypatch.setenv(VARIABLE, "off")
    fresh = open_dataset(root)
    assert_equal(after, fresh)
    assert change not in ("a label", "a class name", "a class name in a list", "an annotation", "an xml") or (
        fresh.class_names != before.class_names or fresh.splits["train"] != before.splits["train"]
    ), "the change changes nothing"


def test_every_way_of_opening_has_an_index_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_yolo(tmp_path / "data")
    write_text(root / "labels" / "train" / "b.txt", "9 0.5 0.5 0.1 0.1\n")
    skipped = open_dataset(root, skip_bad=True)
    assert len(skipped.adjustments) > 1
    with pytest.raises(InputError, match="the class must be"):
        open_dataset(root)
    assert_equal(open_dataset(root, skip_bad=True), skipped)
    asked = {"ignore_classes": ["cat"], "scores": "as-weights", "skip_bad": True}
    ignoring = [open_dataset(root, **asked) for _ in range(2)]  # type: ignore[arg-type]
    assert [one.class_names for one in (*ignoring, open_dataset(root, skip_bad=True))] == [("dog",)] * 2 + [
        skipped.class_names
    ]
    assert_equal(*ignoring)
    monkeypatch.chdir(tmp_path)
    assert open_dataset("data", skip_bad=True).splits["train"][0].path == Path("data/images/train/a.png")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "pickle", "zeros", "folder", "longer"])
def test_a_damaged_cache_is_read_past_and_made_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    root = write_yolo(tmp_path / "data")
    first = open_dataset(root)
    (file,) = cache.glob("index-*")
    whole = file.read_bytes()
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(np, "load", lambda *_: pytest.fail("loaded"))
    rng = np.random.default_rng(0)
    places = {"cut": rng.integers(0, len(whole), 30), "flipped": rng.integers(0, len(whole), 60)}.get(damage, [0])
    for place in map(int, places):
        file.unlink(missing_ok=True) if file.is_file() else None
        content = {
            "cut": whole[:place],
            "flipped": whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :],
            "pickle": pickle.dumps(print).ljust(len(whole), b"\0"),
            "zeros": bytes(len(whole)),
            "longer": whole + b"\0",
        }.get(damage, b"")
        if damage == "folder":
            file.mkdir()
        else:
            file.write_bytes(content)
        index, was_read = opened(root, monkeypatch)
        padding = damage == "flipped" and not was_read  # between the arrays; nothing is read from there
        assert was_read or padding
        assert_equal(index, first)
        if damage != "folder":
            assert file.read_bytes() == whole or padding


def test_an_index_that_points_outside_its_arrays_is_not_taken(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with the right sums, as nobody writes by mistake."""
    root = write_yolo(tmp_path / "data")
    open_dataset(root)
    (file,) = cache.glob("index-*")
    found = index_cache.load_arrays(file)
    assert found is not None
    rows = {"0.boxes": BOX_ROW, "0.images": IMAGE_ROW}
    wrong = [("0.boxes", "class_id", 2), ("0.boxes", "class_id", -1), ("0.boxes", "head_id", 9)]
    for name, column, value in (*wrong, ("0.images", "folder_id", 1), ("0.images", "num_boxes", 9)):
        arrays = {key: array.copy() for key, array in found.items()}
        arrays[name].view(rows[name])[column][-1] = value
        index_cache.save_arrays(file, arrays)
        assert opened(root, monkeypatch)[1], name
    arrays = {key: array for key, array in found.items() if key != "0.boxes"}
    index_cache.save_arrays(file, arrays)
    assert opened(root, monkeypatch)[1]


def test_small_datasets_and_files_of_this_moment_are_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_yolo(tmp_path / "data")
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 4)
    open_dataset(root)
    assert not cache.exists()
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 3)
    monkeypatch.setattr(index_cache, "_SETTLED_NS", 60_000_000_000)
    open_dataset(root)
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_to_is_done_without(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_yolo(tmp_path / "data")
    write_text(cache, "a file where the folder should be")
    assert len(open_dataset(root).splits["train"]) == 3
    monkeypatch.setenv(VARIABLE, "/proc/nowhere")  # read-only even for root
    assert len(open_dataset(root).splits["train"]) == 3
    monkeypatch.setenv(VARIABLE, str(root / "cache"))  # in the dataset
    assert len(open_dataset(root).splits["train"]) == 3
    assert not (root / "cache").exists()


def test_an_image_that_turns_out_to_have_changed_ends_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_cache, "_MOST_WATCHED_IMAGES", 1)  # a.png alone
    root = write_yolo(tmp_path / "data")
    open_dataset(root)
    with (root / "images/train/c.png").open("r+b") as file:  # in place: its folder does not change
        file.write(write_image(tmp_path / "other.png", 32, 24).read_bytes())
    index, was_read = opened(root, monkeypatch)
    assert not was_read
    with pytest.raises(InputError, match="32x24 pixels but was 64x48"):
        ImageStore(index.splits["train"], 64, "ram").build()
    again, was_read = opened(root, monkeypatch)
    assert was_read
    assert again.splits["train"][2].width == 32
    ImageStore(again.splits["train"], 64, "ram").build()


def open_and_forget(data: str, cache: str) -> None:
    """Open a dataset eight times, each time without an index kept before."""
    index_cache.LEAST_IMAGES, index_cache._SETTLED_NS = 1, 0
    for _ in range(8):
        for file in Path(cache).glob("index-*"):
            file.unlink(missing_ok=True)
        index = open_dataset(data)
        assert [len(record.class_ids) for record in index.splits["train"]] == [1, 2, 0], index


def test_two_processes_may_keep_the_same_index_at_once(tmp_path: Path, cache: Path) -> None:
    root = write_coco(tmp_path / "data")
    time.sleep(0.05)
    function = "tests.data.test_index_cache:open_and_forget"
    running = [ForkedProcess(function, str(root), str(cache)) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert not list(cache.glob(".index-*"))


def test_only_the_last_used_are_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "_MOST_FILES", 2)
    roots = [write_yolo(tmp_path / name) for name in ("one", "two", "three")]
    for root in roots:
        open_dataset(root)
        time.sleep(0.02)
    assert len(list(cache.glob("*"))) == 2
    assert [opened(root, monkeypatch)[1] for root in reversed(roots)] == [False, False, True]


def test_names_that_are_no_text_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = yolo_dataset(tmp_path / "data", {"\udce9t\u00e9": ROWS["a"]}, names=json.dumps(["caf\u00e9", "b"]))
    first = open_dataset(root)
    second, was_read = opened(root, monkeypatch)
    assert not was_read
    assert_equal(second, first)
