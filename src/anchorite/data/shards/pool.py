"""Training samples of a split in shards: each batch is drawn from a pool of images that is read for it alone.

The tiles of a batch's mosaics come from its own images and as many others of the same window, each decoded once for
the batch. So nothing stays in memory from batch to batch, and a batch is the same whichever process draws it.

Legend: B images of a batch, T targets, S side of the canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from anchorite.data.augment import AugmentConfig, Scratch, paint
from anchorite.data.batches import LoaderConfig, SampleKey
from anchorite.data.dataset import LeftOut
from anchorite.data.host_loader import HostLoader
from anchorite.data.images import decode_resized, fitted_size
from anchorite.data.records import Record
from anchorite.data.samples import TrainSamples, sample_rng
from anchorite.data.shards.order import WINDOW, PoolMember, StreamBatches, StreamKey
from anchorite.data.shards.split import ShardedSplit, read_image, read_record
from anchorite.data.shards.tar import as_sample, open_shard, sample_path


class ShardFiles:
    """The shards that a batch is read from, each opened once; leave the context to close them."""

    def __init__(self, split: ShardedSplit) -> None:
        self.split = split
        self._files: dict[int, BinaryIO] = {}
        self._closing = ExitStack()

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def record(self, member: PoolMember) -> Record:
        """The labels of a sample; InputError and StorageError naming it."""
        sample, shard = as_sample(list(member.row)), self.split.shards[member.shard]
        path = sample_path(shard.path, member.position, sample.suffix)
        return read_record(self._file(member.shard), path, sample, self.split.num_classes)

    def image(self, member: PoolMember, record: Record, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """The image of a sample at a (height, width); InputError and StorageError naming it."""
        data = read_image(self._file(member.shard), record.path, as_sample(list(member.row)))
        return decode_resized(record, size_hw, data)

    def _file(self, shard: int) -> BinaryIO:
        if shard not in self._files:
            self._files[shard] = self._closing.enter_context(open_shard(self.split.shards[shard].path))
        return self._files[shard]


class PooledImages:
    """The images of a batch's pool, each decoded when first asked for, the longer side `long_side` pixels."""

    def __init__(
        self, pool: Sequence[PoolMember], files: ShardFiles, long_side: int, report: Callable[[int], object]
    ) -> None:
        self._pool, self._files, self._report = pool, files, report
        self.records = []
        for member in pool:
            report(member.record_index)
            self.records.append(files.record(member))
        self.sizes_hw = [fitted_size((record.height, record.width), long_side) for record in self.records]
        self._decoded: dict[int, NDArray[np.uint8]] = {}

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` of the pool: (h, w, 3) uint8 RGB."""
        if index not in self._decoded:
            self._report(self._pool[index].record_index)
            self._decoded[index] = self._files.image(self._pool[index], self.records[index], self.sizes_hw[index])
        return self._decoded[index]


class StreamSamples:
    """Augmented training samples by `StreamKey`, each of the images of its batch's pool; else as `TrainSamples`."""

    def __init__(
        self, split: ShardedSplit, config: AugmentConfig, image_size: int, seed: int, num_epochs: int | None = None
    ) -> None:
        self.split, self.config, self.image_size, self.seed, self.num_epochs = (
            split,
            config,
            image_size,
            seed,
            num_epochs,
        )

    def side(self, key: StreamKey) -> int:
        """The canvas side S of a sample, in pixels."""
        return key.size

    def image_path(self, index: int) -> Path:
        """The image of a record, for messages; its suffix is not known without reading."""
        shard, position = self.split.place(index)
        return sample_path(shard.path, position, 0).with_suffix("")

    def draw_batch(
        self, keys: Sequence[StreamKey], pixels: NDArray[np.uint8], report: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """Draw a whole batch into `pixels` (B, S, S, 3); the rows (T, 6) of its targets, as `TrainSamples.rows`."""
        plans, scratch = [], Scratch()
        with ShardFiles(self.split) as files:
            images = PooledImages(keys[0].pool, files, self.image_size, report)
            samples = TrainSamples(images, images.records, self.config, self.image_size, self.seed, self.num_epochs)
            for place, key in enumerate(keys):
                report(key.record_index)
                rng = sample_rng(self.seed, key.epoch, key.record_index)
                plans.append(samples.plan(SampleKey(key.epoch, place, key.size), rng))
                paint(plans[-1], images, pixels[place], scratch)
        return samples.rows(plans)


def make_stream_loader(
    samples: StreamSamples,
    config: LoaderConfig,
    capacity: int | None = None,
    window: int = WINDOW,
    left_out: Sequence[LeftOut] = (),
    decisions: Sequence[str] = (),
) -> HostLoader:
    """The batches of a split in shards, in the order of (samples.seed, epoch, rank); else as `make_loader`.

    window: the fewest samples that are shuffled together. Raises InputError when there would be no batch at all.
    """
    augment = samples.config
    open_epochs = None if samples.num_epochs is None else samples.num_epochs - augment.close_mosaic_epochs
    batches = StreamBatches(
        samples.split,
        samples.image_size,
        samples.seed,
        config,
        num_mixed_epochs=open_epochs if augment.mosaic or augment.mixup else 0,
        window=window,
    )
    return HostLoader(samples, batches, config, capacity, left_out, decisions)
