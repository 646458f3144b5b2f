"""`anchorite predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from anchorite.cli.options import LimitOptions, OutputOptions, RunningOptions
from anchorite.cli.predicting import SavingOptions, SourceOptions, Told, find_in
from anchorite.cli.refining import RefiningOptions


def predict(
    weights: Annotated[Path, Parameter(help="Weights, or an export of them (.onnx, .xml).")],
    *sources: Annotated[str, Parameter(help="Images, videos, folders, quoted globs; camera:0, rtsp://..., or -.")],
    limits: LimitOptions | None = None,
    out: Annotated[Path | None, Parameter(help="New folder for the results. Default: predictions, -2, -3, ...")] = None,
    reading: SourceOptions | None = None,
    saving: SavingOptions | None = None,
    running: RunningOptions | None = None,
    refining: RefiningOptions | None = None,
    output: OutputOptions | None = None,
) -> None:
    """Find objects in images and videos: draws them, and writes them as JSON and as YOLO txt."""
    from anchorite.cli.folders import refuse_taken
    from anchorite.devices import keep_freed_memory
    from anchorite.errors import InputError
    from anchorite.export import load_predictor
    from anchorite.predict import fresh_folder, open_sources

    reading, saving = reading or SourceOptions(), saving or SavingOptions()
    words = reading.words(sources)
    if not words:
        raise InputError("predict: SOURCE is missing: anchorite predict WEIGHTS SOURCE...")
    config = (limits or LimitOptions()).config()
    running, output = running or RunningOptions(), output or OutputOptions()
    refining = refining or RefiningOptions()
    output.check()
    refining.check(weights)
    folder = out or fresh_folder(Path("predictions"))
    refuse_taken(folder)
    # A source that is mistyped should cost neither the loading nor half of the results.
    opened = open_sources(words, reading.config())
    opened.refuse_output(folder)
    save = saving.chosen(opened.is_streamed)
    keep_freed_memory()
    predictor = load_predictor(weights, running.device, running.precision)
    image_size, stride = running.image_size, predictor.stride
    if image_size is not None and image_size < stride:
        raise InputError(f"--image-size {image_size}: must be at least {stride}, the coarsest stride of {weights}")
    finder = refining.applied(predictor, weights, running, output)
    told = Told(output, folder)
    find_in(opened, finder, config, running, save, told)
    told.end(opened.num_dropped)
    if told.num_refused:
        raise InputError(
            f"predict: {told.num_refused} of {opened.amount} could not be read, or not whole; see the lines above"
        )
