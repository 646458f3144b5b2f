"""Batches made on the device: the same samples, targets and order as those of the processor's loader."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchorite.data import device as device_module
from anchorite.data.augment import AugmentConfig
from anchorite.data.batches import Batch, Capacities, EpochBatches, LoaderConfig
from anchorite.data.device import CAPACITY_STEP, DevicePainter, choose_capacities
from anchorite.data.loader import Loader
from anchorite.errors import InputError
from tests.data.device_cases import EVERYTHING, SIZE, STRAIGHT, TURNED, Case, make_case, needs_cuda
from tests.data.test_loader import host_loader, sha


def device_loader(case: Case, config: LoaderConfig, compiled: bool = False) -> Loader:
    return Loader(DevicePainter(EpochBatches(case.samples, config), case.store, compiled))


def batches_of(case: Case, epochs: range = range(2), **options: Any) -> list[Batch]:
    batches = []
    with device_loader(case, LoaderConfig(**{"batch_size": 4, **options})) as loader:
        for epoch in epochs:
            loader.set_epoch(epoch)
            batches += list(loader)
    return batches


def ordinary_batches(case: Case, epochs: range = range(2), **options: Any) -> list[Batch]:
    batches = []
    with host_loader(case.samples, LoaderConfig(batch_size=4, **options)) as loader:
        for epoch in epochs:
            loader.set_epoch(epoch)
            batches += list(loader)
    return batches


@pytest.mark.parametrize(
    "config", [AugmentConfig(), STRAIGHT, TURNED, EVERYTHING], ids=["default", "straight", "turned", "all"]
)
@pytest.mark.parametrize("multi_scale", [0.0, 0.5])
def test_targets_and_order_are_equal_to_the_processors(
    tmp_path: Path, config: AugmentConfig, multi_scale: float
) -> None:
    case = make_case(tmp_path, config, num_records=11)
    epochs, num_plans = range(5), 0
    ours = batches_of(case, epochs, multi_scale=multi_scale)
    expected = ordinary_batches(case, epochs, multi_scale=multi_scale)
    for batch, other in zip(ours, expected, strict=True):
        assert torch.equal(batch.targets.compact().rows, other.targets.rows)
        assert torch.equal(batch.indices, other.indices)
        assert batch.images.shape == other.images.shape
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images.int() - other.images.int()).abs().float().mean() < 1.5
        num_plans += len(batch.indices)
    assert num_plans == 55
    assert [len(batch.indices) for batch in ours[:3]] == [4, 4, 3], "the rest of an epoch is a smaller batch"
    assert len({batch.images.shape[-1] for batch in ours}) == (
        1 if not multi_scale else len({b.images.shape[-1] for b in expected})
    )


def test_the_last_epochs_are_letterboxed_images(tmp_path: Path) -> None:
    config = AugmentConfig(
        **{**AugmentConfig.none().model_dump(), "mosaic": 1.0, "mixup": 1.0, "close_mosaic_epochs": 1}
    )
    case = make_case(tmp_path, config, num_epochs=2)
    mosaics, closed = batches_of(case, range(1)), batches_of(case, range(1, 2))
    for batch, other in zip(closed, ordinary_batches(case, range(1, 2)), strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.targets.compact().rows, other.targets.rows)
    assert sum(len(b.targets.compact()) for b in mosaics) > sum(len(b.targets.compact()) for b in closed)


def test_batches_are_the_same_every_time_and_wherever_images_lie(tmp_path: Path) -> None:
    device = make_case(tmp_path, EVERYTHING, 11)
    expected = sha(batches_of(device))
    assert sha(batches_of(device, prefetch=1)) == expected
    host = make_case(tmp_path, EVERYTHING, 11, place="host")
    assert sha(batches_of(host)) == expected
    assert sha(batches_of(device, range(1, 3))) != expected


def test_an_epoch_can_begin_at_any_batch_and_be_left_early(tmp_path: Path) -> None:
    case = make_case(tmp_path, EVERYTHING, 11)
    whole = batches_of(case, range(1))
    with device_loader(case, LoaderConfig(batch_size=4)) as loader:
        assert len(loader) == 3
        iterator = iter(loader)
        next(iterator)
        iterator.close()  # type: ignore[attr-defined]
        assert not any(thread.name == "anchorite-prefetch" for thread in threading.enumerate())
        assert sha(list(loader)) == sha(whole)
        loader.set_epoch(0, start_batch=1)
        assert sha(list(loader)) == sha(whole[1:])
    assert len(device_loader(case, LoaderConfig(batch_size=4, drop_last=True))) == 2


def test_targets_are_padded_and_none_is_lost(tmp_path: Path) -> None:
    case = make_case(tmp_path, STRAIGHT, 11)
    config = LoaderConfig(batch_size=4)
    (num_rows, _), reason = choose_capacities(EpochBatches(case.samples, config))
    counts = [len(batch.targets.rows) for batch in ordinary_batches(case, range(1))]
    assert num_rows % CAPACITY_STEP == 0
    assert num_rows >= max(counts)
    assert f"at most {max(counts)} in 3 batches" in reason
    for batch in batches_of(case):
        assert len(batch.targets) == num_rows
        assert batch.targets.is_padded


def test_the_capacity_leaves_a_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "CAPACITY_STEP", 1)
    case = make_case(tmp_path, STRAIGHT, 11)
    fullest = max(len(batch.targets.rows) for batch in ordinary_batches(case, range(1)))
    (num_rows, _), _ = choose_capacities(EpochBatches(case.samples, LoaderConfig(batch_size=4)))
    assert num_rows == fullest * 5 // 4


def test_a_rank_that_has_no_part_of_the_last_batch_has_a_capacity(tmp_path: Path) -> None:
    case = make_case(tmp_path, STRAIGHT, 11)
    with device_loader(case, LoaderConfig(batch_size=8, rank=4, world_size=5)) as loader:
        assert [len(batch.indices) for batch in loader] == [1, 0]


def test_a_batch_with_more_targets_than_rows_gets_more_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "CAPACITY_STEP", 2)
    case = make_case(tmp_path, STRAIGHT, 11)
    monkeypatch.setattr(device_module, "choose_capacities", lambda *_: (Capacities(2, 2), "given"))
    with device_loader(case, LoaderConfig(batch_size=4)) as loader:
        batches = list(loader)
    expected = ordinary_batches(case, range(1))
    assert max(len(batch.targets) for batch in batches) > 2
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.targets.compact().rows, other.targets.rows)
        assert len(batch.targets) - len(other.targets) in (0, 1)


def test_background_images_alone_have_no_valid_target(tmp_path: Path) -> None:
    from tests.data.device_cases import case_of
    from tests.data.test_samples import make_records

    empty = [record for record in make_records(tmp_path, 9) if not len(record.boxes_xyxy)]
    for batch in batches_of(case_of(empty, EVERYTHING)):
        assert batch.targets.valid is not None
        assert not batch.targets.valid.any()
        assert np.unique(batch.images.numpy()).size > 10


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    case = make_case(tmp_path, STRAIGHT, 3)
    with pytest.raises(InputError, match="no batch"):
        device_loader(case, LoaderConfig(batch_size=4, drop_last=True))


@pytest.mark.slow
def test_one_compiled_kernel_paints_the_same_and_cuts_off_the_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path, STRAIGHT.model_copy(update={"value": 0.3}), 5)
    # Without the code generator, whose first use imports torch.utils.mkldnn and its deprecated script methods.
    monkeypatch.setattr(device_module.torch, "compile", partial(torch.compile, fullgraph=True, backend="aot_eager"))
    config = LoaderConfig(batch_size=4)
    with device_loader(case, config, compiled=True) as loader:
        assert isinstance(loader.painter, DevicePainter)
        assert loader.painter.painting == "by a compiled kernel"
        compiled = list(loader)
    for batch, other in zip(compiled, batches_of(case, range(1)), strict=True):
        assert batch.images.shape == other.images.shape
        difference = (batch.images.int() - other.images.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.targets.rows, other.targets.rows)


def test_a_kernel_for_one_batch_size_serves_the_last_batch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def only_watch(function: Any, **_: object) -> Any:
        def call(pixels: torch.Tensor, starts: torch.Tensor, *others: Any) -> torch.Tensor:
            seen.append(len(starts))
            return function(pixels, starts, *others)

        return call

    monkeypatch.setattr(device_module.torch, "compile", only_watch)
    case = make_case(tmp_path, STRAIGHT, 11)
    with device_loader(case, LoaderConfig(batch_size=4), compiled=True) as loader:
        assert isinstance(loader.painter, DevicePainter)
        assert loader.painter.painting == "by a compiled kernel"
        batches = list(loader)
    assert set(seen) == {4}
    assert sha(batches) == sha(batches_of(case, range(1)))


def test_a_compiler_that_fails_is_told_and_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(_function: object, **_: object) -> Any:
        def fail(*_: object) -> None:
            raise RuntimeError("no C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(device_module.torch, "compile", no_compiler)
    case = make_case(tmp_path, STRAIGHT, 5)
    with device_loader(case, LoaderConfig(batch_size=4), compiled=True) as loader:
        assert isinstance(loader.painter, DevicePainter)
        assert loader.painter.painting == "operator by operator, as compiling failed: RuntimeError: no C++ compiler"
        assert sha(list(loader)) == sha(batches_of(case, range(1)))


class Watched:
    """In place of torch.compile: a function that runs as it is and notes what a compiler would compile it for."""

    def __init__(self, num_calls: int = 1000) -> None:
        self.kinds: list[tuple[object, ...]] = []
        self.num_calls = num_calls

    def __call__(self, function: Any, **_: object) -> Any:
        def call(*given: Any) -> torch.Tensor:
            self.kinds.append((given[2].shape, *given[5:]))
            if len(self.kinds) > self.num_calls:
                raise RuntimeError("no memory to compile\nand a long story")
            return function(*given)

        return call


def test_every_kind_of_batch_is_compiled_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module.torch, "compile", watched := Watched())
    config = STRAIGHT.model_copy(update={"mosaic": 0.5, "mixup": 0.3, "close_mosaic_epochs": 1})
    case = make_case(tmp_path, config, 11, num_epochs=4)
    with device_loader(case, LoaderConfig(batch_size=2), compiled=True) as loader:
        known, counts = {*watched.kinds}, [len(watched.kinds)]
        batches = []
        for epoch in range(4):
            loader.set_epoch(epoch)
            batches += list(loader)
            counts.append(len(watched.kinds))
    assert 2 < len(known) == counts[0] <= 8
    assert {*watched.kinds} == known
    assert counts[-1] - counts[0] > len(batches) / 2
    assert sha(batches) == sha(batches_of(case, range(4), batch_size=2))


def test_a_compiler_that_fails_later_is_told_and_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, STRAIGHT, 11)
    expected = sha(batches_of(case, range(1)))
    monkeypatch.setattr(device_module.torch, "compile", Watched(num_calls=2))
    with device_loader(case, LoaderConfig(batch_size=4), compiled=True) as loader:
        with pytest.warns(UserWarning, match="operator by operator, as compiling failed: RuntimeError: no memory"):
            assert sha(list(loader)) == expected
        assert isinstance(loader.painter, DevicePainter)
        assert loader.painter.painting.startswith("operator by operator")


def test_on_cuda_batches_lie_there_with_equal_targets(tmp_path: Path) -> None:
    needs_cuda()
    from anchorite.data.device import DeviceStore

    case = make_case(tmp_path, EVERYTHING, 11)
    for place in ("device", "host"):
        store = DeviceStore(case.store.images.records, SIZE, "cuda", place)  # type: ignore[arg-type]
        store.build()
        for compiled in (False, True):
            loader = device_loader(Case(case.samples, store), LoaderConfig(batch_size=4), compiled)
            for batch, other in zip(loader, batches_of(case, range(1)), strict=True):
                assert batch.images.device.type == "cuda"
                assert torch.equal(batch.targets.rows.cpu(), other.targets.rows)
                assert ((batch.images.cpu().int() - other.images.int()).abs() > 1).float().mean() < 1e-3
