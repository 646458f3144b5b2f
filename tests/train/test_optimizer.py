"""Which parameters decay, and what the two algorithms do in one step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anchorite.model import Detector, default_anchors
from anchorite.train.optim import (
    OptimizerConfig,
    apply_settings,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    parts_by_depth,
)


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
    apply_settings(optimizer, lr=0.1, bias_lr=0.3, momentum=0.5)
    model.weight.grad, model.bias.grad = torch.full((1, 1, 1, 1), 3.0), torch.ones(1)
    optimizer.step()
    # Weight: gradient 3 + 0.5 * 2 = 4, first velocity 4, Nesterov 4 + 0.5 * 4 = 6: 2 - 0.1 * 6. Bias: 1 - 0.3 * 1.5.
    assert model.weight.item() == pytest.approx(1.4)
    assert model.bias.item() == pytest.approx(0.55)


def test_adamw_takes_momentum_as_its_first_beta() -> None:
    optimizer = build_optimizer(network(), OptimizerConfig(name="adamw", momentum=0.9))
    apply_settings(optimizer, lr=0.1, bias_lr=0.2, momentum=0.6)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.6, 0.999)] * 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.2]


def test_clipping_scales_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 0).item() == pytest.approx(5)
    assert parameters[0].grad.item() == pytest.approx(3)
    clip_gradients(parameters, 1.0)
    assert [p.grad.item() for p in parameters] == pytest.approx([0.6, 0.8], rel=1e-5)


def detector() -> Detector:
    with torch.device("meta"):
        return Detector("n", 2, default_anchors("n"))


def test_without_layer_decay_there_are_three_groups_in_the_order_that_old_checkpoints_have() -> None:
    model = detector()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
    expected = parameter_groups(model)
    assert len(optimizer.param_groups) == 3
    for group, parameters in zip(optimizer.param_groups, expected, strict=True):
        assert [id(one) for one in group["params"]] == [id(one) for one in parameters]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    apply_settings(optimizer, lr=0.3, bias_lr=0.7, momentum=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3, 0.7]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_part_moves_at_its_factor_of_the_rate(name: str) -> None:
    model, config = detector(), OptimizerConfig(name=name, layer_decay=0.5)
    optimizer = build_optimizer(model, config)
    parts = ["stem", "stage2", "stage3", "stage4", "stage5", "pool"]
    assert [(part, factor) for part, _, factor in parts_by_depth(model, config)] == [
        *((f"backbone.{part}", 0.5 ** (7 - depth)) for depth, part in enumerate(parts)), ("neck", 0.5), ("head", 1.0)
    ]  # fmt: skip
    apply_settings(optimizer, lr=0.3, bias_lr=0.7, momentum=0.5)
    rates = {id(one): (group["lr"], group) for group in optimizer.param_groups for one in group["params"]}
    for place, factor in (("backbone.stem", 0.5**7), ("backbone.pool", 0.25), ("neck.lateral", 0.5), ("head", 1.0)):
        for one_name, parameter in model.get_submodule(place).named_parameters():
            rate, group = rates[id(parameter)]
            assert rate == (0.7 if one_name.endswith("bias") else 0.3) * factor
            assert group["weight_decay"] == (config.weight_decay if parameter.ndim == 4 else 0.0)
    # The order is that of old checkpoints still, so that a run may go on with another factor.
    in_order = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert in_order == [id(one) for parameters in parameter_groups(model) for one in parameters]


def test_the_stages_of_a_backbone_of_transformers_are_parts_of_their_own() -> None:
    body = nn.Module()
    body.embeddings, body.encoder, body.norms = nn.Conv2d(3, 4, 1), nn.Module(), nn.ModuleList([nn.BatchNorm2d(4)])
    body.encoder.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)) for _ in range(2))
    model = nn.Module()
    model.backbone = nn.ModuleDict({"body": body, "projections": nn.Conv2d(4, 2, 1), "nothing": nn.Identity()})
    model.neck, model.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    config = OptimizerConfig(layer_decay=0.5)
    assert [(name, factor) for name, _, factor in parts_by_depth(model, config)] == [
        ("backbone.body", 0.5**5),
        ("backbone.body.encoder.stages.0", 0.5**4),
        ("backbone.body.encoder.stages.1", 0.5**3),
        ("backbone.projections", 0.25),
        ("neck", 0.5),
        ("head", 1.0),
    ]
    optimizer = build_optimizer(model, config)
    factors = {id(one): group["lr_factor"] for group in optimizer.param_groups for one in group["params"]}
    assert factors[id(body.embeddings.weight)] == factors[id(body.norms[0].weight)] == 0.5**5
    assert {factors[id(one)] for one in body.encoder.stages[1].parameters()} == {0.5**3}
    in_order = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert in_order == [id(one) for parameters in parameter_groups(model) for one in parameters]
