"""Commands that measure: `anchorite validate` a detector, `anchorite benchmark` a machine."""

from __future__ import annotations

import json as json_format
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter

from anchorite.cli.display import count_adjustments, counting, write_line
from anchorite.cli.folders import refuse_taken
from anchorite.cli.options import (
    DEVICE,
    Data,
    OutputOptions,
    PositiveInt,
    ReadingOptions,
    RunningOptions,
    ViewOptions,
    Weights,
)
from anchorite.errors import InputError
from anchorite.files import write_text_atomically

if TYPE_CHECKING:
    from anchorite.choices import PrecisionName
    from anchorite.data import DatasetIndex
    from anchorite.predict import Ensemble, Runtime

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
    from anchorite.evaluate import ReadConfig, Validator, require_classes, require_images, require_side
    from anchorite.inspect import sources_of
    from anchorite.predict import Ensemble

    if json and output.json_lines:
        raise InputError("--json and --json-lines: choose one; both print the result as one line of JSON")
    if weights.is_dir() and data.suffix == ".safetensors":
        raise InputError(f"validate: the weights come first, then the data: anchorite validate {data} {weights}")
    if out is not None:
        refuse_taken(out)
    network = _loaded(weights, running, refining)
    info = network.info
    size = running.image_size or info.image_size
    longer = max(size) if isinstance(size, tuple) else require_side(size, info.anchors.strides[-1], str(weights))
    dataset = reading.open_for(weights, data, quiet=output.quiet)
    require_classes(weights, info.class_names, data, dataset.class_names)
    records = require_images(dataset, split)
    # An ensemble reads the images by itself: its windows are of the images as they are.
    reads = ReadConfig(running.batch, "none" if isinstance(network, Ensemble) else "auto", dataset.skip_bad)
    with counting("decoded", shown=not (output.quiet or output.json_lines or json), in_logs=False) as progress:
        validator = Validator(records, dataset.class_names, longer, reads, progress)
    dataset = without_images(dataset, split, validator.left_out)
    if not output.quiet:
        _print_skipped(dataset, split)
    if isinstance(network, Ensemble):
        result = validator.run_predictor(network, image_size=running.image_size)
    else:
        result = validator.run(network)
    if out is not None:
        result.save_plots(out)
    if json:
        print(json_format.dumps(result.to_json()))
    elif output.json_lines:
        facts = {"weights": weights, "data": data, "split": split, "image_size": size, "plots": out}
        write_line("validated", **facts, **result.to_json(), adjustments=count_adjustments(dataset))
    else:
        if not output.quiet:
            print("".join(f"{source.line()}\n" for source in sources_of(dataset)), end="")
        if isinstance(network, Ensemble) and not output.quiet:
            print(network.description(running.image_size))
        print(result.table())
        if out is not None:
            print(f"plots: {out}")
        if not output.quiet and sys.stdout.isatty():
            print(f"hint: to see what it finds:\n      anchorite predict {shlex.quote(str(weights))} IMAGES")


def _loaded(weights: Path, running: RunningOptions, refining: ViewOptions) -> Runtime | Ensemble:
    """What runs the weights: an ensemble for several views or weights or a pair of sides, the engine of an
    export, or torch."""
    from anchorite.devices import choose_device, choose_precision, keep_freed_memory
    from anchorite.export import is_export, load_export
    from anchorite.model import load_weights
    from anchorite.predict import TorchRuntime

    device = choose_device(running.device)
    precision = choose_precision(running.precision, device)
    keep_freed_memory()
    if refining.is_asked_for or isinstance(running.image_size, tuple):
        return refining.load(weights, running, cast("PrecisionName", precision.name))
    if is_export(weights):
        return load_export(weights, running.device, running.precision)
    return TorchRuntime(*load_weights(weights), device, precision=None, autocast_dtype=precision.dtype)


def _print_skipped(dataset: DatasetIndex, split: str) -> None:
    """What was left out, beside the output proper, which may be JSON."""
    from anchorite.inspect import KINDS, kind_of

    by_kind: dict[str, list[str]] = {}
    for one in dataset.adjustments:
        if one.kind == "skipped-bad" and one.split in (split, None):
            by_kind.setdefault(kind_of(one), []).append(f"{one.origin}: {one.detail}")
    for kind, lines in by_kind.items():
        print(f"{split}: {KINDS[kind].counted(len(lines))}, left out", file=sys.stderr)
        for line in lines[:_MOST_SKIPPED]:
            print(f"  {line}", file=sys.stderr)
        if len(lines) > _MOST_SKIPPED:
            print(f"  and {len(lines) - _MOST_SKIPPED} more", file=sys.stderr)


def benchmark(
    which: Annotated[
        Literal["step", "predict", "all", "loss", "loader", "epoch", "growth"] | None,
        Parameter(show_choices=False, help="step (training) or predict; without it, both."),
    ] = None,
    *,
    device: Annotated[str, DEVICE] = "auto",
    data: Annotated[Path | None, Parameter(help="Dataset whose first image is predicted; default: noise.")] = None,
    json: Annotated[Path | None, Parameter(help="File for everything measured, as JSON.")] = None,
    rounds: Annotated[PositiveInt | None, Parameter(help="Rounds of each measurement; default: 25.")] = None,
    out: Annotated[Path | None, Parameter(show=False)] = None,
    plain_memory: Annotated[bool, Parameter(help="Leave the C allocator as it is; training tunes it.")] = False,
    quick: Annotated[bool, Parameter(help="Small sizes, two rounds: shows that it runs, not how fast.")] = False,
) -> None:
    """Measure how fast this machine trains and predicts.

    Comparisons with yardsticks (loss, loader, epoch, growth) run from a checkout: python -m benchmarks --help.
    """
    from anchorite.benchmark import machine, predict_figures, step_figures
    from anchorite.devices import choose_device, keep_freed_memory

    if which not in (None, "step", "predict") or out is not None:
        raise InputError(
            f"benchmark {which or '--out'}: comparisons and curves run from a checkout of the source: "
            f"python -m benchmarks {which or 'growth --out FOLDER'}"
        )
    chosen = choose_device(device)
    is_kept = chosen.type == "cpu" and not plain_memory and keep_freed_memory()
    facts = {**machine(chosen), "freed_memory": "kept" if is_kept else "left to the allocator"}
    outcomes = {}
    if which != "predict":
        outcomes["step"] = step_figures(chosen, rounds, quick)
    if which != "step":
        outcomes["predict"] = predict_figures(chosen, rounds, quick, data)
    for name, figures in outcomes.items():
        print("\n".join(f"{name}: {figure.to_text()}" for figure in figures))
    warnings = ["quick: sizes and rounds are too small to say anything about speed"] if quick else []
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if json is not None:
        report = {
            "command": shlex.join(["anchorite", *sys.argv[1:]]),
            "warnings": warnings,
            "machine": facts,
            "outcomes": [
                {"name": name, "figures": [asdict(one) for one in figures]} for name, figures in outcomes.items()
            ],
        }
        write_text_atomically(json, json_format.dumps(report, indent=1) + "\n")
        print(json)
