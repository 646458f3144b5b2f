"""`Detector`: backbone, neck and head of one size.

Legend: B images, L levels, A anchors per level, K classes, C_l channels, H, W of the network input, H_l, W_l cells of
level l. P3 is the map of stride 8, P4 of 16, and so on.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model.blocks import ConvBlock, CrossStage, PyramidPool, doubled
from anchorite.model.head import Head
from anchorite.model.hf_backbone import BackboneConfig, HFBackbone
from anchorite.model.sizes import FIRST_LEVEL, Plan, plan


class Stage(nn.Module):
    """Halves the resolution, then a cross-stage block with shortcuts."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int) -> None:
        super().__init__()
        self.downsample = ConvBlock(in_channels, out_channels, kernel=3, stride=2)
        self.cross_stage = CrossStage(out_channels, out_channels, repeats, shortcut=True)

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H//2 W//2"]:
        """(B, C_out, H / 2, W / 2)."""
        return self.cross_stage(self.downsample(x))


class Backbone(nn.Module):
    """Images to the maps P3 to P5 (or P6), the last one pooled over its surroundings.

    Its children are `stem`, `stage2` (to stride 4), `stage3` (8) and so on, and `pool`.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = ConvBlock(3, plan.stem_width, kernel=6, stride=2, padding=2)
        self._stage_names = {level: f"stage{level}" for level in plan.widths}
        width = plan.stem_width
        for level, name in self._stage_names.items():
            self.add_module(name, Stage(width, plan.widths[level], plan.repeats[level]))
            width = plan.widths[level]
        self.pool = PyramidPool(width, width)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps (B, C_l, H / s_l, W / s_l) of `images` (B, 3, H, W), fine to coarse."""
        maps: list[Tensor] = []
        x = self.stem(images)
        for level, name in self._stage_names.items():
            x = getattr(self, name)(x)
            if level >= FIRST_LEVEL:
                maps.append(x)
        maps[-1] = self.pool(maps[-1])
        return maps


