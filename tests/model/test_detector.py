from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from anchorite.anchors import AnchorSet
from anchorite.devices import deterministic_algorithms
from anchorite.errors import InputError
from anchorite.model import Detector, default_anchors, fold_batch_norm
from anchorite.model.blocks import BatchNorm, doubled, largest_around
from tests.model.oracle import randomise_norms
from tests.small import short_networks


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector("n", 3, default_anchors("n"))


def test_batch_norms_have_the_epsilon_and_momentum_of_the_spec(detector: Detector) -> None:
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    # Of the original's 57 blocks, the 8 pairs that open a cross-stage block are one each.
    assert len(norms) == 57 - 8
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_running_statistics_keep_97_percent(detector: Detector) -> None:
    block = Detector("n", 3, default_anchors("n")).train().backbone.stem
    images = torch.rand(2, 3, 32, 32)
    block(images)
    mean = block.convolution(images).mean((0, 2, 3))
    assert isinstance(block.norm, nn.BatchNorm2d)
    torch.testing.assert_close(block.norm.running_mean, 0.03 * mean)


def test_normalisation_is_torchs_but_for_the_count_of_batches() -> None:
    norm, theirs = BatchNorm(5, momentum=0.03), nn.BatchNorm2d(5, momentum=0.03)
    theirs(torch.rand(2, 5, 3, 3))
    norm.load_state_dict(theirs.state_dict())  # strictly: all names are the same
    images = torch.rand(2, 5, 3, 3)
    for mode in (True, False):
        assert torch.equal(norm.train(mode)(images), theirs.train(mode)(images))
    assert torch.equal(norm.running_mean, theirs.running_mean)
    assert torch.equal(norm.running_var, theirs.running_var)
    assert (int(norm.num_batches_tracked), int(theirs.num_batches_tracked)) == (1, 2)


def test_the_deterministic_maximum_has_torchs_gradient() -> None:
    # Whole numbers: many equal ones, and sums that are exact in any order.
    x, weights = torch.randint(0, 4, (2, 3, 6, 9)).double(), torch.randint(1, 9, (2, 3, 6, 9))
    found = []
    for wanted in (False, True):
        one = x.clone().requires_grad_()
        with deterministic_algorithms(wanted):
            y = largest_around(one)
            (y * weights).sum().backward()
            found += [y.detach(), one.grad]
    assert "_LargestAround" in type(y.grad_fn).__name__
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_attributes_tell_what_it_was_made_of(detector: Detector) -> None:
    assert (detector.size, detector.num_classes, detector.strides) == ("n", 3, (8, 16, 32))
    assert detector.anchors == AnchorSet.coco_p5()


@pytest.mark.parametrize(("height", "width"), [(100, 128), (128, 33), (0, 64)])
def test_images_that_do_not_fit_are_refused_with_size_and_remedy(detector: Detector, height: int, width: int) -> None:
    with pytest.raises(InputError, match=rf"{height} x {width} pixels .* multiples of 32, such as \d+ x \d+"):
        detector(torch.zeros(1, 3, height, width))


def test_the_remedy_is_the_next_size_that_fits(detector: Detector) -> None:
    with pytest.raises(InputError, match="such as 128 x 64"):
        detector(torch.zeros(1, 3, 100, 64))
    detector.eval()(torch.zeros(1, 3, 128, 64))


def test_anchors_for_other_strides_are_refused() -> None:
    with pytest.raises(InputError, match=r"strides \(8, 16, 32, 64\), the anchors are for \(8, 16, 32\)"):
        Detector("s6", 80, AnchorSet.coco_p5())


def test_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1 class, got 0"):
        Detector("n", 0, AnchorSet.coco_p5())


def test_any_number_of_anchors_fits() -> None:
    anchors = AnchorSet.from_rows([[10, 10], [30, 30], [90, 90]], (8, 16, 32))
    with torch.device("meta"):
        outputs = Detector("n", 1, anchors)(torch.empty(1, 3, 64, 64))
    assert [tuple(logits.shape) for logits in outputs] == [(1, 1, 6, 8, 8), (1, 1, 6, 4, 4), (1, 1, 6, 2, 2)]


