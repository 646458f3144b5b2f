"""Training from shards: every sample once, the same batches whoever draws them and wherever one begins."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchorite.data import (
    AugmentConfig,
    DatasetIndex,
    HostPainter,
    Loader,
    LoaderConfig,
    ShardedSplit,
    StreamBatches,
    StreamSamples,
    TrainSamples,
    open_dataset,
)
from anchorite.data.batches import Batch
from anchorite.data.convert import write_dataset
from anchorite.data.samples import SampleConfig, SampleKey
from anchorite.data.shards import stream as stream_module
from anchorite.data.shards.stream import FEWEST_PARTNERS, cut_windows
from anchorite.data.store import ImageStore
from anchorite.errors import InputError, WorkerError
from tests.data.shard_cases import SOURCES, make_index, train_split, with_unknown, write_cases
from tests.data.test_loader import sha
from tests.data.test_samples import EVERYTHING

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    write_cases(folder, num_train=53, unknown=True)
    return folder


@pytest.fixture
def dataset(folder: Path) -> DatasetIndex:
    return open_dataset(folder / "shards")


def stream_batches(
    split: ShardedSplit, seed: int = 0, window: int = 10, num_epochs: int | None = None, **options: Any
) -> StreamBatches:
    samples = StreamSamples(split, SampleConfig(AugmentConfig(close_mosaic_epochs=2), SIZE, seed, num_epochs))
    return StreamBatches(samples, LoaderConfig(**{"batch_size": 8, **options}), window)


def batches(dataset: DatasetIndex, **options: Any) -> StreamBatches:
    return stream_batches(train_split(dataset), **options)


def indices_of(order: StreamBatches, epoch: int) -> list[list[int]]:
    return [[key.record_index for key in keys] for keys in order.of_epoch(epoch)]


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own(dataset: DatasetIndex) -> None:
    order = batches(dataset)
    assert (order.sizes.num_batches, [order.sizes.num_in(batch) for batch in range(7)]) == (7, [8] * 6 + [5])
    epochs = [indices_of(order, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8] * 6 + [5]
        assert sorted(index for batch in epoch for index in batch) == list(range(53))
    assert len({str(epoch) for epoch in epochs}) == 3
    assert indices_of(batches(dataset), 1) == epochs[1]
    assert indices_of(batches(dataset, seed=1), 1) != epochs[1]
    assert [len(batch) for batch in indices_of(batches(dataset, drop_last=True), 0)] == [8] * 6


@pytest.mark.parametrize("world_size", [2, 3, 7, 60])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_ranks_share_every_batch_and_see_every_sample_once(
    world_size: int, batch_size: int, dataset: DatasetIndex
) -> None:
    orders = [batches(dataset, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    found = [indices_of(order, 0) for order in orders]
    assert {len(rank) for rank in found} == {orders[0].sizes.num_batches} == {-(-53 // batch_size)}
    for batch in range(orders[0].sizes.num_batches):
        sizes = [len(rank[batch]) for rank in found]
        assert sum(sizes) == orders[0].sizes.num_in(batch)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= orders[0].sizes.largest_part
    assert sorted(index for rank in found for batch in rank for index in batch) == list(range(53))


def test_ranks_read_files_of_their_own_but_where_they_meet(dataset: DatasetIndex) -> None:
    orders = [batches(dataset, rank=number, world_size=3) for number in range(3)]
    read = [{shard for window in order.windows_of(0) for shard, _, _ in window} for order in orders]
    num_shards = len(train_split(dataset).shards)
    assert num_shards > 8
    assert set.union(*read) == set(range(num_shards))
    assert sum(map(len, read)) <= num_shards + 2


@pytest.mark.parametrize("rank", [(0, 1), (1, 3)])
def test_the_order_goes_on_at_any_batch(rank: tuple[int, int], dataset: DatasetIndex) -> None:
    order = batches(dataset, rank=rank[0], world_size=rank[1])
    whole = list(order.of_epoch(2))
    for start in range(order.sizes.num_batches + 1):
        assert list(order.of_epoch(2, start)) == whole[start:]


def test_a_later_batch_is_found_without_reading_the_shards_before(
    dataset: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchorite.data.shards.split import Shard

    order, opened = batches(dataset), []
    table = Shard.table
    monkeypatch.setattr(Shard, "table", lambda shard: opened.append(shard.path) or table(shard))
    plan = order.windows_of(0)
    next(order.of_epoch(0, order.sizes.num_batches - 1))
    last = {train_split(dataset).shards[shard].path for window in plan[-2:] for shard, _, _ in window}
    assert set(opened) <= last
    assert len(last) < len(train_split(dataset).shards) / 2


def test_partners_are_others_of_the_window_and_only_while_there_are_mosaics(dataset: DatasetIndex) -> None:
    order = batches(dataset, num_epochs=3, window=30)
    starts = train_split(dataset).starts
    for keys in order.of_epoch(0):
        pool, own = [member[0] for member in keys[0].pool], [key.record_index for key in keys]
        assert pool[: len(own)] == own
        assert len(set(pool)) == len(pool)
        assert FEWEST_PARTNERS - 8 <= len(pool) - len(own) <= FEWEST_PARTNERS
        assert all(key.pool is keys[0].pool for key in keys)
        for member in keys[0].pool:
            assert starts[member[1]] + member[2] == member[0]
    assert all(
        [member[0] for member in keys[0].pool] == [key.record_index for key in keys] for keys in order.of_epoch(1)
    )


def test_stretches_and_windows_cut_where_they_should() -> None:
    assert cut_windows([3, 1, 4], [2, 0, 1], 0, 8, least=9) == [[(2, 0, 4), (0, 0, 3), (1, 0, 1)]]
    assert cut_windows([3, 1, 4], [2, 0, 1], 3, 3, least=9) == [[(2, 3, 4), (0, 0, 2)]]
    assert cut_windows([3, 0, 4], [1, 0, 2], 2, 2, least=9) == [[(0, 2, 3), (2, 0, 1)]]
    pieces = [(0, 0, 3), (1, 0, 3), (2, 0, 9), (3, 0, 1)]
    assert cut_windows([3, 3, 9, 1], range(4), 0, 16, least=4) == [pieces[:2], pieces[2:3], pieces[3:]]
    assert cut_windows([3, 3, 9, 1], range(4), 0, 16, least=1) == [[piece] for piece in pieces]


def stream(dataset: DatasetIndex, config: AugmentConfig = EVERYTHING, num_epochs: int | None = None) -> StreamSamples:
    return StreamSamples(train_split(dataset), SampleConfig(config, SIZE, 7, num_epochs))


def drawn(samples: StreamSamples, start: int = 0, epoch: int = 0, **options: Any) -> list[Batch]:
    config = LoaderConfig(batch_size=8, **options)
    with Loader(HostPainter(StreamBatches(samples, config, window=10))) as loader:
        loader.set_epoch(epoch, start)
        return list(loader)


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2, "prefetch": 1}, {"workers": 3}])
def test_batches_are_the_same_whoever_draws_them(options: dict[str, int], dataset: DatasetIndex) -> None:
    assert sha(drawn(stream(dataset), **options)) == sha(drawn(stream(dataset)))


def test_batches_are_the_same_from_samples_that_were_sent_to_a_spawned_worker(dataset: DatasetIndex) -> None:
    assert sha(drawn(pickle.loads(pickle.dumps(stream(dataset))))) == sha(drawn(stream(dataset)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_goes_on_at_any_batch(workers: int, dataset: DatasetIndex) -> None:
    whole = drawn(stream(dataset), epoch=1)
    for start in (1, 6, 7):
        assert sha(drawn(stream(dataset), start, epoch=1, workers=workers)) == sha(whole[start:])


def test_without_mosaics_samples_are_those_of_the_ordinary_loader(dataset: DatasetIndex) -> None:
    config = EVERYTHING.model_copy(update={"mosaic": 0.0, "mixup": 0.0})
    records = tuple(train_split(dataset))
    store = ImageStore(records, SIZE, "none")
    ordinary = TrainSamples(store, SampleConfig(config, SIZE, 7))
    batch: Any  # all parts of the labels are there
    for batch in drawn(stream(dataset, config), epoch=3):
        rows = batch.targets.rows
        for place, index in enumerate(batch.indices.tolist()):
            image = np.empty((1, SIZE, SIZE, 3), np.uint8)
            wanted: Any = ordinary.draw_batch([SampleKey(3, index, SIZE)], image)
            assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), image[0])
            assert np.array_equal(rows[rows[:, 0] == place][:, 1:].numpy(), wanted.rows[:, 1:])
            assert np.array_equal(batch.targets.weights[rows[:, 0] == place].numpy(), wanted.weights)
            regions = batch.coverage.ignore_regions
            assert np.array_equal(regions[regions[:, 0] == place][:, 1:].numpy(), wanted.ignore_regions[:, 1:])
            assert np.array_equal(batch.coverage.background_weight[place].numpy(), wanted.background[0])
            covered = batch.coverage.covered_classes[batch.targets.sources[rows[:, 0] == place]]
            assert np.array_equal(covered.numpy(), wanted.covered[wanted.sources])


def test_what_one_image_does_not_know_is_a_part_of_every_batch(tmp_path: Path) -> None:
    index = make_index(tmp_path / "data")
    unlike = next(record for record in with_unknown(index).splits["train"] if record.source == SOURCES[1])
    records = [unlike if one.path == unlike.path else one for one in index.splits["train"]]
    write_dataset(replace(index, splits={"train": records}), tmp_path / "shards", "shards", shard_bytes=20_000)
    found = drawn(stream(open_dataset(tmp_path / "shards"), AugmentConfig.none()))
    assert len(found) == 3
    for batch in found:
        parts = vars(batch.targets) | vars(batch.coverage)
        assert [name for name, one in parts.items() if one is None] == ["valid"]
        assert batch.coverage is not None
        assert batch.coverage.covered_classes is not None
        assert sorted(batch.coverage.covered_classes.tolist()) == [[True, False, True], [True] * 3]


def test_a_mosaic_is_made_of_the_pool_as_of_any_records(dataset: DatasetIndex) -> None:
    samples = stream(dataset, AugmentConfig(mosaic=1.0))
    keys = next(stream_batches(samples.split, seed=7).of_epoch(0))
    pixels = np.empty((8, SIZE, SIZE, 3), np.uint8)
    rows = samples.draw_batch(keys, pixels, lambda _: None).rows
    records = [samples.split[member[0]] for member in keys[0].pool]
    ordinary = TrainSamples(ImageStore(records, SIZE, "none"), samples.config)
    from anchorite.data.augment import Scratch, paint

    canvas = np.empty((SIZE, SIZE, 3), np.uint8)
    for place, key in enumerate(keys):
        plan = ordinary.plan([SampleKey(0, key.record_index, SIZE)], [place])
        paint(plan[0], ordinary.store, canvas, Scratch())
        assert np.array_equal(canvas, pixels[place])
        assert np.array_equal(ordinary.labels(plan).rows[:, 1:], rows[rows[:, 0] == place][:, 1:])
    assert len(rows)


def test_each_image_of_a_pool_is_decoded_once_and_only_when_it_is_seen(
    dataset: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    decode = stream_module.decode_resized
    monkeypatch.setattr(
        stream_module, "decode_resized", lambda record, *rest: decoded.append(record.path) or decode(record, *rest)
    )
    samples = stream(dataset, AugmentConfig(mosaic=1.0))
    keys = next(stream_batches(samples.split, seed=7, window=2048).of_epoch(0))
    samples.draw_batch(keys, np.empty((8, SIZE, SIZE, 3), np.uint8), lambda _: None)
    assert len(decoded) == len(set(decoded)) <= len(keys[0].pool) == 8 + FEWEST_PARTNERS
    decoded.clear()
    samples = stream(dataset, AugmentConfig.none())
    samples.draw_batch(keys, np.empty((8, SIZE, SIZE, 3), np.uint8), lambda _: None)
    assert sorted(decoded) == sorted(samples.split[key.record_index].path for key in keys)


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[DatasetIndex, Path]:
    _, dataset = write_cases(tmp_path)
    return dataset, tmp_path / "shards" / "train-000002.tar"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_ends_the_pass_and_names_sample_and_byte(
    workers: int, damaged: tuple[DatasetIndex, Path]
) -> None:
    from anchorite.data.shards.format import read_table

    dataset, path = damaged
    start = int(read_table(path).rows[1][3])
    content = bytearray(path.read_bytes())
    content[start + 30] ^= 16
    path.write_bytes(content)
    with pytest.raises(WorkerError, match=rf"train-000002-000001\.\w+: damaged: byte {start} of the shard"):
        drawn(stream(dataset), workers=workers)


def test_a_damaged_header_ends_the_pass_and_names_shard_and_byte(damaged: tuple[DatasetIndex, Path]) -> None:
    dataset, path = damaged
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train-000002\.tar: byte 0: .*0 of \d+ samples are whole"):
        drawn(stream(dataset))
    path.unlink()
    with pytest.raises(InputError, match=r"train-000002\.tar: the shard is missing"):
        drawn(stream(dataset))


def test_samples_left_out_are_not_drawn_and_all_others_are(dataset: DatasetIndex) -> None:
    split = train_split(dataset)
    gone = [record.path for record in (split[0], split[17], split[52])]
    split = split.without(gone)
    order = stream_batches(split)
    members = [keys[0].pool[: len(keys)] for keys in order.of_epoch(0)]
    found = sorted(member[:3] for pool in members for member in pool)
    assert [index for index, _, _ in found] == list(range(50))
    wanted = [record.path for record in train_split(dataset) if record.path not in gone]
    assert [f"train-{shard:06d}-{position:06d}" for _, shard, position in found] == [path.stem for path in wanted]
    assert [split[index].path for index in range(50)] == wanted


def test_a_split_too_small_for_a_batch_is_told(dataset: DatasetIndex) -> None:
    with pytest.raises(InputError, match="53 images give no batch of 64"):
        batches(dataset, batch_size=64, drop_last=True)


def test_windows_of_one_length_are_shuffled_unlike(tmp_path: Path) -> None:
    split = train_split(write_cases(tmp_path, shard_bytes=1_000_000, num_train=12)[1])
    alike = ShardedSplit([*split.shards] * 4, split.num_classes, split.facts)
    order = stream_batches(alike, window=12, batch_size=12)
    places = [tuple(member[2] for member in keys[0].pool[:12]) for keys in order.of_epoch(0)]
    assert all(sorted(batch) == list(range(12)) for batch in places)
    assert len(set(places)) == 4
