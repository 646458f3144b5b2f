"""The images a benchmark works on: the user's dataset, or scenes drawn into a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from anchorite.benchmark.settings import Settings
from anchorite.data import DatasetIndex, Record, open_dataset
from anchorite.data.scenes import write_scenes
from anchorite.errors import InputError

_COUNTS, _SIDE_PX = (96, 16, 32), 640
_QUICK_COUNTS, _QUICK_SIDE_PX = (8, 2, 4), 64


@contextmanager
def dataset_for(settings: Settings) -> Iterator[DatasetIndex]:
    """The dataset of the settings; without one, JPEGs of drawn scenes, 640 px a side, which are removed at the end."""
    if settings.data is not None:
        yield open_dataset(settings.data)
        return
    counts, side_px = (_QUICK_COUNTS, _QUICK_SIDE_PX) if settings.quick else (_COUNTS, _SIDE_PX)
    with TemporaryDirectory(prefix="anchorite-benchmark-") as folder:
        yield open_dataset(write_scenes(Path(folder) / "scenes", *counts, seed=0, size_px=side_px))


def split_of(dataset: DatasetIndex, *names: str) -> Sequence[Record]:
    """The records of the first of these splits that has images; InputError when none has."""
    for name in names:
        if dataset.splits.get(name):
            return dataset.splits[name]
    raise InputError(f"{dataset.root}: no images in the splits {', '.join(names)}, which this benchmark needs")


def described(dataset: DatasetIndex, settings: Settings) -> str:
    """The dataset in words."""
    counts = ", ".join(f"{len(records)} {name}" for name, records in dataset.splits.items() if records)
    return f"{'drawn scenes' if settings.data is None else settings.data.name}: {counts}"
