"""How many kernels a step starts on a GPU, counted where there is none: on torch's meta device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anchorite.benchmark import training_step
from anchorite.boxes import Targets
from anchorite.data import Batch
from anchorite.devices import Precision
from anchorite.loss import DetectionLoss
from anchorite.model import Detector, default_anchors
from anchorite.train.optim import Settings
from anchorite.train.step import BufferSnapshot


class Kernels(TorchDispatchMode):
    """How often each operator ran that is a kernel on a GPU, by its name; views are none. The optimizer's, which has no
    form without numbers, is only counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if not func.is_view and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            self.counts[name] += 1
        return None if name == "_fused_sgd_" else func(*args, **(kwargs or {}))


def test_saving_and_restoring_the_statistics_is_a_handful_of_operators() -> None:
    with torch.device("meta"):
        detector = Detector("n", 3, default_anchors("n"))
        criterion = DetectionLoss(detector.anchors, 3)
        snapshot, is_fine = BufferSnapshot(detector, criterion), torch.ones((), dtype=torch.bool)
    with Kernels() as kernels:
        snapshot.save()
        snapshot.restore_unless(is_fine)
    assert kernels.counts.total() < 10


def test_an_eager_step_on_a_gpu_is_at_most_1500_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size n, 64 images of 640 px with 80 classes, counted where tensors have no numbers."""
    monkeypatch.setattr(torch.utils._foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["meta"])
    device = torch.device("meta")
    with device:
        step = training_step("n", 80, 640, device, Precision("fp32", None, False, "test"))
        step.train_state.optimizer._need_device_dtype_check_for_fused = False  # type: ignore[attr-defined]
        targets = Targets(torch.empty(2048, 6), torch.empty(2048, dtype=torch.bool))
        images = torch.empty(64, 640, 640, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        batch = Batch(images, targets, torch.empty(64, dtype=torch.int64))
    with Kernels() as kernels:
        step.accumulate(batch)
        step.apply(Settings(lr=0.01, bias_lr=0.01, momentum=0.9))
    # In bf16 each weight of a convolution is converted on its way in, and its gradient on the way back.
    casts = kernels.counts["convolution"] + kernels.counts["convolution_backward"]
    assert kernels.counts["_fused_sgd_"] == 3
    assert 800 < kernels.counts.total() + casts <= 1500
