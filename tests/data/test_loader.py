"""Batches: the same whoever draws them, complete, resumable, and ended cleanly when a worker fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data.augment import AugmentConfig
from anchorite.data.batches import Batch, EpochBatches, LoaderConfig
from anchorite.data.dataset import Record
from anchorite.data.host_loader import HostPainter, _Worker
from anchorite.data.loader import Loader
from anchorite.data.samples import SampleConfig, TrainSamples
from anchorite.data.store import ImageStore
from anchorite.errors import InputError, WorkerError
from tests.data.test_samples import EVERYTHING, drawn, make_records
from tests.processes import ForkedProcess

SIZE = 64


@pytest.fixture
def samples(tmp_path: Path) -> TrainSamples:
    return make_samples(tmp_path)


def make_samples(folder: Path, num_records: int = 11, mode: Any = "ram") -> TrainSamples:
    records = make_records(folder, num_records)
    store = ImageStore(records, SIZE, mode)
    store.build()
    return TrainSamples(store, SampleConfig(EVERYTHING, SIZE, 7))


def host_loader(samples: TrainSamples, config: LoaderConfig) -> Loader:
    return Loader(HostPainter(EpochBatches(samples, config)))


def sha(batches: list[Batch]) -> str:
    """Of everything that batches hold."""
    state = hashlib.sha256()
    for batch in batches:
        labels = vars(batch.targets) | vars(batch.coverage or LabelCoverage())
        tensors = {"images": batch.images, "indices": batch.indices} | labels
        for name, tensor in tensors.items():
            if tensor is not None:
                state.update(str((name, tensor.shape, tensor.dtype)).encode() + tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def batches_of(samples: TrainSamples, epochs: int = 2, **options: Any) -> list[Batch]:
    batches = []
    with host_loader(samples, LoaderConfig(batch_size=4, **options)) as loader:
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            batches += list(loader)
    return batches


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def epoch_batches(num_samples: int, seed: int = 0, **options: Any) -> EpochBatches:
    nothing = np.zeros(0)
    record = Record(Path("never read"), 8, 8, np.zeros((0, 4)), nothing.astype(int), nothing.astype(bool), nothing, ())
    samples = TrainSamples(ImageStore([record] * num_samples, SIZE, "none"), SampleConfig(EVERYTHING, SIZE, seed))
    return EpochBatches(samples, LoaderConfig(**{"batch_size": 4, **options}))


def test_an_epoch_holds_every_record_once_in_an_order_of_its_own() -> None:
    epochs = []
    for epoch in range(3):
        batches = epoch_batches(11)
        keys = list(batches.of_epoch(epoch))
        assert [len(batch) for batch in keys] == [4, 4, 3]
        assert batches.sizes.num_batches == 3
        assert all(key.epoch == epoch for batch in keys for key in batch)
        epochs.append([key.record_index for batch in keys for key in batch])
    assert all(sorted(order) == list(range(11)) for order in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert list(epoch_batches(11, seed=1).of_epoch(1)) != keys


def test_the_last_smaller_batch_can_be_dropped() -> None:
    batches = epoch_batches(11, drop_last=True)
    assert [len(batch) for batch in batches.of_epoch(0)] == [4, 4]
    assert batches.sizes.num_batches == 2
    with pytest.raises(InputError, match="no batch"):
        epoch_batches(3, drop_last=True)
    with pytest.raises(InputError, match="empty"):
        epoch_batches(0)


def test_an_epoch_can_begin_at_any_batch() -> None:
    batches = epoch_batches(11, multi_scale=0.5)
    assert list(batches.of_epoch(5, start_batch=2)) == list(batches.of_epoch(5))[2:]


@pytest.mark.parametrize("num_samples", [11, 12, 13, 2, 1])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_every_batch_of_a_single_process(num_samples: int, world_size: int) -> None:
    whole = list(epoch_batches(num_samples, batch_size=6).of_epoch(0))
    ranks = [epoch_batches(num_samples, batch_size=6, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(batches.of_epoch(0)) for batches in ranks]
    taken = [0] * world_size
    for number, (batch, *of_ranks) in enumerate(zip(whole, *parts, strict=True)):
        assert [key for part in of_ranks for key in part] == batch
        assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1
        sizes = ranks[0].sizes
        assert sizes.num_in(number) == len(batch)
        assert sizes.largest_part >= max(map(len, of_ranks))
        assert [sizes.before(number, rank) for rank in range(world_size)] == taken
        taken = [before + len(part) for before, part in zip(taken, of_ranks, strict=True)]
    assert [sizes.part(sizes.num_batches - 1, rank) for rank in range(world_size)] == list(map(len, of_ranks))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_without_an_image_in_the_last_batch_gets_an_empty_one(workers: int, tmp_path: Path) -> None:
    samples = make_samples(tmp_path, num_records=5)
    whole = list(host_loader(samples, LoaderConfig(batch_size=4)))
    for rank in range(3):
        config = LoaderConfig(batch_size=4, workers=workers, rank=rank, world_size=3)
        with host_loader(samples, config) as loader:
            *_, last = list(loader)
            assert len(loader) == len(whole) == 2
            assert loader.num_in(1) == 1
        images = 1 if rank == 0 else 0
        assert last.images.shape == (images, 3, SIZE, SIZE)
        assert torch.equal(last.images, whole[-1].images[:images])
        assert len(last.targets) == (len(whole[-1].targets) if images else 0)


def test_sides_of_multi_scale_batches_are_multiples_of_the_step_in_range() -> None:
    config, samples = LoaderConfig(multi_scale=0.5, size_step=32), SampleConfig(EVERYTHING, 320, 0)
    sides = config.sides(500, samples, epoch=0)
    assert set(sides) == set(range(160, 481, 32))
    assert max(sides) == config.possible_sides(320)[-1]
    assert sides == config.sides(500, samples, epoch=0)
    assert sides != config.sides(500, samples, epoch=1)
    assert set(LoaderConfig().sides(50, SampleConfig(EVERYTHING, 330, 0), epoch=0)) == {330}
    with pytest.raises(InputError, match="no multiple"):
        LoaderConfig(multi_scale=0.1).sides(5, SampleConfig(EVERYTHING, 40, 0), epoch=0)


def test_a_batch_holds_its_samples(samples: TrainSamples) -> None:
    for batch in batches_of(samples, epochs=1):
        num_images = len(batch.indices)
        assert batch.images.shape == (num_images, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for place, index in enumerate(batch.indices.tolist()):
            image, rows = drawn(samples, 0, index, SIZE)
            assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), image)
            mine = batch.targets.rows[batch.targets.rows[:, 0] == place]
            assert np.array_equal(mine[:, 1:].numpy(), rows)


def test_labels_are_padded_before_they_are_pinned(samples: TrainSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))
    monkeypatch.setattr(Targets, "pin_memory", lambda self: pinned.append(self.is_padded) or self)
    config = LoaderConfig(batch_size=4)
    with host_loader(samples, config.model_copy(update={"pin_memory": True})) as loader:
        batches = list(loader)
    assert pinned == [True] * 3
    with host_loader(samples, config) as loader:
        for batch, compact in zip(batches, loader, strict=True):
            assert len(batch.targets) == 64
            assert torch.equal(batch.targets.compact().rows, compact.targets.rows)
            assert not compact.targets.is_padded


@pytest.mark.parametrize("options", [{}, {"multi_scale": 0.5}, {"drop_last": True, "prefetch": 1}])
def test_workers_make_the_same_batches_as_this_process(samples: TrainSamples, options: dict[str, Any]) -> None:
    alone = batches_of(samples, epochs=3, **options)
    assert sha(batches_of(samples, epochs=3, workers=2, **options)) == sha(alone)
    assert sha(batches_of(samples, epochs=3, workers=3, **options)) == sha(alone)


@pytest.mark.slow
def test_spawned_workers_make_the_same_batches_too(samples: TrainSamples) -> None:
    alone = batches_of(samples, epochs=1)
    assert sha(batches_of(samples, epochs=1, workers=1, start_method="spawn")) == sha(alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_was_left_early_does_not_disturb_the_next(samples: TrainSamples, workers: int) -> None:
    expected = sha(batches_of(samples, epochs=1))
    with host_loader(samples, LoaderConfig(batch_size=4, workers=workers)) as loader:
        for _ in range(3):
            iterator = iter(loader)
            next(iterator)
            del iterator
            assert sha(list(loader)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_mid_epoch_gives_the_rest_of_it(samples: TrainSamples, workers: int) -> None:
    whole = batches_of(samples, epochs=1)
    with host_loader(samples, LoaderConfig(batch_size=4, workers=workers)) as loader:
        loader.set_epoch(0, start_batch=1)
        assert sha(list(loader)) == sha(whole[1:])
        assert len(loader) == 3


def test_batches_kept_are_not_overwritten_by_later_ones(samples: TrainSamples) -> None:
    with host_loader(samples, LoaderConfig(batch_size=2, workers=2, prefetch=1)) as loader:
        kept, digests = [], []
        for batch in loader:
            kept.append(batch)
            digests.append(sha([batch]))
        assert [sha([batch]) for batch in kept] == digests


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_fails_is_named(tmp_path: Path, workers: int) -> None:
    samples = make_samples(tmp_path, mode="none")
    bad = samples.image_path(5)
    bad.write_bytes(b"overwritten during the run")
    with host_loader(samples, LoaderConfig(batch_size=4, workers=workers)) as loader:
        with pytest.raises(WorkerError, match=r"image \d+\.png: .*InputError: .*image 5\.png: not a JPEG") as caught:
            list(loader)
        assert "Traceback" in caught.value.__notes__[0]


def worker_processes(loader: Loader) -> list[int]:
    assert isinstance(loader.painter, HostPainter)
    return [int(worker.process.pid or 0) for worker in loader.painter._workers]


def wait_for_end(process_ids: list[int], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, process_ids)):
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.02)


def test_a_killed_worker_is_noticed_at_once_and_its_sample_named(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 40)
    with host_loader(samples, LoaderConfig(batch_size=2, workers=2)) as loader:
        iterator = iter(loader)
        next(iterator)
        next(iterator)  # the other worker's, which has taken something in hand by then
        processes = worker_processes(loader)
        os.kill(processes[1], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(
            WorkerError, match=rf"process {processes[1]}\) was killed by signal 9 while working on .*png"
        ):
            list(iterator)
        assert time.monotonic() - start < 5
        wait_for_end(processes)


def test_a_worker_that_hangs_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 40)
    with host_loader(samples, LoaderConfig(batch_size=2, workers=2, worker_timeout_s=1.0)) as loader:
        iterator = iter(loader)
        next(iterator)
        processes = worker_processes(loader)
        os.kill(processes[0], signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"gave no batch for 1 s while working on .*png"):
            list(iterator)
        assert time.monotonic() - start < 6
        wait_for_end(processes)


def test_after_a_failure_the_loader_starts_anew(tmp_path: Path) -> None:
    samples = make_samples(tmp_path)
    with host_loader(samples, LoaderConfig(batch_size=4, workers=2)) as loader:
        expected = sha(list(loader))
        os.kill(worker_processes(loader)[0], signal.SIGKILL)
        with pytest.raises(WorkerError):
            list(loader)
        assert sha(list(loader)) == expected


def test_closing_ends_all_workers_even_in_mid_epoch(samples: TrainSamples) -> None:
    loader = host_loader(samples, LoaderConfig(batch_size=2, workers=3))
    iterator = iter(loader)
    next(iterator)
    processes = worker_processes(loader)
    iterator.close()  # type: ignore[attr-defined]
    loader.close()
    assert not any(map(is_running, processes))
    loader.close()


def load_for_a_minute(folder: str) -> None:
    """Start workers, print their numbers, and wait."""
    loader = host_loader(make_samples(Path(folder)), LoaderConfig(batch_size=2, workers=2))
    batches = iter(loader)
    next(batches)
    print(*worker_processes(loader), flush=True)
    time.sleep(60)


@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    parent = ForkedProcess("tests.data.test_loader:load_for_a_minute", str(tmp_path))
    processes = list(map(int, parent.stdout.readline().split()))
    assert len(processes) == 2
    parent.kill()
    parent.wait()
    wait_for_end(processes, 15.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_workers_that_a_fork_left_with_a_held_lock_are_made_anew(
    samples: TrainSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, made, begin = threading.Lock(), [], _Worker.__init__

    def note(worker: _Worker, *arguments: Any) -> None:
        if len(made) == 4:  # two that wait for the lock, and the two that took their places
            lock.release()
        begin(worker, *arguments)
        made.append(worker.process.pid)

    monkeypatch.setattr(_Worker, "__init__", note)
    monkeypatch.setattr("anchorite.data.host_loader._try_out", lambda: lock.acquire() and lock.release())
    monkeypatch.setattr("anchorite.data.host_loader.FIRST_PATIENCE_S", 0.3)
    lock.acquire()
    with host_loader(samples, LoaderConfig(batch_size=4, workers=2)) as loader:
        forked = list(loader)
        assert [is_running(process_id) for process_id in made] == [False] * 4 + [True] * 2
    with host_loader(samples, LoaderConfig(batch_size=4)) as loader:
        assert sha(list(loader)) == sha(forked)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_workers_that_never_become_ready_are_given_up(samples: TrainSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorite.data.host_loader._try_out", lambda: time.sleep(60))
    monkeypatch.setattr("anchorite.data.host_loader.FIRST_PATIENCE_S", 0.1)
    loader = host_loader(samples, LoaderConfig(batch_size=4, workers=2, worker_timeout_s=1.0))
    with pytest.raises(WorkerError, match="gave no batch for 1 s before its first sample"):
        next(iter(loader))
    assert multiprocessing.active_children() == []


def test_an_interrupt_while_workers_start_leaves_none_of_them(
    samples: TrainSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, received = _Worker.receive, []

    def interrupted(worker: _Worker, *arguments: Any) -> Any:
        if received:
            raise KeyboardInterrupt
        received.append(receive(worker, *arguments))
        return received[-1]

    with host_loader(samples, LoaderConfig(batch_size=4, workers=2)) as loader:
        with monkeypatch.context() as patched:
            patched.setattr(_Worker, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(iter(loader))
        assert multiprocessing.active_children() == []
        begun_anew = sha(list(loader))
    with host_loader(samples, LoaderConfig(batch_size=4)) as loader:
        assert sha(list(loader)) == begun_anew


def test_workers_leave_interruptions_to_their_parent(samples: TrainSamples) -> None:
    previous = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the parent's handler ran in a worker"))
    try:
        with host_loader(samples, LoaderConfig(batch_size=4, workers=1)) as loader:
            expected = sha(list(loader))
            (process,) = worker_processes(loader)
            os.kill(process, signal.SIGINT)
            assert sha(list(loader)) == expected
            os.kill(process, signal.SIGTERM)
            with pytest.raises(WorkerError, match="signal 15"):
                list(loader)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_background_images_alone_make_a_batch_without_targets(tmp_path: Path) -> None:
    records = [record for record in make_records(tmp_path, 9) if not len(record.boxes_xyxy)]
    store = ImageStore(records, SIZE, "ram")
    store.build()
    samples = TrainSamples(store, SampleConfig(AugmentConfig(), SIZE, 0))
    (batch,) = batches_of(samples, epochs=1, workers=1)
    assert batch.targets.rows.shape == (0, 6)
    assert batch.targets.rows.dtype == torch.float32
    assert np.unique(batch.images.numpy()).size > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_pass_ends_the_first_and_says_so(workers: int, tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 40)
    with host_loader(samples, LoaderConfig(batch_size=2, workers=workers)) as loader:
        expected = sha(list(loader))
        first, second = iter(loader), iter(loader)
        begun = [next(first), next(first)]
        assert sha([next(second), *second]) == expected
        with pytest.raises(InputError, match="this pass ended when another over the same loader began"):
            next(first)
        assert sha(begun) == sha(list(loader)[:2])
        with pytest.raises(InputError, match="another over the same loader"):
            list(zip(loader, loader, strict=True))
        assert sum(thread.name == "anchorite-prefetch" for thread in threading.enumerate()) == 0
        assert sha(list(loader)) == expected


def test_a_pass_in_the_hands_of_another_thread_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    with host_loader(make_samples(tmp_path), LoaderConfig(batch_size=4)) as loader:
        expected, found = sha(list(loader)), []
        assert isinstance(loader.painter, HostPainter)
        draw = loader.painter._drawn

        def slowly(*arguments: Any) -> Iterator[Batch]:
            let_go.wait(30)
            yield from draw(*arguments)

        monkeypatch.setattr(loader.painter, "_drawn", slowly)
        reader = threading.Thread(target=lambda: found.extend(loader))
        reader.start()
        while loader._under_way is None or not loader._under_way.gi_running:
            time.sleep(0.005)
        with pytest.raises(InputError, match="another thread is in a pass over this loader"):
            next(iter(loader))
        let_go.set()
        reader.join()
        assert sha(found) == expected
