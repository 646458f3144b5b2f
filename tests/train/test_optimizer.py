"""Which parameters decay, and what the two algorithms do in one step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anchorite.train.optimizer import OptimizerConfig, apply_settings, build_optimizer, clip_gradients, parameter_groups


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))


def test_only_convolution_weights_decay() -> None:
    model = network()
    decayed, plain, biases = parameter_groups(model)
    assert [tuple(p.shape) for p in decayed] == [(3, 2, 1, 1), (1, 3, 1, 1)]
    assert [p is model[1].weight for p in plain] == [True]
    assert {id(p) for p in biases} == {id(model[1].bias), id(model[2].bias)}
    assert sum(len(group) for group in (decayed, plain, biases)) == len(list(model.parameters()))


def test_one_nesterov_step_by_hand() -> None:
    model = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(1.0)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5))
    apply_settings(optimizer, rate=0.1, bias_rate=0.3, momentum=0.5)
    model.weight.grad, model.bias.grad = torch.full((1, 1, 1, 1), 3.0), torch.ones(1)
    optimizer.step()
    # Weight: gradient 3 + 0.5 * 2 = 4, first velocity 4, Nesterov 4 + 0.5 * 4 = 6: 2 - 0.1 * 6. Bias: 1 - 0.3 * 1.5.
    assert model.weight.item() == pytest.approx(1.4)
    assert model.bias.item() == pytest.approx(0.55)


def test_adamw_takes_momentum_as_its_first_beta() -> None:
    optimizer = build_optimizer(network(), OptimizerConfig(name="adamw", momentum=0.9))
    apply_settings(optimizer, rate=0.1, bias_rate=0.2, momentum=0.6)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.6, 0.999)] * 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.2]


def test_clipping_scales_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 0).item() == pytest.approx(5)
    assert parameters[0].grad.item() == pytest.approx(3)
    clip_gradients(parameters, 1.0)
    assert [p.grad.item() for p in parameters] == pytest.approx([0.6, 0.8], rel=1e-5)
