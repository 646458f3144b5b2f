"""The neck: carries what coarse maps know down to the fine ones, and back up again.

Legend: B images, C_l channels, H_l, W_l cells of level l; levels P3 up to the last, fine to coarse.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anchorite.model.blocks import ConvBlock, CrossStage, doubled
from anchorite.model.table import Plan


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
