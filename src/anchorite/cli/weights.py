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
from anchorite.cli.options import AllowOutside, LimitOptions, PositiveInt
from anchorite.errors import InputError
from anchorite.reading import one_line

if TYPE_CHECKING:
    from anchorite.data import Record
    from anchorite.export import Built, ExportRequest, Measured
    from anchorite.model import WeightsInfo

_MOST_COMPARED = 64  # images
_MOST_NAMES = 5


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions:
    """What the file takes in, and in which number format it computes."""

    image_size: Annotated[PositiveInt | None, Parameter(help="Longer side of the input; default: as trained.")] = None
    static: Annotated[PositiveInt | None, Parameter(help="Fix the shape: so many images, square, of --image-size.")] = (
        None
    )
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

    def records(self, data: Path | None, split: str, flag: str, weights: Path, info: WeightsInfo) -> Sequence[Record]:
        """The labelled images of a split, none without data; InputError where the weights know other classes."""
        from anchorite.data import open_dataset
        from anchorite.evaluate import require_classes, require_images

        if data is None:
            return ()
        dataset = open_dataset(data, None, self.skip_bad, allow_outside=self.allow_outside)
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
    print("\n".join(_export_lines(built, measured, len(records))))
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


def _export_lines(built: Built, measured: Measured | None, num_measured: int) -> list[str]:
    export, parity, info = built.export, built.parity, built.export.weights
    shape = f"any number of images, sides in multiples of {info.anchors.strides[-1]}"
    if export.fixed_shape is not None:
        shape = " x ".join(map(str, export.fixed_shape)) + " (images, height, width)"
    inside = ""
    if (limits := export.suppression) is not None:
        inside = f"; suppression inside: confidence {limits.confidence:g}, IoU {limits.iou_threshold:g}, "
        inside += f"{limits.max_detections} detections"
        inside += ", class agnostic" * limits.class_agnostic + ", multi label" * limits.multi_label
    found = (
        f"boxes within {parity.box_px:.2g} px ({parity.box_share:.1g} of their side), scores within {parity.score:.1g}"
    )
    images = f"{parity.num_images} {'drawn scenes' if measured is None else 'images'}"
    lines = [
        f"network:  size {info.size}, {len(info.class_names)} classes, {info.image_size} px, {export.precision}",
        f"input:    images, {export.input}; {shape}",
        f"outputs:  {', '.join(export.outputs)}{inside}",
        f"compared: with PyTorch on {images}, {parity.num_cells} anchor cells: {found}",
    ]
    if parity.found is not None:
        few = "; give --verify DATA to compare some" if parity.found == 0 else ""
        lines.append(f"          {parity.found} detections of the suppression inside, all as ours{few}")
    if measured is not None:
        lines.append(
            f"measured: on {num_measured} images, mAP50-95 {measured.export_map:.4f} "
            f"(PyTorch {measured.torch_map:.4f}: {-measured.cost:+.4f}), "
            f"mAP50 {measured.export_map50:.4f} (PyTorch {measured.torch_map50:.4f})"
        )
    return [*lines, f"size:     {built.num_bytes / 1e6:.1f} MB"]


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
    info, count = imported.info, len(imported.info.class_names)
    other = "; its model is left out" if imported.has_both else ""
    part = f"ema, the average over training{other}" if imported.part == "ema" else imported.part
    names = ", ".join(info.class_names[:_MOST_NAMES]) + (", ..." if count > _MOST_NAMES else "")
    origin = "of the checkpoint" if imported.names_are_stored else "numbers, for the checkpoint has none"
    anchors = " | ".join(" ".join(f"{w:g},{h:g}" for w, h in level) for level in info.anchors.sizes_px)
    size = "of the checkpoint" if imported.image_size_is_stored else "the usual one, for the checkpoint does not say"
    print(
        f"found:   size {info.size} in {one_line(str(source))}, {imported.num_tensors} tensors; nothing of it was run"
    )
    print(f"from:    {part}")
    print(f"classes: {count}, {origin}: {one_line(names)}")
    print(f"anchors: {anchors} px at strides {', '.join(map(str, info.anchors.strides))}")
    print(f"image:   {info.image_size} px, {size}")
    print(f"written: {one_line(str(out))}")
    print(f"next:    anchorite validate {one_line(shlex.quote(str(out)))} DATA")
