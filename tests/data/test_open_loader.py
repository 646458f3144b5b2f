"""The loader that a split gets by its storage and device, and what it says about the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchorite.data import AugmentConfig, DevicePainter, HostPainter, Loader, LoaderConfig, SampleConfig, open_loader
from anchorite.data import device as device_module
from anchorite.data.device import DeviceStore
from anchorite.errors import InputError
from tests.data.shard_cases import train_split, write_cases
from tests.data.test_samples import make_records

SIZE = 64


def opened(records: Any, **options: Any) -> Loader:
    samples = SampleConfig(options.pop("augment", AugmentConfig()), SIZE, 0, options.pop("num_epochs", None))
    return open_loader(records, samples, LoaderConfig(**{"batch_size": 4, "workers": None, **options}))


def test_a_cpu_trains_from_the_host_unless_told_otherwise(tmp_path: Path) -> None:
    loader = opened(make_records(tmp_path, 10))
    assert isinstance(loader.painter, HostPainter)
    assert loader.batches.config.workers == 0
    assert "ram" in loader.decisions[0]


def test_storage_device_augments_on_the_device_and_says_so(tmp_path: Path) -> None:
    loader = opened(make_records(tmp_path, 10), storage="device", workers=3)
    assert isinstance(loader.painter, DevicePainter)
    assert "images in store: device" in loader.decisions[0]
    assert "workers 3 not needed" in loader.decisions[0]
    assert "targets padded" in loader.decisions[1]


def test_images_that_do_not_fit_the_device_are_kept_beside_it_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records(tmp_path, 10)
    num_bytes = DeviceStore(records, SIZE, "cpu").num_bytes
    monkeypatch.setattr(device_module, "spendable_memory", lambda: 2 * num_bytes - 1)
    loader = opened(records, storage="device")
    assert isinstance(loader.painter, DevicePainter)
    assert loader.painter.store.storage == "host"
    monkeypatch.setattr(device_module, "spendable_memory", lambda: num_bytes - 1)
    with pytest.raises(InputError, match="store device: "):
        opened(records, storage="device")


@pytest.mark.parametrize("storage", ["device", "none"])
def test_images_that_cannot_be_decoded_are_left_out_or_refused(storage: Any, tmp_path: Path) -> None:
    records = make_records(tmp_path, 5)
    for record in records[:4]:
        record.path.write_bytes(b"no image")
    loader = opened(records, storage=storage, skip_bad=True)
    assert [one.path for one in loader.left_out] == [record.path for record in records[:4]]
    assert loader.num_in(0) == 1
    records[4].path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 5 images"):
        opened(records, storage=storage, skip_bad=True)


def test_a_split_in_shards_is_read_as_a_stream(tmp_path: Path) -> None:
    split = train_split(write_cases(tmp_path)[1])
    with opened(split, workers=0) as loader:
        assert "stream" in loader.decisions[0]
        assert sum(len(batch.indices) for batch in loader) == len(split)


@pytest.mark.parametrize("storage", ["device", "ram"])
def test_samples_know_the_length_of_the_run(storage: Any, tmp_path: Path) -> None:
    augment = AugmentConfig(close_mosaic_epochs=2)
    loader = opened(make_records(tmp_path, 4), augment=augment, num_epochs=5, storage=storage)
    assert [loader.batches.samples.config.has_mosaic(epoch) for epoch in range(5)] == [True, True, True, False, False]
