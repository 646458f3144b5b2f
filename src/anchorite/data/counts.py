"""Counts of a split without going through its records where they are known: in columns, or of shards."""

from __future__ import annotations

from collections.abc import Sequence

from anchorite.data.columns import RecordTable
from anchorite.data.flat import flat_labels
from anchorite.data.record import Record
from anchorite.data.shards.split import ShardedSplit


def num_boxes(records: Sequence[Record]) -> int:
    """Boxes of some records, crowds and difficult ones too."""
    if isinstance(records, ShardedSplit):
        return records.num_boxes
    if isinstance(records, RecordTable):
        return len(flat_labels(records).class_ids)
    return sum(len(record.class_ids) for record in records)