class Neck(nn.Module):
    """Maps of the backbone to maps of the same shapes, each of which has seen all the others.

    Children by level, "p3" being the finest: `lateral` narrows a map on its way down and keeps it for the way up,
    `top_down` merges on the way down, `downsample` halves the resolution and `bottom_up` merges on the way up.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._finer_and_coarser = tuple(zip(plan.levels[:-1], plan.levels[1:], strict=True))
        self.lateral = nn.ModuleDict()
        self.top_down = nn.ModuleDict()
        self.downsample = nn.ModuleDict()
        self.bottom_up = nn.ModuleDict()
        widths, repeats = plan.widths, plan.neck_repeats
        for finer, coarser in reversed(self._finer_and_coarser):
            width = widths[finer]
            self.lateral[f"p{coarser}"] = ConvBlock(widths[coarser], width)
            self.top_down[f"p{finer}"] = CrossStage(2 * width, width, repeats, shortcut=False)
        for finer, coarser in self._finer_and_coarser:
            width = widths[finer]
            self.downsample[f"p{finer}"] = ConvBlock(width, width, kernel=3, stride=2)
            self.bottom_up[f"p{coarser}"] = CrossStage(2 * width, widths[coarser], repeats, shortcut=False)

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B _ _ _"]]:
        """Maps (B, C_l, H_l, W_l), fine to coarse, of maps of the same shapes."""
        first_level = self._finer_and_coarser[0][0]
        narrowed: dict[int, Tensor] = {}
        x = maps[-1]
        for finer, coarser in reversed(self._finer_and_coarser):
            narrowed[coarser] = self.lateral[f"p{coarser}"](x)
            wide = doubled(narrowed[coarser])
            x = self.top_down[f"p{finer}"](torch.cat([wide, maps[finer - first_level]], dim=1))
        outputs = [x]
        for finer, coarser in self._finer_and_coarser:
            small = self.downsample[f"p{finer}"](x)
            x = self.bottom_up[f"p{coarser}"](torch.cat([small, narrowed[coarser]], dim=1))
            outputs.append(x)
        return outputs


class Detector(nn.Module):
    """A detector of one size ("n" to "x", "n6" to "x6") for K classes.

    backbone_config: of the backbone of transformers that it has instead of its own; neck and head are the size's.
    Raises InputError when there is no such size, K < 1, or the anchors' strides are not those of the size.
    """

    def __init__(
        self, size: str, num_classes: int, anchors: AnchorSet, backbone_config: BackboneConfig | None = None
    ) -> None:
        super().__init__()
        parts = plan(size)
        if num_classes < 1:
            raise InputError(f"a detector needs at least 1 class, got {num_classes}")
        if anchors.strides != parts.strides:
            raise InputError(
                f"size {size!r} predicts at strides {parts.strides}, the anchors are for {anchors.strides}; "
                f"give anchors of {len(parts.strides)} levels or another size"
            )
        self.size = size
        self.num_classes = num_classes
        self.anchors = anchors
        self.strides = anchors.strides
        self.frozen: tuple[str, ...] = ()  # names of parts that `train` leaves in evaluation mode
        self.backbone_config = backbone_config
        self.backbone = Backbone(parts) if backbone_config is None else HFBackbone(parts, backbone_config)
        self.neck = Neck(parts)
        self.head = Head(parts.output_widths, num_classes, anchors.num_anchors, anchors.strides)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but the parts named in `frozen` stay in evaluation mode: their statistics keep still."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def features(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """L maps (B, C_l, H_l, W_l), fine to coarse, of floating point images (B, 3, H, W) in 0..1.

        Fastest with images and weights in channels_last memory. Raises InputError when H or W is not a positive
        multiple of the coarsest stride.
        """
        height, width = images.shape[-2:]
        coarsest = self.strides[-1]
        if height % coarsest or width % coarsest or not height or not width:
            raise InputError(
                f"images of {height} x {width} pixels (height x width) do not fit a network of stride {coarsest}; "
                f"letterbox them to multiples of {coarsest}, such as "
                f"{' x '.join(str(max(-(-side // coarsest), 1) * coarsest) for side in (height, width))}"
            )
        return self.neck(self.backbone(images))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B A 5+{self.num_classes} _ _"]]:
        """All logits of every level, each (B, A, 5 + K, H_l, W_l), of images as `features` takes them."""
        return self.head.dense(self.features(images))


def to_channels_last(detector: nn.Module) -> None:
    """Lay convolution weights out as channels_last, in place, the order in which CPU and GPU kernels are fastest."""
    for parameter in detector.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def fold_batch_norm(detector: Detector) -> Detector:
    """A copy in evaluation mode, its batch normalisations folded into convolutions with bias.

    Those inside a backbone of another library stay as they are. Its outputs are those of `detector.eval()` to rounding;
    `detector` itself stays as it is. The copy cannot be trained on as before, since the normalisation is gone.
    """
    # Hooks stay with the original, but for those by which a backbone of another library works.
    backbones = [module for module in detector.modules() if isinstance(module, HFBackbone)]
    body = {module for backbone in backbones for module in backbone.body.modules()}
    hooked = [module for module in detector.modules() if module not in body]
    own_hooks = [hooks for module in hooked for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    folded = copy.deepcopy(detector, {id(hooks): OrderedDict() for hooks in own_hooks}).eval()
    for module in folded.modules():
        if not isinstance(module, ConvBlock) or not isinstance(module.norm, nn.BatchNorm2d):
            continue
        norm, convolution = module.norm, module.convolution
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # In float64, so that folding adds one rounding of each weight and no more.
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.double() - norm.running_mean.double() * scale
        weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
        dtype = convolution.weight.dtype
        convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        convolution.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        module.norm = nn.Identity()
    return folded


def is_folded(detector: Detector) -> bool:
    """Whether the detector came from `fold_batch_norm`."""
    blocks = (module for module in detector.modules() if isinstance(module, ConvBlock))
    return not any(isinstance(block.norm, nn.BatchNorm2d) for block in blocks)
