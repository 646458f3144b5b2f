"""`anchorite predict`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.json_lines import write_line
from anchorite.cli.options import LimitOptions, OutputOptions, RunningOptions
from anchorite.reading import one_line

if TYPE_CHECKING:
    from anchorite.boxes import Detections
    from anchorite.errors import AnchoriteError

Kind = Literal["images", "txt"]


def predict(
    weights: Annotated[Path, Parameter(help="Weights, or an export of them (.onnx, .xml).")],
    *sources: Annotated[str, Parameter(help="Images, folders or quoted globs.")],
    limits: LimitOptions | None = None,
    out: Annotated[Path | None, Parameter(help="New folder for the results. Default: predictions, -2, -3, ...")] = None,
    recursive: Annotated[bool, Parameter(negative="", help="Look into the subfolders of folders, too.")] = False,
    without: Annotated[
        list[Kind] | None, Parameter(negative="", help="Leave out the drawn images or the YOLO txt files.")
    ] = None,
    running: RunningOptions | None = None,
    output: OutputOptions | None = None,
) -> None:
    """Find objects in images: draws them, and writes them as one JSON and as YOLO txt."""
    from anchorite.cli.folders import refuse_taken
    from anchorite.devices import keep_freed_memory
    from anchorite.errors import InputError
    from anchorite.export import load_predictor
    from anchorite.predict import PredictionWriter, expand_sources, fresh_folder

    if not sources:
        raise InputError("predict: SOURCE is missing: anchorite predict WEIGHTS SOURCE...")
    config = (limits or LimitOptions()).config()
    running, output = running or RunningOptions(), output or OutputOptions()
    output.check()
    folder = out or fresh_folder(Path("predictions"))
    refuse_taken(folder)
    # A source that is mistyped should cost neither the loading nor half of the results.
    paths = expand_sources(sources, recursive)
    keep_freed_memory()
    predictor = load_predictor(weights, running.device, running.precision)
    image_size, stride = running.image_size, predictor.stride
    if image_size is not None and image_size < stride:
        raise InputError(f"--image-size {image_size}: must be at least {stride}, the coarsest stride of {weights}")
    left_out = without or []
    told = _Told(output, folder)
    with PredictionWriter(
        folder, predictor.info.class_names, images="images" not in left_out, labels="txt" not in left_out
    ) as writer:

        def pass_over(error: AnchoriteError) -> None:
            told.unreadable(error)
            writer.add_unreadable(error)

        for image, detections in predictor.stream(paths, config, image_size, running.batch, pass_over):
            writer.add(image, detections)
            told.image(detections)
    told.end()
    if told.num_refused:
        raise InputError(f"predict: {told.num_refused} of {len(paths)} images could not be read; see the lines above")


class _Told:
    """What is printed as it goes: a line an image, or JSON, or the end alone."""

    def __init__(self, output: OutputOptions, folder: Path) -> None:
        self.output, self.folder = output, folder
        self.num_images = self.num_found = self.num_refused = 0
        self.started = time.perf_counter()

    def image(self, detections: Detections) -> None:
        """One image that was looked at."""
        self.num_images += 1
        self.num_found += len(detections)
        if self.output.json_lines:
            write_line("image", detections.to_dict())
        elif not self.output.quiet:
            print(_line(detections))

    def unreadable(self, error: AnchoriteError) -> None:
        """One that was passed over."""
        self.num_refused += 1
        print(f"anchorite: {error}", file=sys.stderr)
        if self.output.json_lines:
            write_line("unreadable", {"reason": str(error)})

    def end(self) -> None:
        """The sums, and where the results are."""
        seconds = time.perf_counter() - self.started
        if self.output.json_lines:
            counts = {"images": self.num_images, "objects": self.num_found, "unreadable": self.num_refused}
            write_line("predicted", {**counts, "seconds": seconds, "folder": self.folder})
            return
        sums = f"{_count(self.num_images, 'image')}, {_count(self.num_found, 'object')}"
        print(f"{sums} in {seconds:.1f} s; written to {self.folder}")


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
    return one_line(text)
