"""What an exported file says of itself: text by text under clear keys, read back as if a stranger had written it.

Legend: B images, N places, K classes, M most detections of an image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import anchorite
from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model import SIZES, WeightsInfo
from anchorite.predict import PredictConfig

FORMAT_VERSION = 1
"""Version of the metadata that this release writes, and the newest that it reads."""

PREFIX = "anchorite."
INPUT = "images"
DENSE_OUTPUTS = ("boxes", "scores")
SUPPRESSED_OUTPUTS = ("detections", "counts")

KEYS = (
    "format_version",
    "model",
    "class_names",
    "anchors",
    "strides",
    "image_size",
    "input",
    "precision",
    "fixed_shape",
    "outputs",
    "suppression",
    "written_by",
)
"""All keys, each of which a file has with `PREFIX` before it."""

_MOST_CHARACTERS = 2_000_000
_JSON_KEYS = ("class_names", "anchors", "strides", "fixed_shape", "suppression", "image_size", "format_version")

PrecisionName = Literal["fp32", "fp16", "int8"]
InputLayout = Literal["float32 NCHW RGB 0..1", "uint8 NHWC RGB"]


class _Texts(BaseModel):
    """The metadata once its JSON is read."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    format_version: int
    model: str
    class_names: Annotated[list[str], Field(min_length=1, max_length=100_000)]
    anchors: Annotated[list[Annotated[list[float], Field(max_length=64)]], Field(max_length=8)]
    strides: Annotated[list[int], Field(max_length=8)]
    image_size: Annotated[int, Field(gt=0, le=65_536)]
    input: InputLayout
    precision: PrecisionName
    fixed_shape: Annotated[list[Annotated[int, Field(gt=0, le=65_536)]], Field(min_length=3, max_length=3)] | None
    suppression: PredictConfig | None


@dataclass(frozen=True)
class ExportInfo:
    """What the file holds beside the network.

    weights: as in a weight file; input: type and layout of the images; precision: number format of the convolutions;
    fixed_shape: (B, H, W) where they are fixed; suppression: the limits of the suppression inside, if there is one.
    """

    weights: WeightsInfo
    input: InputLayout = "float32 NCHW RGB 0..1"
    precision: PrecisionName = "fp32"
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
    anchors = info.weights.anchors
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": info.weights.size,
        "class_names": list(info.weights.class_names),
        "anchors": anchors.to_rows(),
        "strides": list(anchors.strides),
        "image_size": info.weights.image_size,
        "input": info.input,
        "precision": info.precision,
        "fixed_shape": info.fixed_shape,
        "outputs": ", ".join(info.outputs),
        "suppression": None if info.suppression is None else info.suppression.model_dump(),
        "written_by": f"anchorite {anchorite.__version__}",
    }
    assert tuple(values) == KEYS
    return {
        PREFIX + key: json.dumps(value, ensure_ascii=True) if key in _JSON_KEYS else value
        for key, value in values.items()
    }


def from_texts(path: object, texts: Mapping[str, str]) -> ExportInfo:
    """The metadata of a file; InputError naming it when it is not ours, of a newer format, or makes no sense."""
    ours = {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}
    if "format_version" not in ours:
        raise InputError(
            f"{path}: no metadata {PREFIX}format_version, so not exported by anchorite; "
            "give a file that `anchorite export` wrote, or weights (.safetensors)"
        )
    if sum(map(len, ours.values())) > _MOST_CHARACTERS:
        raise InputError(f"{path}: its metadata has more than {_MOST_CHARACTERS} characters; no export of ours has")
    values: dict[str, Any] = dict(ours)
    try:
        for key in _JSON_KEYS:
            values[key] = json.loads(ours.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: metadata {PREFIX}{key} is no JSON: {error}") from error
    _check_version(path, values["format_version"])
    try:
        read = _Texts.model_validate(values)
        if read.model not in SIZES:
            raise ValueError(f"no model size {read.model!r}; there are {', '.join(SIZES)}")
        sizes_px = tuple(tuple(zip(row[::2], row[1::2], strict=True)) for row in read.anchors)
        weights = WeightsInfo(
            read.model, tuple(read.class_names), AnchorSet(sizes_px, tuple(read.strides)), read.image_size
        )
    except ValueError as error:
        raise InputError(f"{path}: metadata of anchorite: {error}") from error
    fixed = None if read.fixed_shape is None else (read.fixed_shape[0], read.fixed_shape[1], read.fixed_shape[2])
    if fixed is not None and fixed[1:] != (read.image_size, read.image_size):
        raise InputError(f"{path}: metadata of anchorite: fixed_shape {fixed} is not of image_size {read.image_size}")
    return ExportInfo(weights, read.input, read.precision, fixed, read.suppression)


def _check_version(path: object, version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{path}: metadata {PREFIX}format_version is {version!r}, no version")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: exported in format {version}, but this release reads up to {FORMAT_VERSION}; upgrade anchorite"
        )
