"""A pass over a split in shards that finds what cannot be read: labels and images, each decoded once.

Legend: N samples of a shard.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from anchorite.data.dataset import LeftOut
from anchorite.data.images import decode_resized
from anchorite.data.records import Record
from anchorite.data.shards.split import Shard, ShardedSplit, read_image, read_record
from anchorite.data.shards.tar import Sample, open_shard, read_table, sample_path
from anchorite.data.store import Progress
from anchorite.errors import InputError

_AHEAD = 4  # images in hand a core, so that memory does not grow with the split


@dataclass(frozen=True)
class StreamedImages:
    """What a run trains on as a stream. left_out: what `records` is without because it cannot be read."""

    records: ShardedSplit
    left_out: tuple[LeftOut, ...] = ()


def readable(split: ShardedSplit, progress: Progress | None = None) -> StreamedImages:
    """The samples of a split that can be read and decoded, and the others with the reason.

    progress is called with (images done, images in all). Raises InputError when none can be, StorageError when the
    disk fails: that is no fault of an image.
    """
    left_out: list[LeftOut] = []
    waiting: deque[Future[LeftOut | None]] = deque()
    done, num_cores = 0, os.cpu_count() or 1
    with ThreadPoolExecutor(num_cores) as pool:  # OpenCV releases the interpreter lock while it decodes

        def settle(most: int) -> None:
            nonlocal done
            while len(waiting) > most:
                found = waiting.popleft().result()
                left_out.extend([found] if found else [])
                done += 1
                if progress is not None:
                    progress(done, len(split))

        for shard in filter(len, split.shards):
            for work in _reads(shard, split.num_classes):
                waiting.append(pool.submit(_try_decoding, *work))
                settle(num_cores * _AHEAD)
        settle(0)
    if len(left_out) == len(split):
        raise InputError(
            f"none of the {len(split)} images can be read: {left_out[0].record.path}: {left_out[0].reason}"
        )
    return StreamedImages(split.without([one.record.path for one in left_out]), tuple(left_out))


def _reads(shard: Shard, num_classes: int) -> Iterator[tuple[Record, bytes, str]]:
    """Of each sample the record and its image's file, or why there is none, and then a record that stands for it."""
    table = read_table(shard.path, shard.num_samples)
    with open_shard(shard.path) as file:
        for position in shard.positions().tolist():
            if position < len(table.rows):
                yield _read(file, shard, position, table.sample(position), num_classes)
            else:
                yield _unread(shard, position, 0), b"", table.damage


def _read(file: BinaryIO, shard: Shard, position: int, sample: Sample, num_classes: int) -> tuple[Record, bytes, str]:
    path = sample_path(shard.path, position, sample.suffix)
    record = _unread(shard, position, sample.suffix)
    try:
        record = read_record(file, path, sample, num_classes)
        return record, read_image(file, path, sample), ""
    except InputError as error:
        return record, b"", str(error).removeprefix(f"{path}: ")


def _unread(shard: Shard, position: int, suffix: int) -> Record:
    nothing = np.zeros(0)
    return Record(
        sample_path(shard.path, position, suffix),
        1,
        1,
        nothing.reshape(0, 4),
        nothing.astype(np.int64),
        nothing.astype(np.bool_),
        nothing,
        (),
    )


def _try_decoding(record: Record, data: bytes, reason: str) -> LeftOut | None:
    if not reason:
        try:
            decode_resized(record, (record.height, record.width), data)
        except InputError as error:
            reason = str(error).removeprefix(f"{record.path}: ")
    return LeftOut(record, reason) if reason else None
