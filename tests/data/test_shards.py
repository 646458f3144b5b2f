"""Datasets in shards: the same as their source in every field, readable by others' tools, refused where damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from anchorite.data import DatasetIndex, Record, ShardedSplit, dataset_fingerprint, decode_image, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import LabelSource
from anchorite.data.formats import FormatName
from anchorite.data.samples import LabelParts
from anchorite.data.shards.format import member_bytes, read_table
from anchorite.data.shards.split import label_bytes, parse_label, readable
from anchorite.data.store import ImageStore
from anchorite.errors import InputError
from anchorite.inspect.overview import balances_of, sources_of
from tests.data.format_samples import write_image
from tests.data.shard_cases import train_split, write_cases
from tests.shared import shared_path


@pytest.fixture
def cases(tmp_path: Path) -> tuple[DatasetIndex, DatasetIndex]:
    return write_cases(tmp_path, unknown=True)


def contents(records: tuple[Record, ...] | ShardedSplit) -> list[tuple[bytes, Record]]:
    """Image files and records without their paths, in an order that does not depend on how they are stored."""
    store = ImageStore(records, 64, "none")
    found = []
    for index, record in enumerate(store.records):
        digest = hashlib.sha256(store.image(index).tobytes() + label_bytes(record, "")).digest()
        found.append((digest, replace(record, path=Path("any"))))
    return sorted(found, key=lambda pair: pair[0])


def assert_same(source: DatasetIndex, copy: DatasetIndex) -> None:
    assert copy.class_names == source.class_names
    assert copy.adjustments == ()
    assert {split: len(records) for split, records in copy.splits.items()} == {
        split: len(records) for split, records in source.splits.items() if split in copy.splits
    }
    for split, records in copy.splits.items():
        for (one, record), (other, wanted) in zip(contents(records), contents(source.splits[split]), strict=True):
            assert one == other
            assert record == wanted


def test_everything_reads_back(cases: tuple[DatasetIndex, DatasetIndex]) -> None:
    source, copy = cases
    assert copy.format == "shards"
    assert len(train_split(copy).shards) > 3
    assert_same(source, copy)


@pytest.mark.parametrize(("place", "format"), [("bccd", "voc"), ("cards", "yolo"), ("cards", "coco")])
@pytest.mark.slow
def test_real_datasets_read_back(place: str, format: FormatName, tmp_path: Path) -> None:
    source = open_dataset(shared_path(f"datasets/{place}"), format)
    few = {split: tuple(records)[:40] for split, records in source.splits.items()}
    source = replace(source, splits=few, adjustments=())
    write_dataset(source, tmp_path / "out", "shards", shard_bytes=1_000_000)
    assert_same(source, open_dataset(tmp_path / "out"))


def test_records_are_found_at_random_as_in_order(cases: tuple[DatasetIndex, DatasetIndex]) -> None:
    split = train_split(cases[1])
    for index, record in enumerate(split):
        assert split[index] == record
    assert split[-1] == split[len(split) - 1]
    assert [record.path for record in split[2:5]] == [record.path for record in tuple(split)[2:5]]
    with pytest.raises(IndexError):
        split[len(split)]


def test_a_training_split_is_shuffled_and_others_keep_their_order(cases: tuple[DatasetIndex, DatasetIndex]) -> None:
    source, copy = cases
    sizes = {split: [(one.width, one.height) for one in records] for split, records in source.splits.items()}
    found = {split: [(one.width, one.height) for one in records] for split, records in copy.splits.items()}
    assert found["val"] == sizes["val"]
    assert found["train"] != sizes["train"]
    assert sorted(found["train"]) == sorted(sizes["train"])


def test_the_list_tells_what_the_records_do(cases: tuple[DatasetIndex, DatasetIndex]) -> None:
    split = train_split(cases[1])
    records = tuple(split)
    trained = np.concatenate([record.class_ids[~record.ignored] for record in records])
    assert split.num_boxes() == sum(len(record.class_ids) for record in records)
    assert split.class_counts(3).tolist() == np.bincount(trained, minlength=3).tolist()
    has_class = [class_id for record in records for class_id in record.class_ids if class_id >= 0]
    assert split.class_counts(3, with_ignored=True).tolist() == np.bincount(has_class, minlength=3).tolist()
    assert split.facts.background == sum(not len(record.class_ids) for record in records)
    sides = [
        (record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2])[~record.ignored] / max(record.width, record.height) * 640
        for record in records
    ]
    np.testing.assert_allclose(split.box_sides(640), np.concatenate(sides))


@pytest.mark.parametrize("unknown", [False, True])
def test_what_labels_do_not_know_is_listed_and_raises_the_version(unknown: bool, tmp_path: Path) -> None:
    source, copy = write_cases(tmp_path, unknown=unknown)
    listed = json.loads((tmp_path / "shards" / "shards.json").read_text())
    assert listed["version"] == 1 + unknown
    assert ("sources" in listed["splits"]["train"]) == unknown
    assert listed["splits"]["val"].keys() == {"background", "class_counts", "ignored_counts", "sides", "shards"}
    for split, ours in copy.splits.items():
        table = source.splits[split].table()
        assert ours.num_ignored() == table.num_ignored()
        assert ours.num_weighted() == table.num_weighted()
        assert ours.mean_weight() == table.mean_weight()
        assert ours.sources() == table.label_sources
        assert ours.images_by_source().tolist() == table.images_by_source().tolist()
        assert ours.num_boxes() == table.num_boxes()
        assert ours.class_counts(3, with_ignored=True).tolist() == table.class_counts(3, with_ignored=True).tolist()
    assert (copy.splits["train"].num_weighted() > 0) == unknown
    if unknown:
        before = dataset_fingerprint(copy)
        listed["splits"]["train"]["sources"][1]["background_weight"] = 0.5
        (tmp_path / "shards" / "shards.json").write_text(json.dumps(listed))
        assert dataset_fingerprint(open_dataset(tmp_path / "shards")) != before


def test_the_same_dataset_gives_the_same_bytes_and_each_is_as_listed(tmp_path: Path) -> None:
    source, _ = write_cases(tmp_path)
    write_dataset(source, tmp_path / "again", "shards", shard_bytes=20_000)
    listed = json.loads((tmp_path / "again" / "shards.json").read_text())
    shards = [shard for split in listed["splits"].values() for shard in split["shards"]]
    assert len(shards) > 4
    for shard in shards:
        content = (tmp_path / "again" / shard["name"]).read_bytes()
        assert content == (tmp_path / "shards" / shard["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert len(content) <= 20_000


def test_tar_and_webdataset_read_the_same(cases: tuple[DatasetIndex, DatasetIndex]) -> None:
    split = train_split(cases[1])
    ours = [(record.path.stem, data) for record, data in split.samples()]
    urls = [str(shard.path) for shard in split.shards]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert sorted((one["__key__"], one.get("png") or one["jpg"]) for one in theirs) == sorted(ours)
    for shard in split.shards:
        table = read_table(shard.path)
        with tarfile.open(shard.path) as archive:
            members = archive.getmembers()
        starts = [(one.offset_data, one.size) for one in members]
        rows = table.rows
        assert starts == [pair for row in rows for pair in ((row[0], row[1]), (row[3], row[4]))]


def test_shards_go_back_into_other_formats(tmp_path: Path) -> None:
    _, copy = write_cases(tmp_path)
    write_dataset(copy, tmp_path / "coco", "coco")
    back = open_dataset(tmp_path / "coco")
    for one, record in zip(contents(back.splits["train"]), contents(copy.splits["train"]), strict=True):
        assert one[1].boxes_xyxy.shape == record[1].boxes_xyxy.shape or one[0] != record[0]
    assert sorted((one.width, len(one.class_ids)) for one in back.splits["train"]) == sorted(
        (one.width, len(one.class_ids)) for one in copy.splits["train"]
    )
    write_dataset(copy, tmp_path / "again", "shards", shard_bytes=20_000)
    assert_same(copy, open_dataset(tmp_path / "again"))


def test_exif_stays_in_the_image_and_boxes_are_as_displayed(tmp_path: Path) -> None:
    path = write_image(tmp_path / "data" / "a.jpg", 64, 48, orientation=6)
    box = np.array([[0.0, 0.0, 48.0, 64.0]])
    one = Record(path, 48, 64, box, np.array([0]), np.array([False]), np.array([3072.0]), ("a:1",))
    index = DatasetIndex(tmp_path / "data", "coco", ("cat",), {"train": (one,)})
    write_dataset(index, tmp_path / "out", "shards")
    found = open_dataset(tmp_path / "out").splits["train"][0]
    assert (found.width, found.height) == (48, 64)
    assert np.array_equal(decode_image(found.path), decode_image(path))


def test_opening_touches_no_shard(tmp_path: Path) -> None:
    _, whole = write_cases(tmp_path, unknown=True)
    told = balances_of(whole), sources_of(whole), LabelParts.of(whole.splits["train"])[:4]
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    copy = open_dataset(tmp_path / "shards")
    assert len(copy.splits["train"]) == 23
    assert (balances_of(copy), sources_of(copy), LabelParts.of(copy.splits["train"])[:4]) == told
    with pytest.raises(InputError, match=r"train-000000\.tar: .*0 of \d+ samples are whole"):
        copy.splits["train"][0]


def damaged(folder: Path, change: Callable[[bytearray], object]) -> Path:
    """The second shard changed; its path."""
    path = folder / "shards" / "train-000001.tar"
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def cut(content: bytearray) -> None:
    del content[-9000:]


@pytest.mark.parametrize("is_missing", [False, True], ids=["cut", "missing"])
def test_a_shard_that_is_cut_or_missing_is_named_when_the_data_is_opened(is_missing: bool, tmp_path: Path) -> None:
    _, whole = write_cases(tmp_path)
    wanted = {record.path for record in whole.splits["train"]}
    num_samples = train_split(whole).shards[1].num_samples
    path = damaged(tmp_path, cut)
    if is_missing:
        path.unlink()
    found = "missing" if is_missing else r"bytes instead of .*byte \d+: .*cut short"
    with pytest.raises(InputError, match=rf"train-000001\.tar: .*{found}"):
        open_dataset(tmp_path / "shards")
    kept = open_dataset(tmp_path / "shards", skip_bad=True)
    lost = 23 - len(kept.splits["train"])
    assert 0 < lost <= num_samples
    assert (lost == num_samples) == is_missing
    assert [one.kind for one in kept.adjustments] == ["skipped-bad"]
    assert f"{lost} of its" in kept.adjustments[0].detail
    remaining = [record.path for record in kept.splits["train"]]
    assert set(remaining) < wanted
    assert len(remaining) == 23 - lost
    assert kept.splits["train"][len(remaining) - 1] == tuple(kept.splits["train"])[-1]
    assert dataset_fingerprint(kept) != dataset_fingerprint(whole)


def test_no_bit_of_a_shard_flips_unseen(tmp_path: Path) -> None:
    write_cases(tmp_path)
    path = tmp_path / "shards" / "train-000001.tar"
    content = path.read_bytes()
    split = train_split(open_dataset(tmp_path / "shards"))
    alone = ShardedSplit(split.shards[1:2], 3, split.facts)
    used = np.zeros(len(content), bool)
    for row in read_table(path).rows:
        for start, num_bytes in ((row[0], row[1]), (row[3], row[4])):
            used[start - 512 : start + num_bytes] = True
    rng = np.random.default_rng(0)
    for place in rng.choice(np.flatnonzero(used), 150, replace=False).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"train-000001.*byte \d+"):
            list(alone.samples())


def test_damage_within_an_image_is_left_out_and_counted_when_asked_for(tmp_path: Path) -> None:
    _, whole = write_cases(tmp_path)
    row = read_table(tmp_path / "shards" / "train-000001.tar").rows[1]
    damaged(tmp_path, lambda content: content.__setitem__(int(row[3]) + 40, content[int(row[3]) + 40] ^ 4))
    split = train_split(open_dataset(tmp_path / "shards", skip_bad=True))
    told: list[tuple[int, int]] = []
    remaining, left_out = readable(split, lambda done, total: told.append((done, total)))
    assert told == [(number, 23) for number in range(1, 24)]
    (one,) = left_out
    assert one.path.stem == "train-000001-000001"
    assert "damaged: byte" in one.reason
    assert [record.path for record in remaining] == [
        record.path for record in whole.splits["train"] if record.path != one.path
    ]
    # The rest of a shard whose headers end too early goes as well, and images that cannot be decoded.
    damaged(
        tmp_path,
        lambda content: content.__setitem__(slice(int(row[3]) - 512, None), bytes(len(content) - int(row[3]) + 512)),
    )
    rest = split.shards[1].num_samples - 1
    assert len(readable(split)[1]) == rest


def shard_of(*members: tuple[str, bytes], headers: Callable[[bytes], bytes] = lambda header: header) -> bytes:
    parts = [member_bytes(name, content) for name, content in members]
    return b"".join(headers(part[:512]) + part[512:] for part in parts) + bytes(1024)


def resummed(header: bytes, place: slice, value: bytes) -> bytes:
    """A header with other bytes somewhere and a checksum that fits."""
    changed = bytearray(header)
    changed[place] = value
    changed[148:156] = b" " * 8
    changed[148:156] = f"{sum(changed):06o}\0 ".encode()
    return bytes(changed)


GOOD = (("train-000000-000000.json", b"{}"), ("train-000000-000000.png", b"\x89PNG"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (shard_of(GOOD[1], GOOD[0]), "expected train-000000-000000.json"),
        (shard_of(GOOD[0]), "expected the image of train-000000-000000 here, not the end"),
        (shard_of(GOOD[0], ("../../etc/passwd.png", b"x")), "expected "),
        (shard_of(GOOD[0], ("train-000000-000000.exe", b"x")), "expected "),
        (shard_of(("train-000000-000007.json", b"{}"), GOOD[1]), "expected train-000000-000000.json"),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(156, 157), b"2")), "of a kind that no shard has"),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(156, 157), b"x")), "of a kind that no shard has"),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(345, 347), b"a\0")), "expected "),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(124, 136), b"77777777777\0")), "more than the"),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(124, 136), b"-0000000002\0")), "without size"),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(124, 136), b"00000030000\0")), "cut short before"),
        (shard_of(*GOOD, headers=lambda one: resummed(one, slice(265, 268), b"abc")), "without size or CRC-32"),
        (shard_of(*GOOD)[:-1024], "cut short"),
        (b"\x1f\x8b" + bytes(1022), "not the header of a file"),
    ],
)
def test_what_no_shard_holds_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    path.write_bytes(content)
    table = read_table(path)
    assert said in table.damage
    assert table.damage.startswith("byte ")


def record_json(**changes: object) -> bytes:
    content = {
        "width": 64,
        "height": 48,
        "boxes": [[0, 0, 64, 48.0]],
        "classes": [1],
        "ignored": [False],
        "areas": [3.5],
        "origins": ["a:1"],
    }
    return json.dumps(content | changes).encode()


def test_a_label_is_read_with_its_numbers_as_they_are() -> None:
    record = parse_label(record_json(), Path("a.jpg"), 2)
    assert record.boxes_xyxy.dtype == np.float64
    assert (record.areas[0], record.ignored[0], record.origins) == (3.5, False, ("a:1",))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
        (b"[]", "valid dictionary"),
        (record_json(width=0), "width"),
        (record_json(height=True), "height"),
        (record_json(width=10**6, height=10**6), "limit"),
        (record_json(classes=[2]), "classes"),
        (record_json(classes=[-1]), "classes"),
        (record_json(classes=[-2], ignored=[True]), "classes"),
        (record_json(weights=[1.5]), "weights"),
        (record_json(weights=[]), "weights"),
        (record_json(source=1), "source"),
        (record_json(source=-1), "source"),
        (record_json(classes=[1.0]), "classes"),
        (record_json(classes=[10**30]), "classes"),
        (record_json(boxes=[[0, 0, 65, 48]]), "outside of 64x48"),
        (record_json(boxes=[[-0.1, 0, 64, 48]]), "outside"),
        (record_json(boxes=[[5, 0, 5, 48]]), "without area"),
        (record_json(boxes=[[0, 0, float("nan"), 48]]), "boxes"),
        (record_json(boxes=[[0, 0, 64]]), "boxes"),
        (record_json(boxes=[["0", "0", "64", "48"]]), "boxes"),
        (record_json(boxes=[[0, 0, 64, 48], [0]]), "boxes"),
        (record_json(boxes=[]), "boxes"),
        (record_json(ignored=[0]), "ignored"),
        (record_json(areas=[-1]), "areas"),
        (record_json(areas=None), "areas"),
        (record_json(origins=["a"] * 2), "origins"),
        (record_json(origins=[1]), "origins"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_label(data, Path("a.jpg"), 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3}, "version 3"),
        ({"format": "tar"}, "not the list of a dataset in shards"),
        ({"class_names": ["a", "a", "b"]}, "'a' is no class name"),
        ({"class_names": ["a"]}, "3 numbers for 1 classes"),
        ({"name": "../train-000000.tar"}, "name"),
        ({"name": "train-000001.tar"}, r"should be train-000000\.tar"),
        ({"samples": -1}, "samples"),
        ({"sha256": "x"}, "sha256"),
        ({"weighted": -1}, "weighted"),
        (
            {"sources": [{"name": "a", "covered": [True], "background_weight": 1, "images": 1}]},
            "1 numbers for 3 classes",
        ),
        ({"sources": [{"name": "a", "covered": None, "background_weight": 2, "images": 1}]}, "background_weight"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    write_cases(tmp_path)
    path = tmp_path / "shards" / "shards.json"
    content = json.loads(path.read_text())
    (name,) = change
    of_split = content["splits"]["train"]
    target = content if name in content else of_split if name in ("weighted", "sources") else of_split["shards"][0]
    path.write_text(json.dumps(content | change if target is content else _with(content, target, change)))
    with pytest.raises(InputError, match=said) as caught:
        open_dataset(tmp_path / "shards")
    assert str(path) in str(caught.value)


def test_an_object_that_its_source_does_not_cover_is_refused() -> None:
    sources = LabelSource("", (True, False)), LabelSource("", (True, True))
    with pytest.raises(InputError, match="source 0 does not cover"):
        parse_label(record_json(), Path("a.jpg"), 2, sources)
    assert parse_label(record_json(source=1), Path("a.jpg"), 2, sources).source == sources[1]
    assert parse_label(record_json(ignored=[True], classes=[-1]), Path("a.jpg"), 2, sources).class_ids[0] == -1


def _with(content: dict[str, object], target: dict[str, object], change: dict[str, object]) -> dict[str, object]:
    target |= change
    return content


def test_a_link_out_of_the_dataset_is_not_followed(tmp_path: Path) -> None:
    write_cases(tmp_path)
    path = tmp_path / "shards" / "train-000000.tar"
    shutil.move(path, tmp_path / "elsewhere.tar")
    path.symlink_to(tmp_path / "elsewhere.tar")
    with pytest.raises(InputError, match="leads out of the dataset"):
        open_dataset(tmp_path / "shards")
    assert len(open_dataset(tmp_path / "shards", allow_outside=True).splits["train"]) == 23


def test_a_shard_itself_is_no_dataset_and_its_folder_is_named(cases: tuple[DatasetIndex, DatasetIndex]) -> None:
    path = train_split(cases[1]).shards[0].path
    with pytest.raises(InputError, match=rf"one of the shards in {path.parent}: name that folder"):
        open_dataset(path)
    assert len(open_dataset(path.parent / "shards.json").splits["train"]) == 23
    with pytest.raises(InputError, match="no dataset recognised"):
        open_dataset(path.parent, "yolo")
