"""`anchorite validate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from anchorite.cli.display import counting, dataset_facts, hint, write_line
from anchorite.cli.folders import refuse_taken
from anchorite.cli.options import Data, OutputOptions, ReadingOptions, RunningOptions, Weights
from anchorite.cli.refining import ViewOptions
from anchorite.errors import InputError

if TYPE_CHECKING:
    import torch

    from anchorite.choices import PrecisionName
    from anchorite.data import DatasetIndex, StoreMode
    from anchorite.devices import Precision
    from anchorite.evaluate import ValidationResult, Validator
    from anchorite.model import Detector, WeightsInfo
    from anchorite.predict import Ensemble
    from anchorite.predict.runtime import Runtime

_MOST_SKIPPED = 20  # of what was left out


def validate(
    weights: Weights,
    data: Data,
    *,
    split: Annotated[str, Parameter(help="Split to validate on.")] = "val",
    running: RunningOptions = RunningOptions(),
    refining: ViewOptions = ViewOptions(),
    out: Annotated[Path | None, Parameter(help="New folder for curves and confusion matrix as PNG.")] = None,
    json: Annotated[bool, Parameter(help="Print the result as JSON, and nothing else.")] = False,
    reading: ReadingOptions = ReadingOptions(),
    output: OutputOptions = OutputOptions(),
) -> None:
    """Measure weights on a labelled split: COCO mAP in all, by size and by class."""
    from anchorite.data import without_images
    from anchorite.devices import keep_freed_memory
    from anchorite.evaluate import ReadConfig, Validator, require_classes, require_images, require_side
    from anchorite.predict import Ensemble
    from anchorite.train import choose_device, choose_precision

    _refuse(weights, data, json and output.json_lines)
    refining.check(weights)
    if out is not None:
        refuse_taken(out)
    chosen_device = choose_device(running.device)
    precision = choose_precision(running.precision, chosen_device)
    keep_freed_memory()
    network, info = _loaded(weights, running, refining, precision)
    size = require_side(running.image_size or info.image_size, info.anchors.strides[-1], str(weights))
    dataset = reading.open(data)
    require_classes(weights, info.class_names, data, dataset.class_names)
    records = require_images(dataset, split)
    store_mode: StoreMode = "none" if isinstance(network, Ensemble) else "auto"  # windows are of the images as they are
    with counting("decoded", shown=not (output.quiet or output.json_lines or json), in_logs=False) as progress:
        validator = Validator(
            records,
            dataset.class_names,
            size,
            ReadConfig(running.batch, store_mode, dataset.skip_bad),
            progress,
        )
    dataset = without_images(dataset, split, validator.left_out)
    if not output.quiet:
        _print_skipped(dataset, split)
    result = _measured(validator, network, running, chosen_device, precision)
    if out is not None:
        result.save_plots(out)
    if json or output.json_lines:
        facts = {"weights": weights, "data": data, "split": split, "image_size": size, "plots": out}
        _print_json(result.to_json(), facts if output.json_lines else None, dataset)
        return
    if isinstance(network, Ensemble) and not output.quiet:
        print(network.description(running.image_size))
    print(result.table())
    if out is not None:
        print(f"plots: {out}")
    if not output.quiet:
        hint("to see what it finds in images of yours:", f"anchorite predict {shlex.quote(str(weights))} IMAGES")


def _refuse(weights: Path, data: Path, both_ways: bool) -> None:
    """What can be told to be wrong before anything is read."""
    if both_ways:
        raise InputError("--json and --json-lines: choose one; both print the result as one line of JSON")
    if weights.is_dir() and data.suffix == ".safetensors":
        raise InputError(f"validate: the weights come first, then the data: anchorite validate {data} {weights}")


def _loaded(
    weights: Path, running: RunningOptions, refining: ViewOptions, precision: Precision
) -> tuple[tuple[Detector, WeightsInfo] | Ensemble | Runtime, WeightsInfo]:
    """A detector with its header, an ensemble, or the runtime of an export; and what it says of itself."""
    from anchorite.export import is_export, load_export
    from anchorite.model import load_weights

    if refining.is_asked_for:
        ensemble = refining.measured(weights, running, cast("PrecisionName", precision.name))
        return ensemble, ensemble.info
    if not is_export(weights):
        loaded = load_weights(weights)
        return loaded, loaded[1]
    network = load_export(weights, running.device, running.precision)
    return network, network.info


def _measured(
    validator: Validator,
    network: tuple[Detector, WeightsInfo] | Ensemble | Runtime,
    running: RunningOptions,
    device: torch.device,
    precision: Precision,
) -> ValidationResult:
    """What each kind of network reaches."""
    from anchorite.evaluate import ValidationConfig
    from anchorite.predict import Ensemble

    if isinstance(network, tuple):
        return validator.run(network[0], ValidationConfig(), device, autocast_dtype=precision.dtype)
    if isinstance(network, Ensemble):
        return validator.run_predictor(network, image_size=running.image_size)
    return validator.run_exported(network)


def _print_json(result: dict[str, Any], facts: dict[str, Any] | None, dataset: DatasetIndex) -> None:
    """The result alone, or with `facts` as an event of --json-lines."""
    import json

    if facts is None:
        print(json.dumps(result))
    else:
        write_line("validated", **facts, **result, adjustments=dataset_facts(dataset)["adjustments"])


def _print_skipped(dataset: DatasetIndex, split: str) -> None:
    """What was left out, beside the output proper, which may be JSON."""
    skipped = [one for one in dataset.adjustments if one.kind == "skipped-bad" and one.split in (split, None)]
    if skipped:
        print(f"labels skipped-bad: {len(skipped)}", file=sys.stderr)
        for one in skipped[:_MOST_SKIPPED]:
            print(f"  {one.origin}: {one.detail}", file=sys.stderr)
        if len(skipped) > _MOST_SKIPPED:
            print(f"  and {len(skipped) - _MOST_SKIPPED} more", file=sys.stderr)
