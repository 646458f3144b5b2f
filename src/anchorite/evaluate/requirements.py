"""What has to fit before a detector is run over a dataset: classes, the side of the input, a split with images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anchorite.data import DatasetIndex, Record
from anchorite.errors import InputError

_NUM_SHOWN = 5


def require_classes(
    weights: Path, known: tuple[str, ...], data: Path, given: tuple[str, ...], remedy: str = "name data of its own"
) -> None:
    """InputError where weights know other classes than the data has, or in another order, naming the first difference.

    remedy: what to do, before "with the same classes in the same order".
    """
    if known == given:
        return
    if len(known) != len(given):
        difference = f"{len(known)} and {len(given)} of them, {_shown(known)} and {_shown(given)}"
    else:
        number = next(number for number, names in enumerate(zip(known, given, strict=True)) if names[0] != names[1])
        difference = f"class {number} is {known[number]!r} and {given[number]!r}"
    raise InputError(
        f"{weights} and {data} have other classes: {difference}; {remedy} with the same classes in the same order"
    )


def require_side(image_size: int, stride: int, of_what: str) -> int:
    """The image size; InputError where it is no multiple of the coarsest stride of something, naming the next one."""
    if image_size % stride:
        raise InputError(
            f"--image-size {image_size}: must be a multiple of {stride}, the coarsest stride of {of_what}; "
            f"take {-(-image_size // stride) * stride}"
        )
    return image_size


def require_images(dataset: DatasetIndex, split: str, said: str = "--split") -> Sequence[Record]:
    """The records of a split; InputError where it is not there or empty, naming those that are.

    said: what the user said to have it looked for.
    """
    records = dataset.splits.get(split, ())
    if not records:
        there = ", ".join(f"{name} ({len(images)} images)" for name, images in dataset.splits.items() if images)
        what = "is empty" if split in dataset.splits else "is not there"
        raise InputError(f"{said} {split}: {what}; the splits of {dataset.root} are {there or 'all empty'}")
    return records


def _shown(names: tuple[str, ...]) -> str:
    return repr(list(names[:_NUM_SHOWN])) + (" and more" if len(names) > _NUM_SHOWN else "")