def test_memory_format_stays_channels_last_and_changes_no_value(detector: Detector) -> None:
    plain = Detector("n", 3, default_anchors("n")).double().train()
    last = Detector("n", 3, default_anchors("n")).double().to(memory_format=torch.channels_last).train()
    last.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    features = last.features(images.contiguous(memory_format=torch.channels_last))
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in features)
    for a, b in zip(features, plain.features(images), strict=True):
        torch.testing.assert_close(a.contiguous(), b, rtol=1e-9, atol=1e-9)


def test_images_of_a_batch_do_not_touch_each_other_in_evaluation(detector: Detector) -> None:
    copy = fold_batch_norm(detector).double()
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        together = copy(images)
        alone = [copy(images[i : i + 1]) for i in range(3)]
    for level, logits in enumerate(together):
        torch.testing.assert_close(logits, torch.cat([each[level] for each in alone]), rtol=1e-9, atol=1e-9)


def test_recording_gradients_changes_no_value(detector: Detector) -> None:
    # Without recording, activations work in place: no tensor that is still needed may be overwritten.
    copy = Detector("n", 3, default_anchors("n")).double().eval()
    randomise_norms(copy, seed=5)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    before = images.clone()
    recorded = copy(images)
    with torch.no_grad():
        for a, b in zip(copy(images), recorded, strict=True):
            assert torch.equal(a, b)
    assert torch.equal(images, before)


def test_doubling_and_its_gradient_are_those_of_interpolation() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(doubled(x), functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.autograd.gradcheck(doubled, (x,))
    gradient = torch.randn(2, 6, 8, 10, dtype=torch.float64)[:, 1:4]
    (ours,) = torch.autograd.grad(doubled(x), x, gradient)
    (theirs,) = torch.autograd.grad(functional.interpolate(x, scale_factor=2.0), x, gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_folding_keeps_the_outputs_and_the_original() -> None:
    torch.manual_seed(2)
    original = Detector("n6", 4, default_anchors("n6")).double().train()
    randomise_norms(original, seed=3)
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    folded = fold_batch_norm(original)
    assert original.training
    assert not folded.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.rand(2, 3, 64, 128, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(folded(images), original.eval()(images), strict=True):
            assert (a - b).abs().max() < 1e-9 * b.abs().max()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in state.items())
    again = fold_batch_norm(folded)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), folded.parameters(), strict=True))


def test_a_folded_copy_shares_neither_tensors_nor_hooks_with_the_original() -> None:
    original = Detector("n", 2, default_anchors("n")).train()
    calls: list[str] = []
    original.neck.register_forward_hook(lambda *_: calls.append("original"))
    folded = fold_batch_norm(original)
    before = [parameter.clone() for parameter in folded.parameters()]
    with torch.no_grad():
        for tensor in original.state_dict().values():
            tensor.fill_(7)
    folded(torch.rand(1, 3, 64, 64))
    assert calls == []
    assert original.training
    assert original.neck.training
    assert all(torch.equal(a, b) for a, b in zip(folded.parameters(), before, strict=True))
    folded.neck.register_forward_hook(lambda *_: calls.append("folded"))
    original(torch.rand(2, 3, 64, 64))
    assert calls == ["original"]


def test_folding_in_float32_adds_no_more_than_rounding() -> None:
    original = Detector("n", 4, default_anchors("n")).eval()
    randomise_norms(original, seed=4)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(fold_batch_norm(original)(images), original(images), strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()


@pytest.mark.slow
def test_it_compiles_whole_and_for_several_sizes() -> None:
    torch.manual_seed(0)
    with short_networks():
        detector = Detector("n", 2, default_anchors("n")).double().train()
    for name in ("stage2", "stage3", "stage4"):  # stage 5 has as many sorts of layer in half the time
        detector.backbone.get_submodule(name).cross_stage = nn.Identity()
    places = [torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0]), torch.tensor([1, 0, 0]), torch.tensor([0, 1, 1])]

    def answers(images: torch.Tensor) -> torch.Tensor:
        matched = detector.head.matched(detector.features(images))
        return sum((level.objectness().square().mean() + level.at(*places).square().mean()) for level in matched)

    compiled = torch.compile(answers, fullgraph=True, dynamic=True, backend="eager")
    for height, width in ((64, 96), (128, 64)):
        images = torch.rand(2, 3, height, width, dtype=torch.float64)
        results = []
        for function in (answers, compiled):
            detector.zero_grad()
            value = function(images)
            value.backward()
            gradient = detector.backbone.stem.convolution.weight.grad
            assert gradient is not None
            results.append((value.detach(), gradient.clone()))
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
