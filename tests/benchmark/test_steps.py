"""The steps that are timed are those they are said to be."""

from __future__ import annotations

import pytest
import torch

from anchorite.benchmark import batch_for, detector_of, targets_for, training_step, whole_step
from anchorite.devices import Precision
from benchmarks.measure import in_fresh_process
from benchmarks.step import PARTS, PartsClock, bare_step, peak_of_step, to_contiguous

CPU = torch.device("cpu")
FP32 = Precision("fp32", None, False, "for the test")


def test_a_bare_step_goes_down_the_gradient_of_the_summed_mean_squares() -> None:
    images = batch_for(2, 64, 3, 5, CPU).images.float() / 255
    detector, twin = detector_of("n", 5, CPU), detector_of("n", 5, CPU)
    loss = bare_step(detector, images, None)()
    twin.train()
    expected = torch.stack([level.square().mean() for level in twin(images)]).sum()
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    for moved, parameter in zip(detector.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(moved, parameter - 1e-4 * parameter.grad, rtol=1e-5, atol=1e-8)
        assert moved.grad is None


def test_the_contiguous_yardstick_is_contiguous_and_ours_is_not() -> None:
    plain, ours = to_contiguous(detector_of("n", 5, CPU)), detector_of("n", 5, CPU)
    wide = [name for name, one in plain.named_parameters() if one.ndim == 4 and one.shape[1] > 1 and one.shape[2] > 1]
    assert wide
    for name in wide:
        assert plain.get_parameter(name).is_contiguous()
        assert ours.get_parameter(name).is_contiguous(memory_format=torch.channels_last)
        assert not ours.get_parameter(name).is_contiguous()


def test_taking_the_parts_of_a_step_leaves_the_step_as_it_is() -> None:
    batch = batch_for(2, 64, 3, 5, CPU)
    observed, plain = (training_step("n", 5, 64, CPU, FP32) for _ in range(2))
    clock = PartsClock(observed)
    for _ in range(2):
        parts = clock.run(batch)
        whole_step(plain, batch)()
    assert tuple(parts) == PARTS
    assert min(parts.values()) > 0
    before = detector_of("n", 5, CPU).state_dict()
    for name, tensor in plain.train_state.detector.state_dict().items():
        assert torch.equal(tensor, observed.train_state.detector.state_dict()[name]), name
    moved = [name for name, tensor in plain.train_state.detector.state_dict().items() if not tensor.equal(before[name])]
    assert len(moved) > len(before) / 2
    assert observed.train_state.ema.updates == plain.train_state.ema.updates == 2


@pytest.mark.parametrize("objects", [0, 8])
def test_targets_lie_inside_their_images(objects: int) -> None:
    rows = targets_for(4, objects, 10, CPU).rows
    assert rows.shape == (4 * objects, 6)
    assert rows[:, 0].long().bincount(minlength=4).tolist() == [objects] * 4
    low, high = rows[:, 2:4] - rows[:, 4:] / 2, rows[:, 2:4] + rows[:, 4:] / 2
    assert bool((low >= -1e-6).all())
    assert bool((high <= 1 + 1e-6).all())
    assert bool(((rows[:, 1] >= 0) & (rows[:, 1] < 10)).all())


@pytest.mark.slow
def test_the_peak_of_a_step_holds_at_least_gradients_and_momentum() -> None:
    peak = in_fresh_process(peak_of_step, CPU, 2, 320, False)
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    num_parameters = sum(parameter.numel() for parameter in detector_of("n", 80, CPU).parameters())
    assert 2 * 4 * num_parameters < peak < 1_000_000_000
