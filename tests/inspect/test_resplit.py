"""New splits: shares of every class, like images together, nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.data import open_dataset
from anchorite.data.dataset import NO_CLASS
from anchorite.errors import InputError
from anchorite.inspect import resplit
from anchorite.inspect.resplit import connected, stratified
from tests.inspect.samples import texture, write_picture, yolo_folder
from tests.shared import shared_path


def test_groups_are_the_connected_ones() -> None:
    assert connected(6, [(4, 1), (2, 4), (3, 3)]) == [[0], [1, 2, 4], [3], [5]]
    assert connected(0, []) == []


def test_each_class_gets_its_share() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((400, 3))
    counts[:, 0] = rng.integers(0, 6, 400)
    counts[rng.permutation(400)[:40], 1] = 1
    counts[rng.permutation(400)[:10], 2] = 2  # so rare that chance alone would often leave a split without
    owner = stratified([[number] for number in range(400)], counts, [0.7, 0.2, 0.1], seed=3)
    assert np.bincount(owner).tolist() == [280, 80, 40]
    shares = np.array([counts[owner == split].sum(axis=0) for split in range(3)]) / counts.sum(axis=0)
    np.testing.assert_allclose(shares, np.repeat([[0.7], [0.2], [0.1]], 3, axis=1), atol=0.03)


@settings(max_examples=60)
@given(st.data())
def test_groups_stay_together_and_everything_is_dealt(data: st.DataObject) -> None:
    num_images = data.draw(st.integers(1, 30))
    pairs = data.draw(st.lists(st.tuples(*[st.integers(0, num_images - 1)] * 2), max_size=10))
    counts = np.array(
        data.draw(st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=num_images, max_size=num_images)), np.float64
    )
    groups = connected(num_images, pairs)
    shares = data.draw(st.sampled_from([[0.8, 0.2], [0.6, 0.2, 0.2], [1.0]]))
    seed = data.draw(st.integers(0, 5))
    owner = stratified(groups, counts, shares, seed)
    assert owner.shape == (num_images,)
    assert ((owner >= 0) & (owner < len(shares))).all()
    assert all(len(set(owner[group].tolist())) == 1 for group in groups)
    assert (owner == stratified(groups, counts, shares, seed)).all()


def test_like_images_come_into_one_split(tmp_path: Path) -> None:
    rows = {f"{number:02d}": f"{number % 2} 0.5 0.5 0.3 0.3\n" for number in range(20)}
    folder = yolo_folder(tmp_path / "data", {"train": rows, "val": {"x": "0 0.5 0.5 0.2 0.2\n"}})
    seen = texture(99)
    write_picture(folder / "images/train/03.png", seen)
    write_picture(folder / "images/train/11.png", np.clip(seen.astype(int) + 9, 0, 255).astype(np.uint8))  # brighter
    write_picture(folder / "images/val/x.png", seen)
    for seed in range(8):
        made, groups = resplit(open_dataset(folder), {"train": 0.5, "val": 0.5}, seed)
        assert groups == [3]
        where = {record.path.stem: name for name, records in made.splits.items() for record in records}
        assert len(where) == sum(len(records) for records in made.splits.values()) == 21
        assert where["03"] == where["11"] == where["x"]


def test_kept_splits_stay_as_they_are(tmp_path: Path) -> None:
    rows = {f"{number}": "0 0.5 0.5 0.3 0.3\n" for number in range(6)}
    folder = yolo_folder(tmp_path / "data", {"train": rows, "test": {"t": "1 0.5 0.5 0.2 0.2\n"}})
    made, _ = resplit(open_dataset(folder), {"train": 0.5, "val": 0.5}, keep=["test"])
    assert [record.path.name for record in made.splits["test"]] == ["t.png"]
    assert {name: len(records) for name, records in made.splits.items()} == {"train": 3, "val": 3, "test": 1}


def test_too_few_images_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "data", {"train": {"a": "0 0.5 0.5 0.3 0.3\n", "b": "0 0.5 0.5 0.3 0.3\n"}})
    with pytest.raises(InputError, match=r"2 different views are too few for a split test of 33%"):
        resplit(open_dataset(folder), {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3})
    image = folder / "images/train/b.png"
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"b\.png: .*anchorite inspect --fix"):
        resplit(open_dataset(folder), {"train": 0.5, "val": 0.5})


def test_damaged_images_are_left_out_where_the_user_said_so(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "data", {"train": dict.fromkeys("abc", "0 0.5 0.5 0.3 0.3\n")})
    image = folder / "images/train/b.png"
    image.write_bytes(image.read_bytes()[:-200])
    made, _ = resplit(open_dataset(folder, skip_bad=True), {"train": 0.5, "val": 0.5})
    assert sorted(path.name for records in made.splits.values() for path in records.paths()) == ["a.png", "c.png"]
    assert [(one.kind, one.image, one.split) for one in made.adjustments] == [("skipped-bad", image, "train")]


def test_regions_for_any_class_go_with_their_images(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "data", {"train": dict.fromkeys("abc", "0 0.5 0.5 0.3 0.3\n1 0.2 0.2 0.1 0.1\n")})
    made, _ = resplit(open_dataset(folder, ignore_classes=["cat"]), {"train": 0.5, "val": 0.5})
    assert {tuple(one.class_ids.tolist()) for records in made.splits.values() for one in records} == {(NO_CLASS, 0)}


@pytest.mark.slow
def test_bccd_is_dealt_within_a_percent() -> None:
    made, groups = resplit(open_dataset(shared_path("datasets/bccd")), {"train": 0.6, "val": 0.2, "test": 0.2})
    assert len(groups) == 18
    boxes = {
        name: np.bincount(np.concatenate([record.class_ids for record in records]), minlength=3)
        for name, records in made.splits.items()
    }
    total = sum(boxes.values())
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        np.testing.assert_allclose(boxes[name] / total, share, atol=0.015)
