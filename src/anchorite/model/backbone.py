"""The backbone: a stem and stages, each of which halves the resolution.

Legend: B images, C channels, H, W of the network input. P3 is the map of stride 8, P4 of 16, and so on.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from anchorite.model.blocks import ConvBlock, CrossStage, PyramidPool
from anchorite.model.table import FIRST_LEVEL, Plan


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
