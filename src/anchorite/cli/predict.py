"""`anchorite predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import LimitOptions

if TYPE_CHECKING:
    from anchorite.errors import AnchoriteError

Kind = Literal["images", "txt"]


def predict(
    weights: Annotated[Path, Parameter(help="Weights, such as runs/NAME/best.safetensors.")],
    *sources: Annotated[str, Parameter(help="Images, folders or quoted globs.")],
    limits: LimitOptions | None = None,
    out: Annotated[Path | None, Parameter(help="New folder for the results. Default: predictions, -2, -3, ...")] = None,
    without: Annotated[
        list[Kind] | None, Parameter(negative="", help="Leave out the drawn images or the YOLO txt files.")
    ] = None,
    image_size: Annotated[int | None, Parameter(help="Longer side of the input; default: the training size.")] = None,
    batch: Annotated[int, Parameter(help="Images per batch.")] = 8,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Find objects in images: draws them, and writes them as one JSON and as YOLO txt."""
    from anchorite.errors import InputError
    from anchorite.predict import PredictionWriter, fresh_folder, load

    if not sources:
        raise InputError("predict: name the images: anchorite predict WEIGHTS SOURCE...")
    predictor = load(weights, device)
    config = (limits or LimitOptions()).config()
    left_out = without or []
    folder = out or fresh_folder(Path("predictions"))
    refused: list[str] = []
    found = 0
    with PredictionWriter(
        folder, predictor.info.class_names, images="images" not in left_out, labels="txt" not in left_out
    ) as writer:

        def pass_over(error: AnchoriteError) -> None:
            refused.append(str(error))
            writer.add_unreadable(error)

        for image, detections in predictor.stream_with_images(sources, config, image_size, batch, pass_over):
            writer.add(image, detections)
            print(detections)
            found += 1
    print(f"{found} images in {folder}")
    for message in refused:
        print(f"anchorite: {message}", file=sys.stderr)
    if refused:
        raise InputError(f"predict: {len(refused)} sources could not be read; the {found} others are done")
