"""A backbone of the transformers library instead of our own: its settings, where it comes from, and the module.

Settings and files may be a stranger's. Only the families below are taken, and of their settings only those that decide
the shape of the network, all of them bounded; names of code, of other repositories or of kernels never reach the
library. A folder holds config.json, model.safetensors and, mostly, preprocessor_config.json: these three are read, as
data, and a pickle is refused. Only `download_backbone` ever asks the network for anything.

Legend: B images, C channels, H, W of the network input. P3 is the map of stride 8, P4 of 16, and so on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from anchorite.errors import InputError, StorageError, UnsafeFileError, import_extra
from anchorite.model.blocks import ConvBlock
from anchorite.model.sizes import Plan
from anchorite.reading import printable, read_json, read_limited, shorten, validation_faults

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CONFIG, _WEIGHTS, _PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_FILES = f"{_CONFIG}, {_WEIGHTS} and {_PREPROCESSOR}"
_MAX_CONFIG_BYTES = 2_000_000
_PREFIXES = ("hf:", "hf-config:")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PROBE_SIDE_PX = 256
_MAX_BYTES = 4_000_000_000  # of weights; the largest backbones in use have 2.6
_MAX_BYTES_DERIVED = 256_000_000  # of what a file of weights does not have, such as tables of positions
# What draws random numbers in training is off: a run must be the same whether it was interrupted or not.
_NOT_RANDOM = {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# What a backbone has and the file of a classifier may lack: normalisation of its maps, and counts of batches.
_IS_NEW = re.compile(r"^hidden_states_norms\.|num_batches_tracked$")

# Settings

_Width = Annotated[int, Field(ge=1, le=8192)]
# Not strict: a list, as JSON has it, is taken for a tuple.
_Widths = Annotated[tuple[_Width, ...], Field(strict=False, min_length=1, max_length=6)]
_Depths = Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], Field(strict=False, min_length=1, max_length=6)]
_Share = Annotated[float, Field(ge=0, le=1)]

_CONVNEXT = ("patch_size", "hidden_sizes", "depths", "hidden_act", "layer_norm_eps")
_SWIN = (
    "image_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias",
    "hidden_act", "use_absolute_embeddings", "layer_norm_eps",
)  # fmt: skip
_SETTINGS: Mapping[str, Sequence[str]] = {
    "resnet": (
        "embedding_size", "hidden_sizes", "depths", "layer_type", "hidden_act", "downsample_in_first_stage",
        "downsample_in_bottleneck",
    ),
    "convnext": (*_CONVNEXT, "layer_scale_init_value"),
    "convnextv2": _CONVNEXT,
    "swin": _SWIN,
    "swinv2": (*_SWIN, "pretrained_window_sizes"),
}  # fmt: skip
"""The families that are taken, and the settings of each that decide the shape of the network."""

WINDOWED = ("swin", "swinv2")
"""Families whose program depends on the size of the images."""


class BackboneConfig(BaseModel):
    """The settings of one backbone: every one that its family has; those of other families are None."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    depths: _Depths
    model_type: Literal["resnet", "convnext", "convnextv2", "swin", "swinv2"]
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    patch_size: Annotated[int, Field(ge=1, le=64)] | None = None
    embedding_size: _Width | None = None
    embed_dim: _Width | None = None
    hidden_sizes: _Widths | None = None
    num_heads: _Widths | None = None
    window_size: Annotated[int, Field(ge=1, le=32)] | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=16)] | None = None
    qkv_bias: bool | None = None
    layer_type: Literal["basic", "bottleneck"] | None = None
    hidden_act: Literal["relu", "gelu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh"] | None = None
    downsample_in_first_stage: bool | None = None
    downsample_in_bottleneck: bool | None = None
    use_absolute_embeddings: Literal[False] | None = None
    layer_norm_eps: _Share | None = None
    layer_scale_init_value: _Share | None = None
    pretrained_window_sizes: (
        Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(strict=False, max_length=6)] | None
    ) = None

    @model_validator(mode="after")
    def _of_one_family(self) -> BackboneConfig:
        stated = self._stated()
        if stated.keys() != {"model_type", *_SETTINGS[self.model_type]}:
            raise ValueError(f"a {self.model_type} has the settings {', '.join(_SETTINGS[self.model_type])}")
        lengths = {name: len(value) for name, value in stated.items() if isinstance(value, tuple)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"lists of different lengths: {lengths}")
        return self

    @model_serializer
    def _stated(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}


