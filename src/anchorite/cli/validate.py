"""`anchorite validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import ReadingOptions


def validate(
    weights: Annotated[Path, Parameter(help="Weights, such as runs/NAME/best.safetensors.")],
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    *,
    split: Annotated[str, Parameter(help="Split to validate on.")] = "val",
    image_size: Annotated[int | None, Parameter(help="Longer side of the input; default: the training size.")] = None,
    batch: Annotated[int, Parameter(help="Images per batch.")] = 16,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Parameter(help="Number format.")] = "auto",
    out: Annotated[Path | None, Parameter(help="Folder for curves and confusion matrix as PNG.")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
    reading: ReadingOptions | None = None,
) -> None:
    """Measure weights on a labelled split: COCO mAP in all, by size and by class."""
    import json as json_format

    from anchorite.data import open_dataset
    from anchorite.errors import InputError
    from anchorite.evaluate import ValidationConfig, Validator
    from anchorite.model import load_weights
    from anchorite.train import choose_device, choose_precision

    reading = reading or ReadingOptions()
    detector, info = load_weights(weights)
    dataset = open_dataset(data, reading.format, skip_bad=reading.skip_bad)
    records = dataset.splits.get(split)
    if not records:
        raise InputError(f"--split {split}: {data} has {', '.join(dataset.splits)}")
    if dataset.class_names != info.class_names:
        raise InputError(
            f"validate: {weights} knows the classes {list(info.class_names)}, {data} has {list(dataset.class_names)}; "
            "validate on data with the same classes in the same order"
        )
    chosen_device = choose_device(device)
    dtype = choose_precision(precision, chosen_device).dtype
    validator = Validator(records, dataset.class_names, image_size or info.image_size, batch)
    result = validator.run(detector, ValidationConfig(), chosen_device, autocast_dtype=dtype)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result.save_plots(out)
    print(json_format.dumps(result.to_json(), ensure_ascii=False) if json else result.table())
