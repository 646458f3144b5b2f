"""`anchorite split`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter

from anchorite.cli.options import ReadingOptions

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex


def split(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    out: Annotated[Path, Parameter(help="New folder for the copy, outside DATA.")],
    *,
    val: Annotated[float, Parameter(help="Share of the images to validate on.")] = 0.2,
    test: Annotated[float, Parameter(help="Share of the images to test on; 0 makes no split test.")] = 0.0,
    keep: Annotated[
        list[Literal["train", "val", "test"]] | None,
        Parameter(negative="", help="Splits that stay as they are; the others are pooled and dealt anew."),
    ] = None,
    seed: Annotated[int, Parameter(help="Decides between images that would fit equally well.")] = 0,
    to: Annotated[
        Literal["yolo", "coco", "voc", "shards"] | None, Parameter(help="Format of the copy; default: that of DATA.")
    ] = None,
    reading: Annotated[ReadingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Copy a dataset with new splits: each class in its share, images of one view never in two splits.

    Every image is decoded once, to find those of one view.
    """
    from anchorite.cli.copying import read_for_copy, write_copy
    from anchorite.cli.counting import counting
    from anchorite.data.formats import FormatName
    from anchorite.errors import InputError
    from anchorite.inspect import resplit

    kept = list(dict.fromkeys(keep or []))
    shares = _shares(val, test, kept)
    dataset = read_for_copy(data, out, reading or ReadingOptions())
    missing = [name for name in kept if name not in dataset.splits]
    if missing:
        raise InputError(f"--keep {missing[0]}: {data} has no such split, but {', '.join(dataset.splits)}")
    with counting("decoded") as progress:
        made = resplit(dataset, shares, seed, kept, progress)
    if made.num_groups:
        print(
            f"{made.num_grouped_images} images in {made.num_groups} groups show the same view as another; "
            "each group is in one split"
        )
    _print_table(made.dataset)
    format = cast(FormatName, to or dataset.format)
    write_copy(made.dataset, out, format, f"Made by `anchorite split` with seed {seed}.")


def _shares(val: float, test: float, kept: Sequence[str]) -> dict[str, float]:
    from anchorite.errors import InputError

    for flag, share in (("--val", val), ("--test", test)):
        if not 0 <= share < 1:
            raise InputError(f"{flag} {share:g}: a share of the images from 0 to under 1, as in {flag} 0.2")
    if val + test >= 1:
        raise InputError(f"--val {val:g} and --test {test:g}: nothing is left to train on; keep their sum under 1")
    shares = {"train": 1 - val - test, "val": val, "test": test}
    if "train" in kept:
        raise InputError("--keep train: then there is nothing to deal to; keep val or test, or leave it out")
    wanted = {name: share for name, share in shares.items() if share > 0 and name not in kept}
    total = sum(wanted.values())
    return {name: share / total for name, share in wanted.items()}


def _print_table(dataset: DatasetIndex) -> None:
    """Boxes of each class by split, with their share, so that one sees whether the splits are alike."""
    from anchorite.reading import one_line

    names = list(dataset.splits)
    counts = [
        [sum(int((record.class_ids == number).sum()) for record in dataset.splits[name]) for name in names]
        for number in range(len(dataset.class_names))
    ]
    rows = [("images", [len(dataset.splits[name]) for name in names])]
    rows += [(one_line(name), row) for name, row in zip(dataset.class_names, counts, strict=True)]
    width = min(30, max(len(label) for label, _ in rows))
    print(f"{'':<{width}}" + "".join(f"{name:>16}" for name in names))
    for label, row in rows:
        total = sum(row) or 1
        print(f"{label[:width]:<{width}}" + "".join(f"{number:>8} {number / total:>6.1%}" for number in row))
