"""A fingerprint of what a dataset says: a changed label, image size, file name, class name or order changes it.

The pixels are not read, so it takes about a second for 100 000 images. File times and the format do not enter, nor
does the place: a dataset that is moved, or named by its folder instead of its data.yaml, keeps its fingerprint.
Legend: N boxes of an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from anchorite.data.columns import record_paths
from anchorite.data.flat import flat_labels
from anchorite.data.index import DatasetIndex
from anchorite.data.record import Record
from anchorite.data.shards.split import ShardedSplit

_BLOCK = 65_536  # records whose labels are laid out at a time


def dataset_fingerprint(dataset: DatasetIndex) -> str:
    """SHA-256, in hexadecimal, over the class names and the fingerprint of every split, both in order."""
    digest = hashlib.sha256()
    _add_texts(digest, dataset.class_names)
    for split, fingerprint in split_fingerprints(dataset).items():
        _add_texts(digest, (split, fingerprint))
    return digest.hexdigest()


def split_fingerprints(dataset: DatasetIndex) -> dict[str, str]:
    """SHA-256 of each split: per record, in order, its path, size, boxes, class ids and ignored flags.

    A path counts from the folder that all images of the split share. Class names do not enter, class ids do. Of a split
    in shards: the SHA-256 of each shard, as listed.
    """
    return {
        split: records.fingerprint() if isinstance(records, ShardedSplit) else _records_fingerprint(records)
        for split, records in dataset.splits.items()
    }


def _records_fingerprint(records: Sequence[Record]) -> str:
    splitting = [os.path.split(path) for path in record_paths(records)]
    folders = {folder: os.path.abspath(folder) for folder, _ in splitting}  # noqa: PTH100 - keeps links
    shared = os.path.commonpath(folders.values()) if folders else ""
    relative = {folder: os.fsencode(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
    digest = hashlib.sha256()
    for start in range(0, len(records), _BLOCK):
        labels = flat_labels(records[start : start + _BLOCK])
        places = splitting[start : start + _BLOCK]
        paths = [relative[folder] + b"/" + os.fsencode(name) for folder, name in places]
        heads = np.array([[len(path) for path in paths], labels.widths, labels.heights, labels.counts], "<i8").T
        boxes = (np.asarray(labels.boxes_xyxy, "<f8") + 0.0).tobytes()  # -0.0 and 0.0 are the same place
        class_ids, ignored = np.asarray(labels.class_ids, "<i8").tobytes(), labels.ignored.astype(np.uint8).tobytes()
        first = 0
        for path, head, count in zip(paths, heads, labels.counts.tolist(), strict=True):
            last = first + count
            parts = (head.tobytes(), path, boxes[32 * first : 32 * last], class_ids[8 * first : 8 * last])
            digest.update(b"".join((*parts, ignored[first:last])))
            first = last
    return digest.hexdigest()


def _add_texts(digest: hashlib._Hash, texts: Sequence[str]) -> None:
    """Add texts so that no other list of texts adds the same bytes."""
    digest.update(len(texts).to_bytes(8, "little"))
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
