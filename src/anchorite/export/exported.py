"""What an exported file says of itself, and the runtime that runs it as a detector in torch is run.

The metadata is text by text under clear keys, and read back as if a stranger had written it.
Legend: B images, H, W of the input in pixels, N anchor cells of all levels, K classes, M most detections of an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from torch import Tensor

import anchorite
from anchorite.errors import InputError
from anchorite.model import WeightsInfo
from anchorite.model.sizes import plan
from anchorite.model.weights import DetectorHeader, header_fields
from anchorite.predict import BatchDetections, PredictConfig, decoded_detections, images_not_finite

FORMAT_VERSION = 1  # of the metadata that this release writes, and the newest that it reads

PREFIX = "anchorite."
INPUT = "images"
DENSE_OUTPUTS = ("boxes", "scores")
SUPPRESSED_OUTPUTS = ("detections", "counts")

ExportPrecision = Literal["fp32", "fp16", "int8"]
InputLayout = Literal["float32 NCHW RGB 0..1", "uint8 NHWC RGB"]
Compute = Callable[[NDArray[np.generic]], Sequence[NDArray[np.generic]]]

_MAX_CHARACTERS = 2_000_000
_Side = Annotated[int, Field(gt=0, le=65_536)]


class _Metadata(DetectorHeader):
    """The metadata: texts as they are, all else as JSON, under the names of these fields behind `PREFIX`."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)
    newest = FORMAT_VERSION

    size: str = Field(alias="model")
    image_size: _Side
    input: InputLayout
    precision: ExportPrecision
    fixed_shape: Annotated[tuple[_Side, _Side, _Side], Field(strict=False)] | None
    outputs: str = ""
    suppression: PredictConfig | None
    written_by: str = ""


KEYS = tuple(field.alias or name for name, field in _Metadata.model_fields.items())
"""All keys, each of which a file has with `PREFIX` before it."""
_TEXTS = ("model", "input", "precision", "outputs", "written_by")


@dataclass(frozen=True)
class ExportInfo:
    """What the file holds beside the network.

    weights: as in a weight file; input: type and layout of the images; precision: number format of the convolutions;
    fixed_shape: (B, H, W) where they are fixed; suppression: the limits of the suppression inside, if there is one.
    """

    weights: WeightsInfo
    input: InputLayout = "float32 NCHW RGB 0..1"
    precision: ExportPrecision = "fp32"
    fixed_shape: tuple[int, int, int] | None = None
    suppression: PredictConfig | None = None

    @property
    def takes_bytes(self) -> bool:
        """Whether images go in as uint8 (B, H, W, 3), not as float32 (B, 3, H, W) in 0..1."""
        return self.input.startswith("uint8")

    @property
    def outputs(self) -> tuple[str, str]:
        """Names of the outputs."""
        return DENSE_OUTPUTS if self.suppression is None else SUPPRESSED_OUTPUTS


def to_texts(info: ExportInfo) -> dict[str, str]:
    """The metadata as texts by key, ASCII."""
    values = _Metadata(
        format_version=FORMAT_VERSION,
        **header_fields(info.weights),
        input=info.input,
        precision=info.precision,
        fixed_shape=info.fixed_shape,
        outputs=", ".join(info.outputs),
        suppression=info.suppression,
        written_by=f"anchorite {anchorite.__version__}",
    ).model_dump(by_alias=True)
    return {PREFIX + key: value if key in _TEXTS else json.dumps(value) for key, value in values.items()}


def from_texts(path: object, texts: Mapping[str, str]) -> ExportInfo:
    """The metadata of a file; InputError naming it when it is not ours, of a newer format, or makes no sense."""
    ours = {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}
    if "format_version" not in ours:
        raise InputError(
            f"{path}: no metadata {PREFIX}format_version, so not exported by anchorite; "
            "give a file that `anchorite export` wrote, or weights (.safetensors)"
        )
    if sum(map(len, ours.values())) > _MAX_CHARACTERS:
        raise InputError(f"{path}: its metadata has more than {_MAX_CHARACTERS} characters; no export of ours has")
    values: dict[str, Any] = {}
    for key in KEYS:
        text = ours.get(key, "" if key in _TEXTS else "null")
        try:
            values[key] = text if key in _TEXTS else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: metadata {PREFIX}{key} is no JSON: {error}") from error
    try:
        read = _Metadata.read(values)
        plan(read.size)  # refuses any other size
        weights, fixed = read.info(), read.fixed_shape
        if fixed is not None and fixed[1:] != (read.image_size, read.image_size):
            raise ValueError(f"fixed_shape {fixed} is not of image_size {read.image_size}")
    except ValueError as error:
        raise InputError(f"{path}: metadata of anchorite: {error}") from error
    return ExportInfo(weights, read.input, read.precision, fixed, read.suppression)


