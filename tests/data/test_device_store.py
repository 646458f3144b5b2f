"""Images beside the network: complete, found again, and put where there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchorite.data import device as device_module
from anchorite.data.device import DeviceStore, Storage, choose_storage, packed
from anchorite.data.images import FILL
from anchorite.data.store import ImageStore
from anchorite.errors import InputError
from tests.data.device_cases import needs_cuda
from tests.data.test_samples import make_records

GB = 10**9


def channels(pixels: torch.Tensor) -> np.ndarray:
    return torch.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16 & 255], dim=-1).numpy().astype(np.uint8)


@pytest.mark.parametrize("place", ["device", "host"])
def test_every_image_is_found_where_it_is_said_to_begin(tmp_path: Path, place: Storage) -> None:
    records = make_records(tmp_path)
    ordinary = ImageStore(records, 100, "none")
    store = DeviceStore(records, 100, "cpu", place)
    heard = []
    store.build(lambda done, whole: heard.append((done, whole)))
    assert heard[-1] == (6, 6)
    wanted = [4, 1, 4, -1, 0]
    pixels, starts = store.stage(wanted)
    assert pixels.dtype == torch.int32
    assert channels(pixels[:1]).tolist() == [[FILL] * 3]
    for index, start in zip(wanted, starts.tolist(), strict=True):
        if index < 0:
            assert start == 0
            continue
        image = ordinary.image(index)
        height, width, _ = image.shape
        found = channels(pixels[start : start + height * width]).reshape(height, width, 3)
        assert np.array_equal(found, image)
    assert store.num_bytes == 4 * (1 + sum(height * width for height, width in ordinary.sizes_hw))


def test_copies_for_a_batch_take_a_size_that_depends_on_their_number_alone(tmp_path: Path) -> None:
    store = DeviceStore(make_records(tmp_path), 100, "cpu", "host")
    store.build()
    sizes = {len(store.stage(wanted)[0]) for wanted in ([0, 1, 2], [3, 3, 3], [-1, -1, 5])}
    assert len(sizes) == 1
    assert sizes != {len(store.stage([0])[0])}


def test_packing_keeps_every_channel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image[0, 0] = 255
    assert np.array_equal(channels(packed(image)).reshape(5, 7, 3), image)
    assert (packed(image) >= 0).all()


def test_images_go_to_the_device_then_to_memory_then_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(num_bytes: int, device: int, ram: int | None) -> tuple[Storage | None, str]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (device, 80 * GB))
        monkeypatch.setattr(device_module, "spendable_memory", lambda: ram)
        return choose_storage(num_bytes, torch.device("cuda:0"))

    assert place(10 * GB, 20 * GB, 0) == (
        "device",
        "10.00 GB of images on cuda:0, within 50% of the 20.00 GB free on cuda:0",
    )
    chosen, reason = place(10 * GB, 19 * GB, 64 * GB)
    assert chosen == "host"
    assert (
        reason
        == "10.00 GB of images in pinned memory, copied batch by batch: more than 50% of the 19.00 GB free on cuda:0"
    )
    chosen, reason = place(10 * GB, 19 * GB, 15 * GB)
    assert chosen is None, "pinned memory comes in powers of two: 17.2 GB"
    assert "15.00 GB of memory to spare" in reason
    assert place(10 * GB, 1 * GB, None)[0] == "host"


def test_what_is_free_on_a_cpu_is_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(num_bytes: int, ram: int | None = 3 * GB) -> tuple[Storage | None, str]:
        monkeypatch.setattr(device_module, "spendable_memory", lambda: ram)
        return choose_storage(num_bytes, torch.device("cpu"))

    chosen, reason = place(GB)
    assert chosen == "device"
    assert reason.endswith("within 50% of the 3.00 GB free on cpu")
    assert [place(num_bytes)[0] for num_bytes in (2 * GB, 4 * GB)] == ["host", None]
    assert place(10 * GB, ram=None)[0] == "device"


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    records[2].path.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"image 2\.png"):
        DeviceStore(records, 100, "cpu").build()


@pytest.mark.parametrize("place", ["device", "host"])
def test_cuda_holds_the_same_images(tmp_path: Path, place: Any) -> None:
    needs_cuda()
    records = make_records(tmp_path)
    here, there = DeviceStore(records, 100, "cpu", place), DeviceStore(records, 100, "cuda", place)
    here.build()
    there.build()
    (expected, starts), (found, same_starts) = here.stage([0, 3, -1]), there.stage([0, 3, -1])
    assert np.array_equal(starts, same_starts)
    assert found.device.type == "cuda"
    if place == "device":
        assert torch.equal(found.cpu(), expected)