def config_of_library(values: Mapping[str, Any], where: object) -> BackboneConfig:
    """The settings of a config.json, the library's own where it states none.

    Raises InputError for another family or settings out of bounds.
    """
    family = str(values.get("model_type"))
    if family not in _SETTINGS:
        raise InputError(
            f"{where}: model_type {shorten(values.get('model_type'))} cannot be a backbone here; "
            f"take one of {', '.join(_SETTINGS)}"
        )
    if values.get("num_channels", 3) != 3:
        raise InputError(f"{where}: num_channels {shorten(values['num_channels'])}: images have 3")
    settings = import_extra("transformers", "backbones").AutoConfig.for_model(family).to_dict() | values
    return parse_backbone_config({name: settings[name] for name in ("model_type", *_SETTINGS[family])}, where)


def parse_backbone_config(values: Mapping[str, Any], where: object) -> BackboneConfig:
    """The settings in a weight file or a run; InputError where they make no sense."""
    try:
        return BackboneConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"{where}: this backbone cannot be built: {validation_faults(error)}") from None


_Mean = Annotated[float, Field(ge=-10, le=10)]
_Deviation = Annotated[float, Field(ge=1e-3, le=10)]


class _Preprocessor(BaseModel):
    """What preprocessor_config.json says of images in 0..1; ImageNet's numbers where it says nothing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    do_normalize: bool = True
    image_mean: Annotated[tuple[_Mean, _Mean, _Mean], Field(strict=False)] = IMAGENET_MEAN
    image_std: Annotated[tuple[_Deviation, _Deviation, _Deviation], Field(strict=False)] = IMAGENET_STD


# Folders and downloads


@dataclass(frozen=True)
class HFBackboneSource:
    """A backbone to begin with. mean, std: of red, green and blue, for images in 0..1; description: a sentence on it.

    tensors: as they are named in its file, where; None for random ones, or for those of a checkpoint to come; sha256:
    of that file, in hexadecimal digits, else empty.
    """

    config: BackboneConfig
    description: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    tensors: Mapping[str, Tensor] | None = None
    where: str = ""
    sha256: str = ""


def check_source(source: str) -> str:
    """The source of a backbone as it was given; InputError when it is written in no way that is known."""
    if not source.startswith(_PREFIXES) or source in _PREFIXES:
        raise InputError(
            f"{shorten(source)}: write hf:FOLDER for a backbone with its weights, or hf-config:FOLDER for one with "
            "random weights"
        )
    return source


def read_backbone(source: str) -> HFBackboneSource:
    """The backbone of "hf:NAME", or of "hf-config:NAME" with random weights; the network is never asked.

    NAME is a folder, or the name of a model that was downloaded before. Raises InputError when there is none or it is
    none that can be used here, UnsafeFileError when its weights are a pickle alone.
    """
    import_extra("transformers", "backbones")
    prefix, _, name = check_source(source).partition(":")
    folder = _folder_of(source, name)
    config = config_of_library(read_json(folder / _CONFIG, _MAX_CONFIG_BYTES), folder / _CONFIG)
    file = folder / _PREPROCESSOR
    try:
        stated = _Preprocessor.model_validate(read_json(file, _MAX_CONFIG_BYTES) if file.is_file() else {})
    except ValidationError as error:
        raise InputError(f"{file}: {validation_faults(error)}; images are in 0..1 before") from None
    mean, std = (stated.image_mean, stated.image_std) if stated.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    description = f"backbone {config.model_type} of {printable(str(folder))}"
    if prefix == "hf-config":
        return HFBackboneSource(config, f"{description}, random weights", mean, std)
    file = folder / _WEIGHTS
    if not file.is_file():
        other = f"hf-config:{name} starts with random weights"
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UnsafeFileError(
                f"{folder}: no {_WEIGHTS} but {printable(pickles[0], 100)}, a pickle, which could run code when read, "
                f"so it is not read; give a folder with {_WEIGHTS}; {other}"
            )
        raise InputError(f"{folder}: no {_WEIGHTS}, in one piece; give a folder that has it; {other}")
    tensors, digest = _read_tensors(file)
    return HFBackboneSource(config, f"{description} (SHA-256 {digest[:12]}...)", mean, std, tensors, str(file), digest)


def download_backbone(source: str) -> None:
    """Fetch what `read_backbone` needs of a model of huggingface.co into the cache of its client library.

    Nothing is fetched for a folder. Raises InputError when the hub has no such model, or none with safetensors;
    StorageError when it cannot be reached.
    """
    import_extra("transformers", "backbones")
    prefix, _, name = check_source(source).partition(":")
    if Path(name).exists():
        return
    import huggingface_hub as hub

    wanted = [_CONFIG, _WEIGHTS] if prefix == "hf" else [_CONFIG]
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=[*wanted, _PREPROCESSOR]))
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise InputError(f"--backbone {source}: huggingface.co has no such model, or it is not public") from error
    except Exception as error:  # of whichever library carries the bytes
        raise StorageError(
            f"--backbone {source}: cannot be downloaded: {printable(str(error), 300)}; "
            f"try again, or give a folder with {_FILES}"
        ) from error
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        raise InputError(
            f"--backbone {source}: the model has no {missing[0]}; a pickle is not taken, take another model"
        )


def _folder_of(source: str, name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"backbone {source}: {name} is a file; give the folder that it lies in")
    import huggingface_hub as hub

    with suppress(hub.errors.LocalEntryNotFoundError, hub.errors.HFValidationError):
        return Path(hub.snapshot_download(name, local_files_only=True))
    raise InputError(
        f"backbone {shorten(source, 200)}: no such folder (looked from {Path.cwd()}), and no model that was downloaded "
        f"before; nothing is downloaded unasked. Give a folder with {_FILES}, or add --allow-download to fetch these "
        "from huggingface.co"
    )


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors, floating point ones as float32, and the SHA-256 of the file."""
    content = read_limited(path, _MAX_BYTES)  # not mapped: whoever cuts it off later would take the process with it
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise InputError(
            f"{path}: cut off or no safetensors file ({printable(str(error), 200)}); copy it again"
        ) from error
    for name, one in tensors.items():
        if one.is_floating_point():
            tensors[name] = one.float()
            if not bool(one.isfinite().all()):
                raise InputError(f"{path}: {printable(name, 100)} holds values that are infinite or no numbers")
    return tensors, hashlib.sha256(content).hexdigest()


