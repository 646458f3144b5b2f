"""`anchorite validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.cli.options import ReadingOptions, RunningOptions

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex, Record


def validate(
    weights: Annotated[Path, Parameter(help="Weights, such as runs/NAME/best.safetensors.")],
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    *,
    split: Annotated[str, Parameter(help="Split to validate on.")] = "val",
    running: RunningOptions | None = None,
    out: Annotated[Path | None, Parameter(help="New folder for curves and confusion matrix as PNG.")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON, and nothing else.")] = False,
    reading: ReadingOptions | None = None,
) -> None:
    """Measure weights on a labelled split: COCO mAP in all, by size and by class."""
    import json as json_format

    from anchorite.cli.folders import refuse_taken
    from anchorite.data import open_dataset
    from anchorite.devices import keep_freed_memory
    from anchorite.errors import InputError
    from anchorite.evaluate import ValidationConfig, Validator
    from anchorite.model import load_weights
    from anchorite.train import choose_device, choose_precision

    reading, running = reading or ReadingOptions(), running or RunningOptions()
    if weights.is_dir() and data.suffix == ".safetensors":
        raise InputError(f"validate: the weights come first, then the data: anchorite validate {data} {weights}")
    if out is not None:
        refuse_taken(out)
    chosen_device = choose_device(running.device)
    dtype = choose_precision(running.precision, chosen_device).dtype
    keep_freed_memory()
    detector, info = load_weights(weights)
    stride = detector.strides[-1]
    size = running.image_size or info.image_size
    if size % stride:
        raise InputError(
            f"--image-size {size}: must be a multiple of {stride}, the coarsest stride of {weights}; "
            f"take {-(-size // stride) * stride}"
        )
    dataset = open_dataset(data, reading.format, reading.skip_bad, allow_outside=reading.allow_outside)
    if dataset.class_names != info.class_names:
        raise InputError(
            f"{weights} and {data} have other classes: {_first_difference(info.class_names, dataset.class_names)}; "
            "validate on data with the same classes in the same order"
        )
    records = _records(dataset, split)
    result = Validator(records, dataset.class_names, size, running.batch).run(
        detector, ValidationConfig(), chosen_device, autocast_dtype=dtype
    )
    print(json_format.dumps(result.to_json()) if json else result.table())
    if out is not None:
        result.save_plots(out)
        if not json:
            print(f"plots: {out}")


def _records(dataset: DatasetIndex, split: str) -> tuple[Record, ...]:
    from anchorite.errors import InputError

    records = dataset.splits.get(split, ())
    if not records:
        there = ", ".join(f"{name} ({len(images)} images)" for name, images in dataset.splits.items() if images)
        what = "is empty" if split in dataset.splits else "is not there"
        raise InputError(f"--split {split}: {what}; the splits of {dataset.root} are {there or 'all empty'}")
    return records


def _first_difference(known: tuple[str, ...], given: tuple[str, ...]) -> str:
    if len(known) != len(given):
        return f"{len(known)} and {len(given)} of them, {_shown(known)} and {_shown(given)}"
    number = next(number for number, names in enumerate(zip(known, given, strict=True)) if names[0] != names[1])
    return f"class {number} is {known[number]!r} and {given[number]!r}"


def _shown(names: tuple[str, ...]) -> str:
    return repr(list(names[:5])) + (" and more" if len(names) > 5 else "")
