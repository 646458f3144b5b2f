"""`anchorite predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE, LimitOptions

if TYPE_CHECKING:
    from anchorite.boxes import Detections
    from anchorite.errors import AnchoriteError

Kind = Literal["images", "txt"]


def predict(
    weights: Annotated[Path, Parameter(help="Weights, such as runs/NAME/best.safetensors.")],
    *sources: Annotated[str, Parameter(help="Images, folders or quoted globs.")],
    limits: LimitOptions | None = None,
    out: Annotated[Path | None, Parameter(help="New folder for the results. Default: predictions, -2, -3, ...")] = None,
    recursive: Annotated[bool, Parameter(negative="", help="Look into the subfolders of folders, too.")] = False,
    without: Annotated[
        list[Kind] | None, Parameter(negative="", help="Leave out the drawn images or the YOLO txt files.")
    ] = None,
    image_size: Annotated[
        int | None, Parameter(validator=AT_LEAST_ONE, help="Longer side of the input; default: the training size.")
    ] = None,
    batch: Annotated[int, Parameter(validator=AT_LEAST_ONE, help="Images per batch.")] = 8,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Find objects in images: draws them, and writes them as one JSON and as YOLO txt."""
    import time

    from anchorite.cli.folders import refuse_taken
    from anchorite.devices import keep_freed_memory
    from anchorite.errors import InputError
    from anchorite.predict import PredictionWriter, expand_sources, fresh_folder, load

    if not sources:
        raise InputError("predict: SOURCE is missing: anchorite predict WEIGHTS SOURCE...")
    config = (limits or LimitOptions()).config()
    folder = out or fresh_folder(Path("predictions"))
    refuse_taken(folder)
    # A source that is mistyped should cost neither the loading nor half of the results.
    paths = expand_sources(sources, recursive)
    keep_freed_memory()
    predictor = load(weights, device)
    stride = predictor.detector.strides[-1]
    if image_size is not None and image_size < stride:
        raise InputError(f"--image-size {image_size}: must be at least {stride}, the coarsest stride of {weights}")
    left_out = without or []
    num_images, num_found, num_refused = 0, 0, 0
    started = time.perf_counter()
    with PredictionWriter(
        folder, predictor.info.class_names, images="images" not in left_out, labels="txt" not in left_out
    ) as writer:

        def pass_over(error: AnchoriteError) -> None:
            nonlocal num_refused
            num_refused += 1
            print(f"anchorite: {error}", file=sys.stderr)
            writer.add_unreadable(error)

        for image, detections in predictor.stream(paths, config, image_size, batch, pass_over):
            writer.add(image, detections)
            print(_line(detections))
            num_images += 1
            num_found += len(detections)
    seconds = time.perf_counter() - started
    print(f"{_count(num_images, 'image')}, {_count(num_found, 'object')} in {seconds:.1f} s; written to {folder}")
    if num_refused:
        raise InputError(f"predict: {num_refused} of {len(paths)} images could not be read; see the lines above")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _line(detections: Detections) -> str:
    """The image and what was found in it, on one line whatever its name holds."""
    counts: dict[str, int] = {}
    for found in detections:
        counts[found.class_name] = counts.get(found.class_name, 0) + 1
    text = f"{detections.source}: " + (
        ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"
    )
    return "".join(letter if letter.isprintable() or 0xDC80 <= ord(letter) <= 0xDCFF else "?" for letter in text)