class ExportedRuntime:
    """What `Predictor` and `Validator` run when weights are an export: a `Runtime`, whose attributes it has.

    path: for messages; export: what the file says; engine: what computes it, for people; compute: from the input, as
    the file takes it, to its outputs in their order.
    """

    def __init__(self, path: object, export: ExportInfo, engine: str, compute: Compute) -> None:
        self.path, self.export, self._compute = path, export, compute
        self.info, self.name = export.weights, f"{engine} {export.precision}"
        self.fixed_side = None if export.fixed_shape is None else export.fixed_shape[1]
        self.least_confidence = 0.0 if export.suppression is None else export.suppression.confidence

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of uint8 RGB images (B, 3, H, W), any B; raises InputError when they have other shapes than ours."""
        if self.export.fixed_shape is None:
            return self._outputs_of(images)
        batch = self.export.fixed_shape[0]
        parts = [self._outputs_of(filled(part, batch)) for part in images.split(batch)]
        return tuple(torch.cat(of_parts)[: len(images)] for of_parts in zip(*parts, strict=True))

    def _outputs_of(self, images: Tensor) -> tuple[Tensor, ...]:
        computed = self._compute(as_input(images, self.export.takes_bytes).numpy())
        outputs = tuple(torch.from_numpy(np.ascontiguousarray(one)) for one in computed)
        shapes = tuple(tuple(output.shape) for output in outputs)
        batch, (height, width), anchors = len(images), images.shape[2:], self.info.anchors
        expected: tuple[tuple[int, ...], ...]
        if self.export.suppression is None:
            cells = sum(anchors.num_anchors * (height // stride) * (width // stride) for stride in anchors.strides)
            expected = (batch, cells, 4), (batch, cells, len(self.info.class_names))
        else:
            expected = (batch, self.export.suppression.max_detections, 6), (batch,)
        if shapes != expected:
            raise InputError(f"{self.path}: its outputs are {shapes} where its metadata means {expected}; export anew")
        return outputs

    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """The detections; raises InputError where outputs are not finite or the file's own limits exclude these."""
        if images_not_finite(outputs):
            raise InputError(f"{self.path}: its output is not finite; export it anew, or as fp32")
        first, second = outputs
        built_in = self.export.suppression
        if built_in is None:
            return decoded_detections(first, second, config)
        problems = [
            f"{name.replace('_', '-')} {getattr(built_in, name)} is built in, {getattr(config, name)} was requested"
            for name in ("iou_threshold", "class_agnostic", "multi_label")
            if getattr(built_in, name) != getattr(config, name)
        ]
        if config.confidence < built_in.confidence:
            problems.append(f"confidence {built_in.confidence} is the minimum, {config.confidence} was requested")
        if config.max_detections > built_in.max_detections:
            problems.append(f"max-detections {built_in.max_detections} is the most, {config.max_detections} was asked")
        if problems:
            raise InputError(
                f"{self.path}: has its suppression inside: {'; '.join(problems)}. "
                "Ask for what is built in, or export without --nms"
            )
        counts = second.to(torch.int64).clamp(0, first.shape[1])
        # What is less sure comes later and suppressed nothing that is surer: leaving it out now is as good as before.
        index = torch.arange(first.shape[1])
        valid = (index < counts[:, None]) & (index < config.max_detections) & (first[..., 4] >= config.confidence)
        rows = first[valid]
        return BatchDetections(rows[:, :4], rows[:, 4], rows[:, 5].to(torch.int64), valid.sum(dim=1))


def as_input(images: Tensor, takes_bytes: bool) -> Tensor:
    """uint8 RGB images (B, 3, H, W) as an exported network takes them, contiguous."""
    if takes_bytes:
        return images.permute(0, 2, 3, 1).contiguous()
    return images.to(torch.float32).div_(255).contiguous()


def filled(images: Tensor, batch: int) -> Tensor:
    """Images (B, ...) with the last one repeated up to `batch`."""
    missing = batch - len(images)
    return images if not missing else torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
