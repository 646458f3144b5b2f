"""The detector as specified, part by part, on a state dict with the foreign names; slow and obvious."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


class ByNumber:
    """Runs parts of a foreign state dict in evaluation mode."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.conv.weight"]
        kernel = weight.shape[-1]
        x = functional.conv2d(x, weight, stride=stride, padding=2 if kernel == 6 else kernel // 2)
        mean, variance, scale, shift = (
            self.state[f"{name}.bn.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-3).sqrt() * scale + shift
        return x * x.sigmoid()

    def c3(self, index: int, x: Tensor, shortcut: bool) -> Tensor:
        name = f"model.{index}"
        deep = self.conv(f"{name}.cv1", x)
        repeat = 0
        while f"{name}.m.{repeat}.cv1.conv.weight" in self.state:
            inner = self.conv(f"{name}.m.{repeat}.cv2", self.conv(f"{name}.m.{repeat}.cv1", deep))
            deep = deep + inner if shortcut else inner
            repeat += 1
        return self.conv(f"{name}.cv3", torch.cat([deep, self.conv(f"{name}.cv2", x)], 1))

    def sppf(self, index: int, x: Tensor) -> Tensor:
        x = self.conv(f"model.{index}.cv1", x)
        pooled = [functional.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13)]
        return self.conv(f"model.{index}.cv2", torch.cat([x, *pooled], 1))

    def head(self, index: int, level: int, x: Tensor) -> Tensor:
        name = f"model.{index}.m.{level}"
        return functional.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def p5_outputs(state: Mapping[str, Tensor], images: Tensor) -> list[Tensor]:
    """Outputs (B, A * (5 + K), H, W) of a P5 detector."""
    net = ByNumber(state)
    x = net.conv("model.0", images, stride=2)
    kept: dict[int, Tensor] = {}
    for index in (1, 3, 5, 7):
        x = net.c3(index + 1, net.conv(f"model.{index}", x, stride=2), shortcut=True)
        kept[index + 1] = x
    kept[9] = net.sppf(9, x)
    kept[10] = net.conv("model.10", kept[9])
    kept[13] = net.c3(13, torch.cat([twice(kept[10]), kept[6]], 1), shortcut=False)
    kept[14] = net.conv("model.14", kept[13])
    kept[17] = net.c3(17, torch.cat([twice(kept[14]), kept[4]], 1), shortcut=False)
    kept[18] = net.conv("model.18", kept[17], stride=2)
    kept[20] = net.c3(20, torch.cat([kept[18], kept[14]], 1), shortcut=False)
    kept[21] = net.conv("model.21", kept[20], stride=2)
    kept[23] = net.c3(23, torch.cat([kept[21], kept[10]], 1), shortcut=False)
    return [net.head(24, level, kept[index]) for level, index in enumerate((17, 20, 23))]


def randomise_norms(detector: torch.nn.Module, seed: int) -> None:
    """Give every batch normalisation statistics and affine parameters that folding cannot get right by luck."""
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 2.0),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
