"""The image store: one buffer, checked before it is allocated, never in the dataset's folder."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anchorite.data import index_cache, store
from anchorite.data.dataset import Record
from anchorite.data.store import ImageStore, SharedBytes, cgroup_headroom
from anchorite.errors import InputError, StorageError


def make_record(folder: Path, name: str, size_hw: tuple[int, int]) -> Record:
    folder.mkdir(exist_ok=True)
    height, width = size_hw
    path = folder / name
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3))
    return Record(path, width, height, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), ())


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    sizes = [(60, 80), (100, 50), (33, 97), (7, 300), (64, 64)]
    return [make_record(tmp_path / "dataset", f"image {i}.png", size) for i, size in enumerate(sizes)]


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["ram", "disk", "none", "auto"])
def test_images_are_the_resized_originals(mode: store.StoreMode, records: list[Record], tmp_path: Path) -> None:
    before = contents(tmp_path / "dataset")
    images = ImageStore(records, 64, mode, cache_dir=tmp_path / "cache")
    images.build()
    for index, record in enumerate(records):
        image = images.image(index)
        original = cv2.imread(str(record.path), cv2.IMREAD_COLOR_RGB)
        assert max(image.shape[:2]) == 64
        height, width = image.shape[:2]
        assert images.sizes_hw[index] == (height, width)
        is_smaller = max(record.width, record.height) > 64
        method = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
        assert np.array_equal(image, cv2.resize(original, (width, height), interpolation=method))
        assert abs(height - record.height * 64 / max(record.width, record.height)) <= 0.5 or height == 1
    assert contents(tmp_path / "dataset") == before


def test_progress_counts_every_image(records: list[Record]) -> None:
    seen: list[tuple[int, int]] = []
    ImageStore(records, 64, "ram").build(lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]


def test_stored_pixels_cannot_be_changed_by_mistake(records: list[Record]) -> None:
    images = ImageStore(records, 64, "ram")
    images.build()
    with pytest.raises(ValueError, match="read-only"):
        images.image(0)[0, 0, 0] = 1


def test_too_little_memory_is_noticed_before_anything_is_allocated(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ImageStore(records, 64, "ram").num_bytes
    monkeypatch.setattr(store, "spendable_memory", lambda: needed - 1)
    monkeypatch.setattr(store, "SharedBytes", lambda _: pytest.fail("allocated"))
    with pytest.raises(InputError, match="nothing was allocated"):
        ImageStore(records, 64, "ram").build()
    images = ImageStore(records, 64, "auto")
    images.build()
    assert images.mode == "none"
    assert images.image(0).shape == (48, 64, 3)


def test_a_terabyte_is_refused() -> None:
    record = Record(
        Path("absent.jpg"), 4000, 4000, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), ()
    )
    images = ImageStore([record] * 40_000, 3000, "ram")
    assert images.num_bytes == 40_000 * 3000 * 3000 * 3
    with pytest.raises(InputError, match=r"1080\.0 GB"):
        images.build()


def test_memory_limits_of_control_groups_are_read(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 200000\n")
    assert cgroup_headroom(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_headroom(tmp_path) is None
    assert cgroup_headroom(tmp_path / "absent") is None
    older = tmp_path / "v1"
    older.mkdir()
    (older / "memory.limit_in_bytes").write_text("1000")
    (older / "memory.usage_in_bytes").write_text("400")
    assert cgroup_headroom(older) == 600


def test_a_margin_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:  {100 << 20} kB\n", "/proc/self/cgroup": "0::/a/b\n"}
    files |= {"/sys/fs/cgroup/a/b/memory.max": "max", "/sys/fs/cgroup/a/memory.current": "0"}
    monkeypatch.setattr(store, "_text", lambda path: files.get(str(path), ""))
    assert store.spendable_memory() == 90 << 30
    for limit, spendable in ((20 << 30, 18 << 30), (600 << 20, 88 << 20), (100 << 20, 0)):
        files["/sys/fs/cgroup/a/memory.max"] = str(limit)
        assert store.spendable_memory() == spendable
    files["/proc/self/cgroup"] = "5:memory:/c\n1:cpu:/d\n"
    files |= {"/sys/fs/cgroup/memory/c/memory.limit_in_bytes": str(20 << 30)}
    files |= {"/sys/fs/cgroup/memory/c/memory.usage_in_bytes": str(10 << 30)}
    assert store.spendable_memory() == 9 << 30
    files.clear()
    assert store.spendable_memory() is None


def test_the_disk_store_is_used_again_and_made_anew_when_an_image_changes(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    ImageStore(records, 64, "disk", cache).build()
    (first,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(ImageStore, "_decode", lambda *_: pytest.fail("decoded again"))
        ImageStore(records, 64, "disk", cache).build()
    status = records[0].path.stat()
    cv2.imwrite(str(records[0].path), np.zeros((60, 80, 3), np.uint8))
    padding = status.st_size - records[0].path.stat().st_size
    with records[0].path.open("ab") as stream:
        stream.write(bytes(padding))
    os.utime(records[0].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert records[0].path.stat().st_size == status.st_size
    images = ImageStore(records, 64, "disk", cache)
    images.build()
    assert not images.image(0).any()
    assert len(list(cache.iterdir())) == 2
    assert first.exists()
    assert ImageStore(records, 65, "disk", cache).key() != images.key()


def test_a_failed_build_leaves_no_cache_file(records: list[Record], tmp_path: Path) -> None:
    records[2].path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"image 2\.png"):
        ImageStore(records, 64, "disk", tmp_path / "cache").build()
    assert list((tmp_path / "cache").iterdir()) == []


def test_all_unreadable_images_are_named_at_once(records: list[Record]) -> None:
    records[1].path.write_bytes(b"")
    records[3].path.unlink()
    cv2.imwrite(str(records[4].path), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        ImageStore(records, 64, "ram").build()
    message = str(caught.value)
    assert "image 1.png" in message
    assert "image 3.png" in message
    assert "image 4.png: is 10x10 pixels but was 64x64" in message
    assert "image 0.png" not in message


def test_a_cache_in_the_dataset_is_refused(records: list[Record], tmp_path: Path) -> None:
    before = contents(tmp_path)
    for folder in (tmp_path / "dataset", tmp_path / "dataset" / "cache"):
        with pytest.raises(InputError, match="lies in the dataset"):
            ImageStore(records, 64, "disk", folder).build()
    assert contents(tmp_path) == before


def test_too_small_a_disk_is_noticed_before_writing(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(StorageError, match="nothing was written"):
        ImageStore(records, 64, "disk", tmp_path / "cache").build()
    assert list((tmp_path / "cache").iterdir()) == []


def sums(stores: list[ImageStore]) -> list[int]:
    return [int(images.image(index).sum()) for images in stores for index in range(len(images))]


def answer_sums(stores: list[ImageStore], answers: Any) -> None:
    answers.put(sums(stores))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_see_the_same_pixels_without_a_copy(method: str, records: list[Record], tmp_path: Path) -> None:
    modes: tuple[store.StoreMode, ...] = ("ram", "disk")
    stores = [ImageStore(records, 64, mode, tmp_path / "cache") for mode in modes]
    for images in stores:
        images.build()
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=answer_sums, args=(stores, answers))
    process.start()
    assert answers.get(timeout=60) == sums(stores)
    process.join()


def test_shared_bytes_are_written_by_a_child_and_read_here() -> None:
    shared = SharedBytes(10)
    child = os.fork()
    if child == 0:
        shared.array[3] = 77
        os._exit(0)
    os.waitpid(child, 0)
    assert shared.array.tolist() == [0, 0, 0, 77, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("mode", ["ram", "disk", "none"])
def test_with_skip_bad_the_images_that_cannot_be_decoded_are_left_out(
    mode: store.StoreMode, records: list[Record], tmp_path: Path
) -> None:
    content = records[0].path.read_bytes()
    records[0].path.write_bytes(content[: len(content) // 2])
    records[3].path.write_bytes(b"")
    whole = ImageStore([records[1], records[2], records[4]], 64, "ram")
    whole.build()
    for _ in range(2):  # the second finds the first one's file
        images = ImageStore(records, 64, mode, tmp_path / "cache", skip_bad=True)
        images.build()
        assert images.records == whole.records
        assert len(images) == 3
        assert [one.path for one in images.left_out] == [records[0].path, records[3].path]
        assert ["truncated" in one.reason or "empty" in one.reason for one in images.left_out] == [True, True]
        for index in range(3):
            assert np.array_equal(images.image(index), whole.image(index))
            assert images.sizes_hw[index] == whole.sizes_hw[index]
    with pytest.raises(InputError, match=r"(?s)image 0\.png: .*image 3\.png: "):
        ImageStore(records, 64, mode if mode == "disk" else "ram", tmp_path / "cache").build()


def test_a_disk_store_without_bad_images_decodes_only_these_again(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records[2].path.write_bytes(b"no image")
    ImageStore(records, 64, "disk", tmp_path / "cache", skip_bad=True).build()
    decoded, decode = [], ImageStore._decode

    def counted(self: ImageStore, index: int) -> np.ndarray:
        decoded.append(index)
        return decode(self, index)

    monkeypatch.setattr(ImageStore, "_decode", counted)
    ImageStore(records, 64, "disk", tmp_path / "cache", skip_bad=True).build()
    assert decoded == [2]


def test_a_cache_that_lacks_an_image_which_can_be_decoded_is_made_anew(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: ImageStore, index: int) -> np.ndarray:
        raise InputError("for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(ImageStore, "_decode", failing)
        ImageStore(records, 64, "disk", tmp_path / "cache", skip_bad=True).build()
    images = ImageStore(records, 64, "disk", tmp_path / "cache", skip_bad=True)
    images.build()
    assert len(images) == 5
    assert images.image(0).any()


def test_skip_bad_does_not_hide_a_disk_that_fails(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: ImageStore, index: int) -> np.ndarray:
        raise StorageError(f"{self.records[index].path}: cannot be read: Input/output error")

    monkeypatch.setattr(ImageStore, "_decode", failing)
    with pytest.raises(StorageError, match=r"image 4\.png: cannot be read"):
        ImageStore(records, 64, "ram", skip_bad=True).build()
