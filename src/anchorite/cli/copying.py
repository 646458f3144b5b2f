"""What commands that write a copy of a dataset share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from anchorite.cli.dataset_line import dataset_line, split_counts
from anchorite.cli.options import ReadingOptions

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.data.formats import FormatName

_MOST_NOTES = 10


def read_for_copy(data: Path, out: Path, reading: ReadingOptions) -> DatasetIndex:
    """The dataset, and before that a look at `out`: InputError when it is taken or lies in the dataset."""
    from anchorite.cli.folders import refuse_taken
    from anchorite.data.convert import refuse_inside_dataset

    refuse_taken(out, "OUT")
    dataset = reading.open(data)
    refuse_inside_dataset(out, dataset)
    print(f"data: {dataset_line(dataset)}")
    for kind, number in Counter(adjustment.kind for adjustment in dataset.adjustments).items():
        print(f"  {kind}: {number}")
    return dataset


def write_copy(dataset: DatasetIndex, out: Path, format: FormatName, heading: str, shard_mb: int | None = None) -> None:
    """Write and tell; what reading changed stands in changes.txt, too."""
    from anchorite.cli.counting import counting
    from anchorite.data.convert import write_dataset
    from anchorite.reading import one_line

    changed = [f"{one.kind:<18} {one.origin}: {one.detail}" for one in dataset.adjustments]
    extra = "\n".join([heading, *map(one_line, changed)]) if changed else ""
    with counting("copied") as progress:
        sized = {} if shard_mb is None else {"shard_bytes": shard_mb * 1_000_000}
        notes = write_dataset(dataset, out, format, extra=extra, progress=progress, **sized)
    for note in notes[:_MOST_NOTES]:
        print(f"  {one_line(note)}")
    if len(notes) > _MOST_NOTES:
        print(f"  and {len(notes) - _MOST_NOTES} more")
    listed = f"; {out / 'changes.txt'} lists what is not in it" if changed or notes else ""
    print(f"{format} copy: {out}, {split_counts(dataset)}; read back and the same{listed}")
