"""The moving average against the recurrence written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from anchorite.train.optim import EMA, EMAConfig


def test_average_follows_the_recurrence_for_weights_and_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    average = EMA(model, EMAConfig(decay=0.9, ramp_steps=2))
    expected, mean = model[0].weight.item(), 0.0
    for update in range(1, 5):
        with torch.no_grad():
            model[0].weight.add_(1.0)
            model[1].running_mean.fill_(update)
        average.update()
        keep = 0.9 * (1 - math.exp(-update / 2))
        expected = keep * expected + (1 - keep) * model[0].weight.item()
        mean = keep * mean + (1 - keep) * update
    assert average.model[0].weight.item() == pytest.approx(expected, rel=1e-6)
    assert average.model[1].running_mean.item() == pytest.approx(mean, rel=1e-6)
    assert average.updates == 4
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def test_average_is_a_copy() -> None:
    model = nn.Conv2d(1, 1, 1)
    average = EMA(model, EMAConfig())
    before = average.model.weight.clone()
    with torch.no_grad():
        model.weight.add_(5)
    assert torch.equal(average.model.weight, before)