# The module


class HFBackbone(nn.Module):
    """Images to the maps P3 to P5 (or P6) in the widths of a plan, by a backbone of the library.

    Its children are `body` (the library's), `projections` (1 x 1, to the plan's widths) and, where the body has no
    map of stride 64 for P6, `coarser`. Images in 0..1 are normalised with `mean` and `std`, which are buffers.
    Raises InputError where the library is missing, or there is no such backbone with maps of the plan's strides.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, plan: Plan, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.body = _build_body(config, _choose_stages(config, plan.strides))
        self.projections = nn.ModuleDict()
        for level, width in zip(plan.levels, self.body.channels, strict=False):
            self.projections[f"p{level}"] = ConvBlock(width, plan.widths[level])
        is_whole, (width, last_width) = len(self.projections) == len(plan.levels), plan.output_widths[-2:]
        self.coarser = None if is_whole else ConvBlock(width, last_width, kernel=3, stride=2)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps (B, C_l, H / s_l, W / s_l) of `images` (B, 3, H, W), fine to coarse."""
        found = self.body((images - self.mean) / self.std).feature_maps
        maps = [project(one) for one, project in zip(found, self.projections.values(), strict=True)]
        return maps if self.coarser is None else [*maps, self.coarser(maps[-1])]

    @torch.no_grad()
    def start_from(self, source: HFBackboneSource) -> None:
        """Take the normalisation of `source` and, where it has some, its tensors, in any naming of the library's.

        They may be those of a model with a head. Raises InputError when tensors are missing or of other shapes.
        """
        self.mean.copy_(torch.tensor(source.mean).view(3, 1, 1))
        self.std.copy_(torch.tensor(source.std).view(3, 1, 1))
        if source.tensors is None:
            return
        with _library(f"{source.where}: these tensors do not fit its config.json"):
            # By no path, so that the library has nothing to look for beside the tensors.
            loaded, report = type(self.body).from_pretrained(
                None, config=self.body.config, state_dict=dict(source.tensors), output_loading_info=True
            )
        new, wanted = loaded.state_dict(), self.body.state_dict()
        missing = sorted(name for name in report["missing_keys"] & wanted.keys() if not _IS_NEW.search(name))
        if missing:
            raise InputError(
                f"{source.where}: {len(missing)} of {len(wanted)} tensors of its backbone are missing: "
                f"{', '.join(missing[:5])}; give the folder of one whole model"
            )
        self.body.load_state_dict({name: new[name] for name in wanted})


