"""What a backbone of the transformers library is built of, read as if a stranger had written it.

Only families that are listed here are taken, and of their settings only those that decide the shape of the network;
all of them are bounded. Nothing else of a config.json, such as names of code, of other repositories or of kernels to
fetch, ever reaches the library. What draws random numbers in training (dropout, stochastic depth) is left out, too: a
run must be the same whether it was interrupted or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from anchorite.errors import InputError
from anchorite.reading import printable, shorten

_Width = Annotated[int, Field(ge=1, le=8192)]
_Depth = Annotated[int, Field(ge=1, le=100)]
# Lists, as JSON has them, are taken for tuples.
_Widths = Annotated[tuple[_Width, ...], Field(strict=False, min_length=1, max_length=6)]
_Depths = Annotated[tuple[_Depth, ...], Field(strict=False, min_length=1, max_length=6)]
_WindowSizes = Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(strict=False, max_length=6)]
_Side = Annotated[int, Field(ge=1, le=4096)]
_Patch = Annotated[int, Field(ge=1, le=64)]
_Window = Annotated[int, Field(ge=1, le=32)]
_Small = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Activation = Literal["relu", "gelu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh"]

_NUM_SHOWN = 5


class _Family(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    depths: _Depths

    @model_validator(mode="after")
    def _alike(self) -> _Family:
        """All lists are of one number of stages."""
        lengths = {name: len(value) for name, value in self if isinstance(value, tuple)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"lists of different lengths: {lengths}")
        return self


class ResNet(_Family):
    """Residual networks of convolutions with batch normalisation."""

    model_type: Literal["resnet"]
    embedding_size: _Width = 64
    hidden_sizes: _Widths = (256, 512, 1024, 2048)
    depths: _Depths = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: _Activation = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


class ConvNext(_Family):
    """Convolutions of 7 x 7 within channels, with layer normalisation."""

    model_type: Literal["convnext"]
    patch_size: _Patch = 4
    hidden_sizes: _Widths = (96, 192, 384, 768)
    depths: _Depths = (3, 3, 9, 3)
    hidden_act: _Activation = "gelu"
    layer_norm_eps: _Small = 1e-12
    layer_scale_init_value: _Small = 1e-6


class ConvNextV2(_Family):
    """ConvNext with a normalisation of responses in the place of its scales."""

    model_type: Literal["convnextv2"]
    patch_size: _Patch = 4
    hidden_sizes: _Widths = (96, 192, 384, 768)
    depths: _Depths = (3, 3, 9, 3)
    hidden_act: _Activation = "gelu"
    layer_norm_eps: _Small = 1e-12


class _Windowed(_Family):
    image_size: _Side = 224
    patch_size: _Patch = 4
    embed_dim: _Width = 96
    depths: _Depths = (2, 2, 6, 2)
    num_heads: _Widths = (3, 6, 12, 24)
    window_size: _Window = 7
    mlp_ratio: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)] = 4.0
    qkv_bias: bool = True
    hidden_act: _Activation = "gelu"
    use_absolute_embeddings: Literal[False] = False
    layer_norm_eps: _Small = 1e-5


class Swin(_Windowed):
    """Attention within windows that are shifted from layer to layer."""

    model_type: Literal["swin"]


class SwinV2(_Windowed):
    """Swin with a scaled cosine attention and positions by a small network."""

    model_type: Literal["swinv2"]
    pretrained_window_sizes: _WindowSizes = (0, 0, 0, 0)


BackboneConfig = Annotated[ResNet | ConvNext | ConvNextV2 | Swin | SwinV2, Field(discriminator="model_type")]
"""The settings of one backbone."""

WINDOWED = (Swin, SwinV2)
"""Families whose program depends on the size of the images."""

_FAMILIES: Mapping[str, type[_Family]] = MappingProxyType(
    {"resnet": ResNet, "convnext": ConvNext, "convnextv2": ConvNextV2, "swin": Swin, "swinv2": SwinV2}
)
_ADAPTER: TypeAdapter[Any] = TypeAdapter(BackboneConfig)


def config_from_foreign(values: Mapping[str, Any], where: object) -> BackboneConfig:
    """The settings of a config.json of the library; InputError for another family or settings out of bounds."""
    family = _FAMILIES.get(str(values.get("model_type")))
    if family is None:
        raise InputError(
            f"{where}: model_type {shorten(values.get('model_type'))} cannot be a backbone here; "
            f"take one of {', '.join(_FAMILIES)}"
        )
    if values.get("num_channels", 3) != 3:
        raise InputError(f"{where}: num_channels {shorten(values['num_channels'])}: images have 3")
    return config_from_noted({name: values[name] for name in family.model_fields if name in values}, where)


def config_from_noted(values: Mapping[str, Any], where: object) -> BackboneConfig:
    """The settings of what a weight file or a run noted; InputError where it makes no sense."""
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        told = "; ".join(
            f"{printable('.'.join(map(str, one['loc'][1:])) or 'all of it', 60)}: {printable(one['msg'], 200)} "
            f"(got {shorten(one['input'])})"
            for one in problems[:_NUM_SHOWN]
        )
        raise InputError(f"{where}: this backbone cannot be built: {told}") from None
