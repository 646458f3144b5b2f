"""A training step compiled whole, against the same in eager mode: python -m tests.train.compiled BACKEND

Exits with an error where the compiler has to break the graph, makes more than one of batches of one size with a smaller
one between, or a number differs. In float32.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import Batch
from anchorite.devices import Precision
from anchorite.loss import DetectionLoss
from anchorite.model import Detector, default_anchors
from anchorite.train.optim import EMA, EMAConfig, OptimizerConfig, Settings, build_optimizer
from anchorite.train.step import TrainingStep, TrainState

CPU = torch.device("cpu")
UNKNOWN = LabelCoverage(
    ignore_regions=torch.tensor([[0, 0.4, 0.6, 0.3, 0.5]]),
    covered_classes=torch.tensor([[True] * 4, [False, False, True, True]]),
    background_weight=torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)),
)


def losses_and_weights(compiled: bool) -> list[torch.Tensor]:
    """The losses of three steps, the second with a smaller batch, then the weights."""
    torch.manual_seed(0)
    detector = Detector("n", 4, default_anchors("n")).train()
    for name in ("stage2", "stage3", "stage4"):  # stage 5 and the neck have as many sorts of layer in half the time
        detector.backbone.get_submodule(name).cross_stage = torch.nn.Identity()
    criterion = DetectionLoss(detector.anchors, 4)
    optimizer = build_optimizer(detector, OptimizerConfig())
    average = EMA(detector, EMAConfig())
    train_state = TrainState(detector, criterion, optimizer, average, torch.amp.GradScaler("cpu", enabled=False))
    step = TrainingStep(train_state, Precision("fp32", None, False, "test"), 10.0, CPU, 2 if compiled else None)
    rows = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [1, 2, 0.3, 0.6, 0.1, 0.2], [1, 3, 0.7, 0.2, 0.6, 0.5]])
    losses = []
    for num_images, count in ((2, 3), (1, 1), (2, 2)):
        images = torch.randint(0, 256, (num_images, 3, 64, 64), dtype=torch.uint8)
        targets = Targets.from_rows(rows[:count], rows[:count, 3], sources=torch.tensor([0, 1, 1])[:count])
        assert UNKNOWN.background_weight is not None
        coverage = replace(UNKNOWN, background_weight=UNKNOWN.background_weight[:num_images])
        batch = Batch(images, targets, torch.arange(num_images), coverage)
        losses.append(step.accumulate(batch).total)
        step.apply(Settings(lr=0.01, bias_lr=0.01, momentum=0.9))
    return [*losses, *detector.parameters()]


def compare(backend: str) -> None:
    """Raise AssertionError unless losses and weights are equal to rounding; torch keeps the backend."""
    counter = CompileCounterWithBackend(backend)
    torch.compile = functools.partial(torch.compile, backend=counter)  # type: ignore[assignment]
    for expected, found in zip(losses_and_weights(False), losses_and_weights(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert counter.frame_count == 1


if __name__ == "__main__":
    compare(sys.argv[1])
