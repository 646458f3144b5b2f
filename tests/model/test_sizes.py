from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model import SIZES, Detector, default_anchors, fold_batch_norm
from anchorite.model.sizes import plan

# The detector family's table: parameters in training, parameters folded, GFLOPs at 640, all for K = 80.
TABLE = {
    "n": (1_872_157, 1_867_405, 4.5),
    "s": (7_235_389, 7_225_885, 16.5),
    "m": (21_190_557, 21_172_173, 49.0),
    "l": (46_563_709, 46_533_693, 109.1),
    "x": (86_749_405, 86_705_005, 205.7),
}


@cache
def on_meta(size: str) -> Detector:
    """Tests must not change it."""
    with torch.device("meta"):
        return Detector(size, 80, default_anchors(size))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", TABLE)
def test_parameter_counts_are_those_of_the_table(size: str) -> None:
    detector = on_meta(size)
    assert num_parameters(detector) == TABLE[size][0]
    assert num_parameters(fold_batch_norm(detector)) == TABLE[size][1]


@pytest.mark.parametrize("size", TABLE)
def test_gflops_at_640_are_those_of_the_table(size: str) -> None:
    folded = fold_batch_norm(on_meta(size))
    biased_outputs = []
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            module.register_forward_hook(lambda _module, _inputs, output: biased_outputs.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        folded(torch.empty(1, 3, 640, 640, device="meta"))
    # The counter gives 2 per multiply-add of the kernel; the table counts the bias as one multiply-add more.
    gflops = (counter.get_total_flops() + 2 * sum(biased_outputs)) / 1e9
    assert round(gflops, 1) == TABLE[size][2]


def test_all_ten_sizes_exist() -> None:
    assert SIZES == ("n", "s", "m", "l", "x", "n6", "s6", "m6", "l6", "x6")


@pytest.mark.parametrize("size", SIZES)
def test_outputs_have_the_strides_and_widths_of_the_size(size: str) -> None:
    width = {"n": 0.25, "s": 0.5, "m": 0.75, "l": 1.0, "x": 1.25}[size[0]]
    bases, strides = ([256, 512, 768, 1024], [8, 16, 32, 64]) if "6" in size else ([256, 512, 1024], [8, 16, 32])
    detector = on_meta(size)
    images = torch.empty(2, 3, 128, 320, device="meta")
    features: list[torch.Tensor] = []
    watching = detector.neck.register_forward_hook(lambda _neck, _maps, outputs: features.extend(outputs))
    outputs = detector(images)
    watching.remove()
    expected = [(2, base * width, 128 // s, 320 // s) for base, s in zip(bases, strides, strict=True)]
    assert [tuple(map_.shape) for map_ in features] == expected
    assert [tuple(logits.shape) for logits in outputs] == [(2, 3, 85, h, w) for _, _, h, w in expected]
    assert detector.strides == tuple(strides) == default_anchors(size).strides


def test_widths_round_up_to_multiples_of_8_and_repeats_stay_at_least_1() -> None:
    assert dict(plan("x").widths) == {2: 160, 3: 320, 4: 640, 5: 1280}
    assert plan("n").stem_width == 16
    assert dict(plan("n").repeats) == {2: 1, 3: 2, 4: 3, 5: 1}
    assert dict(plan("m6").repeats) == {2: 2, 3: 4, 4: 6, 5: 2, 6: 2}
    assert dict(plan("x").repeats) == {2: 4, 3: 8, 4: 12, 5: 4}
    assert plan("x").neck_repeats == 4


def test_an_unknown_size_is_refused_naming_the_ones_there_are() -> None:
    with pytest.raises(InputError, match="no model size 'xl'; choose one of n, s, m, l, x, n6"):
        Detector("xl", 80, AnchorSet.coco_p5())
    with pytest.raises(InputError, match="'n66'"):
        plan("n66")