@contextmanager
def _library(failure: str) -> Iterator[Any]:
    """The library without its bars and reports; any error in it is an InputError that begins with `failure`."""
    library = import_extra("transformers", "backbones")
    logging = library.utils.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield library
    except Exception as error:  # a stranger's settings in another's code: any error says that they make no network
        raise InputError(f"{failure}: {printable(str(error), 300)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _build_body(config: BackboneConfig, stages: Sequence[str] | None) -> Any:
    """The library's backbone with random weights that gives the maps of these stages; of all stages for None."""
    with _library(f"backbone {config.model_type}: cannot be built from its config.json") as library:
        settings = library.AutoConfig.for_model(
            **config.model_dump(mode="json"), **_NOT_RANDOM, num_stages=len(config.depths)
        )
        settings.out_features = list(settings.stage_names if stages is None else stages)
        # Eager, for the same sums on every machine; the library's other ways cannot be exported, either.
        body = library.AutoBackbone.from_config(settings, attn_implementation="eager")
    if config.model_type == "swin":
        body.swin.layernorm = nn.Identity()  # of the last map for classification; a backbone leaves it unused
    return body.train()


def _choose_stages(config: BackboneConfig, wanted: Sequence[int]) -> tuple[str, ...]:
    """The last stage of each wanted stride, fine to coarse, without one for P6, which is then added.

    Strides are found without memory for weights or maps. Raises InputError where the backbone cannot be built, would
    be too large, lacks a stride (naming the stages there are), or has stages behind that lead nowhere.
    """
    what = f"backbone {config.model_type}"
    with torch.device("meta"), torch.no_grad():
        body = _build_body(config, None)
        stored = body.state_dict()
        num_bytes = sum(tensor.nbytes for tensor in stored.values())
        derived = sum(tensor.nbytes for name, tensor in body.named_buffers() if name not in stored)
        if num_bytes > _MAX_BYTES or derived > _MAX_BYTES_DERIVED:
            raise InputError(
                f"{what}: would take {num_bytes / 1e9:.1f} GB of weights and {derived / 1e9:.1f} "
                f"GB beside them, more than {_MAX_BYTES / 1e9:.0f} GB and {_MAX_BYTES_DERIVED / 1e9:.2g} GB"
            )
        with _library(f"{what}: does not run with its config.json"):
            maps = body(torch.empty(1, 3, _PROBE_SIDE_PX, _PROBE_SIDE_PX)).feature_maps
            strides = {name: _PROBE_SIDE_PX / one.shape[2] for name, one in zip(body.out_features, maps, strict=True)}
    by_stride = {stride: name for name, stride in strides.items()}
    missing = [stride for stride in wanted if stride not in by_stride]
    there = ", ".join(f"{name} of {stride:g}" for name, stride in strides.items())
    if missing not in ([], [64]):
        raise InputError(
            f"{what}: no stage of stride {' or '.join(map(str, missing))}; its stages have strides: "
            f"{there}. Take a backbone with strides 8, 16 and 32"
        )
    chosen = tuple(by_stride[stride] for stride in wanted if stride in by_stride)
    if chosen[-1] != list(strides)[-1]:
        raise InputError(
            f"{what}: stages follow on stride {max(wanted)}, the coarsest of this size of detector, "
            f"and would lead nowhere; its stages have strides: {there}. Take a size with a 6, or another backbone"
        )
    return chosen
