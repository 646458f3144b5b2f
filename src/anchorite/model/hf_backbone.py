"""A backbone of the transformers library in the place of our own.

Legend: B images, C channels, H, W of the network input. P3 is the map of stride 8, P4 of 16, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anchorite.errors import InputError
from anchorite.model.backbone_config import BackboneConfig
from anchorite.model.blocks import ConvBlock
from anchorite.model.table import Plan
from anchorite.reading import printable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PROBE_SIDE_PX = 256
_MOST_BYTES = 4_000_000_000  # of weights; the largest backbones in use have 2.6
_MOST_BYTES_DERIVED = 256_000_000  # of what a file of weights does not have, such as tables of positions
_RANDOM_RATES = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
# What the library makes anew for a backbone, and classification does not have.
_NEW_PARTS = ("hidden_states_norms.",)
_NUM_SHOWN = 5


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
        stages = _choose_stages(_stage_strides(config), plan.strides, config.model_type)
        self.config = config
        self.body = _build_body(config, stages)
        widths = dict(zip(plan.levels, self.body.channels, strict=False))
        self.projections = nn.ModuleDict(
            {f"p{level}": ConvBlock(width, plan.widths[level]) for level, width in widths.items()}
        )
        last, is_short = plan.last_level, plan.last_level not in widths
        self.coarser = (
            ConvBlock(plan.widths[last - 1], plan.widths[last], kernel=3, stride=2) if is_short else nn.Identity()
        )
        self._adds_level = is_short
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps (B, C_l, H / s_l, W / s_l) of `images` (B, 3, H, W), fine to coarse."""
        found = self.body((images - self.mean) / self.std).feature_maps
        maps = [project(one) for one, project in zip(found, self.projections.values(), strict=True)]
        if self._adds_level:
            maps.append(self.coarser(maps[-1]))
        return maps

    @torch.no_grad()
    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise images, in 0..1, with these means and standard deviations of red, green and blue."""
        self.mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.std.copy_(torch.tensor(std).view(3, 1, 1))

    def load_body(self, tensors: Mapping[str, Tensor], where: object) -> None:
        """Fill `body` with the tensors of a model of the library, with a head or without, in any naming of its own.

        Raises InputError naming `where` when tensors are missing or of other shapes.
        """
        try:
            with _quiet():
                # By no path, so that the library has nothing to look for beside the tensors.
                loaded, report = type(self.body).from_pretrained(
                    None, config=self.body.config, state_dict=dict(tensors), output_loading_info=True
                )
        except Exception as error:
            raise InputError(
                f"{where}: these tensors do not fit its config.json: {printable(str(error), 300)}"
            ) from error
        new = loaded.state_dict()
        wanted = self.body.state_dict()
        missing = [
            name
            for name in sorted(report["missing_keys"])
            if name in wanted and not name.startswith(_NEW_PARTS) and not name.endswith("num_batches_tracked")
        ]
        if missing:
            raise InputError(
                f"{where}: {len(missing)} of {len(wanted)} tensors of its backbone are missing: "
                f"{', '.join(missing[:_NUM_SHOWN])}; give the folder of one whole model"
            )
        self.body.load_state_dict({name: new[name] for name in wanted})


def transformers() -> Any:
    """The library, imported; InputError with the remedy when it is not installed."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"a backbone from transformers needs that package ({error}); install it: pip install 'anchorite[backbones]'"
        ) from error


def _build_body(config: BackboneConfig, stages: Sequence[str] | None) -> Any:
    """The library's backbone with random weights that gives the maps of these stages; of all stages for None."""
    library = transformers()
    try:
        settings = library.AutoConfig.for_model(**config.model_dump(mode="json"))
        for name in _RANDOM_RATES:
            if hasattr(settings, name):
                setattr(settings, name, 0.0)
        if hasattr(settings, "num_stages"):
            settings.num_stages = len(config.depths)
        settings.out_features = list(settings.stage_names if stages is None else stages)
        with _quiet():
            # Eager, for the same sums on every machine; the library's other ways cannot be exported, either.
            body = library.AutoBackbone.from_config(settings, attn_implementation="eager")
    except Exception as error:  # a stranger's settings in another's code: any error says that they make no network
        raise InputError(
            f"backbone {config.model_type}: cannot be built: {printable(str(error), 300)}; see its config.json"
        ) from error
    if config.model_type == "swin":
        body.swin.layernorm = nn.Identity()  # of the last map for classification; a backbone leaves it unused
    return body.train()


def _stage_strides(config: BackboneConfig) -> dict[str, float]:
    """Pixels per cell of each stage's map, found without memory for weights or maps.

    Raises InputError where the backbone cannot be built, or would be too large to be one.
    """
    with torch.device("meta"), torch.no_grad():
        body = _build_body(config, None)
        _refuse_huge(body, config.model_type)
        try:
            maps = body(torch.empty(1, 3, _PROBE_SIDE_PX, _PROBE_SIDE_PX)).feature_maps
            return {name: _PROBE_SIDE_PX / one.shape[2] for name, one in zip(body.out_features, maps, strict=True)}
        except Exception as error:
            raise InputError(
                f"backbone {config.model_type}: does not run: {printable(str(error), 300)}; see its config.json"
            ) from error


def _refuse_huge(body: nn.Module, model_type: str) -> None:
    stored = body.state_dict()
    num_bytes = sum(tensor.nbytes for tensor in stored.values())
    derived = sum(tensor.nbytes for name, tensor in body.named_buffers() if name not in stored)
    if num_bytes > _MOST_BYTES or derived > _MOST_BYTES_DERIVED:
        raise InputError(
            f"backbone {model_type}: would take {num_bytes / 1e9:.1f} GB of weights and {derived / 1e9:.1f} GB beside "
            f"them, more than the {_MOST_BYTES / 1e9:.0f} GB and {_MOST_BYTES_DERIVED / 1e9:.2g} GB that are taken"
        )


def _choose_stages(strides: Mapping[str, float], wanted: Sequence[int], model_type: str) -> tuple[str, ...]:
    """The last stage of each wanted stride, fine to coarse; without one for P6, which is then added.

    Raises InputError naming the stages there are where a stride is missing, or stages would follow that lead nowhere.
    """
    by_stride = {stride: name for name, stride in strides.items()}
    chosen = tuple(by_stride[stride] for stride in wanted if stride in by_stride)
    missing = [stride for stride in wanted if stride not in by_stride]
    there = ", ".join(f"{name} of {stride:g}" for name, stride in strides.items())
    if missing not in ([], [64]):
        raise InputError(
            f"backbone {model_type}: no stage of stride {' or '.join(map(str, missing))}; its stages have strides: "
            f"{there}. Take a backbone with strides 8, 16 and 32"
        )
    if chosen[-1] != list(strides)[-1]:
        raise InputError(
            f"backbone {model_type}: stages follow on stride {max(wanted)}, the coarsest of this size of detector, "
            f"and would lead nowhere; its stages have strides: {there}. Take a size with a 6, or another backbone"
        )
    return chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and its reports on what was not loaded, of which ours speak."""
    logging = transformers().utils.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
