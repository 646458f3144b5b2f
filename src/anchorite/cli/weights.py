"""Commands that turn weights into other files: `anchorite export` and `anchorite import`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.choices import ExportFormat
from anchorite.cli.folders import refuse_taken_file
from anchorite.cli.options import AllowOutside, IgnoreClass, LimitOptions, PositiveInt, ReadingOptions, Scores
from anchorite.errors import InputError
from anchorite.reading import filled

if TYPE_CHECKING:
    from anchorite.data import Record
    from anchorite.export import ExportRequest
    from anchorite.model import WeightsInfo

_MOST_COMPARED = 64  # images


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions:
    """What the file takes in, and in which number format it computes."""

    image_size: Annotated[PositiveInt | None, Parameter(help="Longer side of the input; default: as trained.")] = None
    static: Annotated[PositiveInt | None, Parameter(help="Fix the shape: so many images, square.")] = None
    uint8: Annotated[bool, Parameter(help="Input of bytes, height x width x RGB, as images are decoded.")] = False
    half: Annotated[bool, Parameter(help="Convolutions in float16; input and output stay.")] = False
    int8: Annotated[bool, Parameter(help="Convolutions in int8; needs --calibrate.")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class ProofOptions:
    """Images to calibrate, compare and measure on."""

    calibrate: Annotated[Path | None, Parameter(help="Dataset whose training images set int8's scales.")] = None
    calibration_images: Annotated[PositiveInt, Parameter(help="Most training images used for that.")] = 128
    verify: Annotated[Path | None, Parameter(help="Dataset to compare on; default: --calibrate, or scenes.")] = None
    split: Annotated[str, Parameter(help="Split of --verify.")] = "val"
    skip_bad: Annotated[bool, Parameter(help="Drop malformed label rows instead of refusing.")] = False
    allow_outside: AllowOutside = False
    ignore_class: IgnoreClass = None
    scores: Scores = "ignore"

    def records(self, data: Path | None, split: str, flag: str, weights: Path, info: WeightsInfo) -> Sequence[Record]:
        """The labelled images of a split, none without data; InputError where the weights know other classes."""
        from anchorite.evaluate import require_classes, require_images

        if data is None:
            return ()
        reading = ReadingOptions(None, self.skip_bad, self.allow_outside, self.ignore_class, self.scores)
        dataset = reading.open(data)
        require_classes(weights, info.class_names, data, dataset.class_names)
        return require_images(dataset, split, flag)


def export(
    weights: Annotated[Path, Parameter(help="Weights, such as runs/NAME/best.safetensors.")],
    *,
    format: Annotated[ExportFormat, Parameter(help="What to write.")] = "onnx",
    out: Annotated[Path | None, Parameter(help="New file (.onnx, .pt2 or .xml). Default: beside the weights.")] = None,
    file: FileOptions = FileOptions(),
    nms: Annotated[bool, Parameter(help="NMS inside, with the limits below; outputs detections.")] = False,
    limits: LimitOptions | None = None,
    proof: ProofOptions = ProofOptions(),
) -> None:
    """Write weights as ONNX, OpenVINO or torch.export, once their output is proved to be PyTorch's."""
    from anchorite import export as exporting
    from anchorite.evaluate import Validator
    from anchorite.model import load_weights

    if limits is not None and not nms:
        raise InputError(
            "--confidence, --iou-threshold and the like are built in with --nms; give it, or leave them out"
        )
    if file.int8 != (proof.calibrate is not None):
        raise InputError("--int8 and --calibrate DATA belong together; give both or none")
    suppression = (limits or LimitOptions()).config() if nms else None
    request = exporting.ExportRequest(
        format, file.image_size, file.half, file.uint8, suppression, file.static, file.int8
    )
    target = out or _beside(weights, request)
    if target.suffix != exporting.SUFFIXES[format]:
        raise InputError(f"--out {target}: a file of format {format} ends in {exporting.SUFFIXES[format]}")
    for path in [target, target.with_suffix(".bin")] if format == "openvino" else [target]:
        refuse_taken_file(path)
    exporting.need_packages(format)
    detector, info = load_weights(weights)
    described = exporting.export_info(info, request)
    records = proof.records(proof.verify or proof.calibrate, proof.split, "--split", weights, info)
    training = proof.records(proof.calibrate, "train", "--calibrate, split", weights, info)
    compared = (
        exporting.batches_of(exporting.spread(records, _MOST_COMPARED), described)
        if records
        else exporting.drawn_batches(described)
    )
    calibration = exporting.batches_of(exporting.spread(training, proof.calibration_images), described)
    built = exporting.build(detector, info, request, list(compared), calibration, target)
    measured = None
    if records:
        validator = Validator(records, info.class_names, described.weights.image_size)
        measured = exporting.measure(detector, built.dense, validator, str(target))
    facts = {"info": described.weights, "export": built.export, "limits": built.export.suppression}
    facts |= {"parity": built.parity, "measured": measured, "num_measured": len(records), "num_bytes": built.num_bytes}
    print(filled("cli", "export", facts))
    for path in exporting.write(target, built):
        print(f"written:  {path}")
    if format != "torch-export":
        print(f"next:     anchorite predict {shlex.quote(str(target))} SOURCE...")


def _beside(weights: Path, request: ExportRequest) -> Path:
    """A name beside the weights that says what is special about the export."""
    from anchorite.export import SUFFIXES

    special = {
        "fp16": request.half,
        "int8": request.int8,
        "uint8": request.takes_bytes,
        "nms": request.suppression is not None,
        f"static{request.fixed_batch}": request.fixed_batch is not None,
        f"{request.image_size}px": request.image_size is not None,
    }
    name = "-".join([weights.stem, *(word for word, is_so in special.items() if is_so)])
    return weights.with_name(name + SUFFIXES[request.format])


def import_weights(
    source: Annotated[Path, Parameter(help="Checkpoint (.pt) of the original family, sizes n to x and n6 to x6.")],
    out: Annotated[Path, Parameter(help="New weight file, such as weights/start.safetensors.")],
) -> None:
    """Turn a checkpoint of the original family into weights, without running anything of it."""
    from anchorite.model import import_checkpoint, save_weights

    refuse_taken_file(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: weights are safetensors; name a file {out.with_suffix('.safetensors').name}")
    imported = import_checkpoint(source)
    save_weights(out, imported.detector, imported.info)
    facts = {"source": str(source), "imported": imported, "out": str(out), "quoted": shlex.quote(str(out))}
    print(filled("cli", "import", {**facts, "info": imported.info}))
