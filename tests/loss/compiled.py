"""Head and loss of padded targets, compiled whole, against eager mode: python -m tests.loss.compiled BACKEND

Exits with an error where the compiler has to break the graph or a number differs.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from anchorite.boxes import Targets
from anchorite.loss import DetectionLoss, LossConfig
from anchorite.model import Detector, default_anchors

NUM_CLASSES, CAPACITY = 5, 12


def compare(backend: str, automatic_balance: bool) -> None:
    """Raise AssertionError unless loss, balance and all gradients are equal to rounding."""
    torch.manual_seed(0)
    detector = Detector("n", NUM_CLASSES, default_anchors("n"))
    criterion = DetectionLoss(detector.anchors, NUM_CLASSES, LossConfig(automatic_balance=automatic_balance))
    start = criterion.balance.clone()
    values = [torch.randn(2, channels, side, side) for channels, side in ((64, 8), (128, 4), (256, 2))]
    rows = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [1, 2, 0.3, 0.6, 0.1, 0.2], [1, 4, 0.7, 0.2, 0.6, 0.5]])
    targets = Targets.from_rows(rows, capacity=CAPACITY)

    def loss_of(features: list[Tensor], rows: Tensor, valid: Tensor | None) -> Tensor:
        return criterion(detector.head.matched(features), Targets(rows, valid)).total

    answers = []
    for way in (loss_of, torch.compile(loss_of, fullgraph=True, backend=backend)):
        criterion.balance.copy_(start)
        features = [value.clone().requires_grad_() for value in values]
        loss = way(features, targets.rows, targets.valid)
        gradients = torch.autograd.grad(loss, [*features, *detector.head.parameters()])
        answers.append([loss.detach(), criterion.balance.float(), *gradients])
    for eager, compiled in zip(*answers, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    for with_balance in (False, True):
        compare(sys.argv[1], with_balance)
    print(f"{sys.argv[1]}: equal")
