"""A dataset in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex


def dataset_line(dataset: DatasetIndex) -> str:
    """Place, format, classes, and what is in each split."""
    return f"{dataset.root} ({dataset.format}), {len(dataset.class_names)} classes; {split_counts(dataset)}"


def split_counts(dataset: DatasetIndex) -> str:
    """Images and boxes of each split."""

    return ", ".join(
        f"{name} {len(records)} images / {records.num_boxes()} boxes" for name, records in dataset.splits.items()
    )
