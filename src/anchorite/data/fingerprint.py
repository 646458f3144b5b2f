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

from anchorite.data.index import DatasetIndex, Record


def dataset_fingerprint(dataset: DatasetIndex) -> str:
    """SHA-256, in hexadecimal, over the class names and the fingerprint of every split, both in order."""
    digest = hashlib.sha256()
    _add_texts(digest, dataset.class_names)
    for split, fingerprint in split_fingerprints(dataset).items():
        _add_texts(digest, (split, fingerprint))
    return digest.hexdigest()


def split_fingerprints(dataset: DatasetIndex) -> dict[str, str]:
    """SHA-256 of each split: per record, in order, its path, size, boxes, class ids and ignored flags.

    A path counts from the folder that all images of the split share. Class names do not enter, class ids do.
    """
    return {split: _records_fingerprint(records) for split, records in dataset.splits.items()}


def _records_fingerprint(records: Sequence[Record]) -> str:
    places = [os.path.split(record.path) for record in records]
    folders = {folder: os.path.abspath(folder) for folder, _ in places}  # noqa: PTH100 - keeps links
    shared = os.path.commonpath(folders.values()) if folders else ""
    relative = {folder: os.fsencode(os.path.relpath(absolute, shared)) for folder, absolute in folders.items()}
    digest = hashlib.sha256()
    for (folder, name), record in zip(places, records, strict=True):
        path = relative[folder] + b"/" + os.fsencode(name)
        head = np.array([len(path), record.width, record.height, len(record.class_ids)], "<i8")
        boxes = np.asarray(record.boxes_xyxy, "<f8") + 0.0  # -0.0 and 0.0 are the same place
        class_ids, ignored = np.asarray(record.class_ids, "<i8"), np.asarray(record.ignored, np.uint8)
        digest.update(b"".join((head.tobytes(), path, boxes.tobytes(), class_ids.tobytes(), ignored.tobytes())))
    return digest.hexdigest()


def _add_texts(digest: hashlib._Hash, texts: Sequence[str]) -> None:
    """Add texts so that no other list of texts adds the same bytes."""
    digest.update(len(texts).to_bytes(8, "little"))
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
