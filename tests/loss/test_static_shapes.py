"""The padded path: what an accelerator runs must not depend on the data but for the numbers themselves.

It is run on torch's meta device, where tensors have no numbers, so that whatever would have to look at one fails; and
every operator is recorded on its way.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anchorite.boxes import LabelCoverage, Targets
from anchorite.loss import DetectionLoss, LossConfig, assign
from anchorite.loss.terms import bce_sum, winning_cells
from anchorite.model import Detector, MatchedCellLogits, default_anchors
from tests.processes import ForkedProcess

NUM_CLASSES, CAPACITY = 5, 12
CONFIGS = {
    "plain": LossConfig(),
    "automatic balance": LossConfig(automatic_balance=True, collision="best", objectness_iou_ratio=0.5),
    "weights": LossConfig(class_weights=(1.0, 2.0, 1.0, 0.5, 1.0), class_pos_weight=2.0, label_smoothing=0.1),
    "focal": LossConfig(focal_gamma=1.5, objectness_pos_weight=0.5, box_iou="giou"),
}
# What waits for the device, has a shape that depends on the data, or brings a constant from the host.
FORBIDDEN = ("nonzero", "_local_scalar_dense", "item", "masked_select", "lift_fresh", "unique", "is_nonzero", "equal")


class Recorder(TorchDispatchMode):
    """The names of all operators that ran, and whether one mixed the host's tensors with the device's."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        self.names.append(name)
        leaves = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        indices = torch.utils._pytree.tree_leaves(args[1:]) if name.startswith("index") else []
        by_mask = any(isinstance(one, Tensor) and one.dtype == torch.bool for one in indices)
        if by_mask or len({tensor.device.type for tensor in tensors}) > 1:
            self.mixed.append(name)
        return func(*args, **(kwargs or {}))


def run_on(device: str, config: LossConfig, padded: bool = True, is_known: bool = True) -> Recorder:
    """Record forward and backward of head and loss."""
    detector = Detector("n", NUM_CLASSES, default_anchors("n")).to(device)
    criterion = DetectionLoss(detector.anchors, NUM_CLASSES, config).to(device)
    features = [
        torch.empty(2, channels, side, side, device=device, requires_grad=True)
        for channels, side in ((64, 8), (128, 4), (256, 2))
    ]
    capacity = CAPACITY if padded else None
    targets = Targets.from_rows(torch.rand(7, 6), torch.rand(7), sources=torch.ones(7).long(), capacity=capacity)
    coverage = LabelCoverage(torch.rand(40, 5), torch.rand(3, NUM_CLASSES) > 0.5, torch.rand(2, 8, 8))
    if is_known:
        targets, coverage = Targets(targets.rows, targets.valid), LabelCoverage()
    targets, coverage = targets.to(device), coverage.to(device)
    with Recorder() as recorder:
        criterion(detector.head.matched(features), targets, coverage).total.backward()
    return recorder


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("is_known", [True, False])
def test_the_padded_path_asks_the_device_for_nothing(config: LossConfig, is_known: bool) -> None:
    recorder = run_on("meta", config, is_known=is_known)
    assert len(recorder.names) > 200
    assert not [name for name in recorder.names if name.split(".")[0] in FORBIDDEN]
    assert not recorder.mixed


def test_the_recorder_sees_what_is_forbidden() -> None:
    with pytest.raises(Exception, match="nonzero"):
        run_on("meta", LossConfig(), padded=False)
    with Recorder() as recorder:
        torch.tensor([1.0, 2.0])[torch.tensor([True, False])]
    assert "lift_fresh" in recorder.names
    assert "index" in recorder.mixed


@pytest.mark.parametrize("is_dense", [False, True], ids=["matched", "dense"])
@pytest.mark.parametrize("is_known", [True, False])
def test_an_empty_part_of_a_batch_has_a_loss_of_0_and_gradients_of_0(
    is_known: bool, is_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MatchedCellLogits, "_by_hand", False)
    detector = Detector("n", NUM_CLASSES, default_anchors("n"))
    criterion = DetectionLoss(detector.anchors, NUM_CLASSES)
    features = [torch.zeros(0, channels, 2, 2, requires_grad=True) for channels in (64, 128, 256)]
    coverage = LabelCoverage(torch.zeros(0, 5), torch.ones(0, NUM_CLASSES, dtype=torch.bool), torch.ones(0, 8, 8))
    coverage = LabelCoverage() if is_known else coverage.padded(CAPACITY)
    targets = Targets.from_rows(torch.zeros(0, 6), None if is_known else torch.zeros(0), capacity=CAPACITY)
    logits = detector.head.dense(features) if is_dense else detector.head.matched(features)
    terms = criterion(logits, targets, coverage, num_images=4)
    assert [float(term.detach()) for term in terms] == [0.0] * 4
    terms.total.backward()
    # All of them get one, which those ranks wait for that have images.
    assert all(one.grad is not None and not one.grad.any() for one in detector.head.parameters())


def test_every_candidate_that_decides_nothing_writes_to_an_address_of_its_own() -> None:
    anchors = default_anchors("n")
    rows = torch.tensor([[0, 1, 0.5, 0.5, 0.1, 0.1], [0, 2, 0.5, 0.5, 0.1, 0.1]])
    found = assign(Targets.from_rows(rows, capacity=40), anchors, [(8, 8), (4, 4), (2, 2)])[0]
    cells = winning_cells(found, torch.rand(len(found.valid)), (1, 8, 8, 3), "last")
    decides = cells < 1 * 8 * 8 * 3
    assert 0 < int(decides.sum()) < int(found.valid.sum()) < len(cells)
    assert len(cells.unique()) == len(cells)


@pytest.mark.parametrize(("device", "num_parts"), [("meta", 1), ("cpu", 2)])
def test_the_loss_is_cut_into_parts_for_a_processors_cache_alone(device: str, num_parts: int) -> None:
    logits = torch.zeros(2**17, device=device)
    with Recorder() as recorder:
        bce_sum(logits, logits, 1.0)
    assert recorder.names.count("binary_cross_entropy_with_logits") == num_parts


@pytest.mark.slow
def test_the_padded_path_compiles_whole_to_the_same_loss_and_gradients() -> None:
    # In a process of its own: the checks of shapes that tests put around functions cannot be compiled.
    process = ForkedProcess("tests.loss.compiled:compare", "aot_eager")
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_the_device_path_of_the_head_gives_the_gradients_of_the_cpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = Detector("n", NUM_CLASSES, default_anchors("n")).double()
    criterion = DetectionLoss(detector.anchors, NUM_CLASSES)
    values = [
        torch.randn(2, channels, side, side, dtype=torch.float64) for channels, side in ((64, 8), (128, 4), (256, 2))
    ]
    rows = torch.rand(40, 6, dtype=torch.float64)
    rows[:, 0] = rows[:, 0].round()
    rows[:, 1] = (rows[:, 1] * 4).round()
    answers = []
    for by_hand in (True, False):
        monkeypatch.setattr(MatchedCellLogits, "_by_hand", by_hand)
        features = [value.clone().requires_grad_() for value in values]
        loss = criterion(detector.head.matched(features), Targets.from_rows(rows)).total
        answers.append([loss.detach(), *torch.autograd.grad(loss, [*features, *detector.head.parameters()])])
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
