"""Head and loss of padded targets, compiled whole, against eager mode: python -m tests.loss.compiled BACKEND

Exits with an error where the compiler has to break the graph or a number differs.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.loss import DetectionLoss, LossConfig
from anchorite.model.head import Head

NUM_CLASSES, CAPACITY = 5, 12


def compare(backend: str) -> None:
    """Raise AssertionError unless loss, automatic balance and all gradients are equal to rounding."""
    torch.manual_seed(0)
    anchors = AnchorSet.from_rows([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]], (8, 16))
    head = Head((64, 128), NUM_CLASSES, anchors.num_anchors, anchors.strides)
    criterion = DetectionLoss(anchors, NUM_CLASSES, LossConfig(automatic_balance=True))
    start = criterion.balance.clone()
    values = [torch.randn(2, channels, side, side) for channels, side in ((64, 8), (128, 4))]
    rows = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [1, 2, 0.3, 0.6, 0.1, 0.2], [1, 4, 0.7, 0.2, 0.6, 0.5]])
    targets = Targets.from_rows(rows, capacity=CAPACITY)

    def loss_of(features: list[Tensor], rows: Tensor, valid: Tensor | None) -> Tensor:
        return criterion(head.matched(features), Targets(rows, valid)).total

    answers = []
    for way in (loss_of, torch.compile(loss_of, fullgraph=True, backend=backend)):
        criterion.balance.copy_(start)
        features = [value.clone().requires_grad_() for value in values]
        loss = way(features, targets.rows, targets.valid)
        gradients = torch.autograd.grad(loss, [*features, *head.parameters()])
        answers.append([loss.detach(), criterion.balance.float(), *gradients])
    for eager, compiled in zip(*answers, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    compare(sys.argv[1])
