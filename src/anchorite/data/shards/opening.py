"""Opening a dataset in shards: its list is read and each shard looked at, but none is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import SPLITS, Fence
from anchorite.data.formats.text import is_class_name
from anchorite.data.shards.manifest import MANIFEST, ShardFacts, read_manifest
from anchorite.data.shards.split import Shard, ShardedSplit
from anchorite.data.shards.tar import REMEDY, read_table
from anchorite.errors import InputError
from anchorite.reading import shorten


def find_shards(root: Path, fence: Fence) -> Path | None:
    """The list of a dataset in shards in a folder, or None."""
    path = root / MANIFEST
    return fence.check(path) if path.is_file() else None


def read_shards(manifest_path: Path, root: Path, log: ReadingLog, allow_outside: bool) -> DatasetIndex:
    """The index of a dataset in shards; its splits are `ShardedSplit`s.

    A shard that is missing or has another length than listed is bad: an error, or with skip_bad left out as far as it
    cannot be read.
    """
    manifest = read_manifest(manifest_path)
    names, folder = manifest.class_names, manifest_path.parent
    bad = next((name for name in names if not is_class_name(name) or names.count(name) > 1), None)
    if bad is not None:
        raise InputError(f"{manifest_path}: class_names: {shorten(bad)} is no class name, or stands there twice")
    fence = Fence([folder], allow_outside)
    splits: dict[str, ShardedSplit] = {}
    for split in (name for name in SPLITS if name in manifest.splits):
        log.split = split
        facts = manifest.splits[split]
        shards = [_look_at(folder / shard.name, shard, fence, log) for shard in facts.shards]
        splits[split] = ShardedSplit(shards, len(manifest.class_names), facts)
    log.split = None
    log.raise_if_bad(root)
    return DatasetIndex(root, "shards", tuple(manifest.class_names), splits, log.adjustments)


def _look_at(path: Path, facts: ShardFacts, fence: Fence, log: ReadingLog) -> Shard:
    shard = Shard(path, facts.samples, facts.sha256)
    refusal = fence.refusal(path)
    if refusal:
        log.bad(str(path), refusal)
        return replace(shard, left_out=frozenset(range(facts.samples)))
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        num_bytes = None
    if num_bytes == facts.bytes:
        return shard
    wrong = "missing" if num_bytes is None else f"{num_bytes} bytes instead of {facts.bytes}"
    num_whole, where = 0, ""
    if num_bytes is not None:
        try:
            table = read_table(path, facts.samples)
            num_whole, where = len(table.rows), table.damage and f"; {table.damage}"
        except InputError as error:
            where = f"; {str(error).removeprefix(f'{path}: ')}"
    lost = facts.samples - num_whole
    log.bad(str(path), f"{wrong}{where}: {lost} of its {facts.samples} images cannot be read; {REMEDY}")
    return replace(shard, left_out=frozenset(range(num_whole, facts.samples)))
