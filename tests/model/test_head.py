from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anchorite.errors import InputError
from anchorite.model import Head, MatchedCellLogits

CHANNELS, SIZES = (8, 16, 24), ((6, 5), (3, 4), (1, 1))
BATCH, NUM_ANCHORS = 2, 3


def make_head(num_classes: int, dtype: torch.dtype = torch.float64) -> Head:
    torch.manual_seed(0)
    return Head(CHANNELS, num_classes, NUM_ANCHORS, (8, 16, 32)).to(dtype)


def make_features(dtype: torch.dtype = torch.float64, channels_last: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features = []
    for channels, (height, width) in zip(CHANNELS, SIZES, strict=True):
        values = torch.randn(BATCH, channels, height, width, generator=generator, dtype=torch.float64)
        features.append(values.to(dtype).contiguous(memory_format=memory_format).requires_grad_())
    return features


def make_places(level: int, count: int, seed: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + level)
    height, width = SIZES[level]
    image, anchor, row, column = (
        torch.randint(0, high, (count,), generator=generator) for high in (BATCH, NUM_ANCHORS, height, width)
    )
    return image, anchor, row, column


def stand_in_loss(objectness: list[Tensor], at: list[Tensor]) -> Tensor:
    """Weights every answer at random, and bends it, so that each logit has a gradient of its own."""
    generator = torch.Generator().manual_seed(3)
    total = objectness[0].new_zeros((), dtype=torch.float64)
    for answer in (*objectness, *at):
        weights = torch.randn(answer.shape, generator=generator, dtype=torch.float64)
        total = total + (weights * answer.double().tanh()).sum()
    return total


def loss_and_gradients(head: Head, features: list[Tensor], places: list, dense: bool) -> list[Tensor]:
    if dense:
        logits = head.dense(features)
        objectness = [level[:, :, 4] for level in logits]
        at = [
            level[image, anchor, :, row, column]
            for level, (image, anchor, row, column) in zip(logits, places, strict=True)
        ]
    else:
        matched = head.matched(features)
        objectness = [level.objectness() for level in matched]
        at = [level.at(*where) for level, where in zip(matched, places, strict=True)]
    loss = stand_in_loss(objectness, at)
    return [loss.detach(), *torch.autograd.grad(loss, [*features, *head.parameters()])]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("num_classes", [1, 7, 80])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_matched_cells_give_the_loss_and_gradients_of_dense_logits(
    num_classes: int, dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    head, places = make_head(num_classes, dtype), [make_places(level, 200) for level in range(3)]
    expected = loss_and_gradients(head, make_features(dtype, channels_last), places, dense=True)
    found = loss_and_gradients(head, make_features(dtype, channels_last), places, dense=False)
    assert len(found) == 1 + 3 + 6
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < tolerance


def test_answers_are_the_logits_of_each_place_one_by_one() -> None:
    head, features = make_head(2), make_features()
    level = 1
    logits, matched = head.dense(features)[level], head.matched(features)[level]
    torch.testing.assert_close(matched.objectness(), logits[:, :, 4], rtol=1e-12, atol=1e-12)
    for image in range(BATCH):
        for anchor in range(NUM_ANCHORS):
            for row in range(SIZES[level][0]):
                for column in range(SIZES[level][1]):
                    place = [torch.tensor([index]) for index in (image, anchor, row, column)]
                    expected = logits[image, anchor, :, row, column]
                    torch.testing.assert_close(matched.at(*place)[0], expected, rtol=1e-12, atol=1e-12)


def test_channels_are_ordered_by_anchor_then_logit() -> None:
    head = make_head(2)
    weight, bias = head.predictors["p3"].weight, head.predictors["p3"].bias
    with torch.no_grad():
        weight.zero_()
        bias.copy_(torch.arange(21.0))
    logits = head.dense(make_features())[0]
    assert torch.equal(logits[1, :, :, 2, 3], torch.arange(21.0, dtype=torch.float64).view(3, 7))
    matched = head.matched(make_features())[0]
    assert torch.equal(matched.objectness()[0, :, 0, 0], torch.tensor([4.0, 11.0, 18.0], dtype=torch.float64))


def test_dense_logits_are_views_of_the_convolution() -> None:
    for channels_last in (True, False):
        for logits in make_head(4).dense(make_features(channels_last=channels_last)):
            assert logits._base is not None
            assert logits._base.shape[1] == NUM_ANCHORS * 9


def test_no_places_at_all_are_answered_and_leave_no_gradient() -> None:
    head, features = make_head(3), make_features()
    answers = [level.at(*make_places(i, 0)) for i, level in enumerate(head.matched(features))]
    assert [tuple(answer.shape) for answer in answers] == [(0, 8)] * 3
    gradients = torch.autograd.grad(sum(answer.sum() for answer in answers), [*features, *head.parameters()])
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_crowded_cells_are_the_same_bits_every_time_on_two_threads(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 64, 20, 20, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    head = Head([64], 4, 3, [8]).to(dtype)
    # 6000 places in 40 cells: 150 additions into each, whose order shows.
    image, anchor = (torch.randint(0, high, (6000,), generator=generator) for high in (4, 3))
    row, column = torch.randint(0, 2, (6000,), generator=generator), torch.randint(0, 5, (6000,), generator=generator)
    outward = torch.randn(6000, 9, generator=generator).to(dtype)
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(15):
            feature = values.clone(memory_format=torch.preserve_format).requires_grad_()
            (matched,) = head.matched([feature])
            runs.append(
                torch.autograd.grad(matched.at(image, anchor, row, column), [feature, *head.parameters()], outward)
            )
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_under_autocast_answers_are_bfloat16_and_gradients_float32() -> None:
    head, features = make_head(5, torch.float32), make_features(torch.float32)
    places = [make_places(level, 100) for level in range(3)]
    exact = loss_and_gradients(head, features, places, dense=True)
    with torch.autocast("cpu", torch.bfloat16):
        (first, *_) = head.matched(features)
        assert first.objectness().dtype == torch.bfloat16
        assert first.at(*places[0]).dtype == torch.bfloat16
        found = loss_and_gradients(head, features, places, dense=False)
    for a, b in zip(found[1:], exact[1:], strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < 0.03


def test_biases_start_at_the_expected_rates() -> None:
    head = make_head(80)
    for (channels, stride), predictor in zip(((8, 8), (16, 16), (24, 32)), head.predictors.values(), strict=True):
        bias, bound = predictor.bias.detach().view(3, 85), channels**-0.5
        assert (bias[:, :4].abs() <= bound).all()
        assert ((bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs() <= bound).all()
        assert ((bias[:, 5:] - math.log(0.6 / 79.00001)).abs() <= bound).all()
        assert bias.unique().numel() > 200


def test_known_class_frequencies_set_the_class_biases() -> None:
    head = make_head(3)
    head.start_biases([10, 30, 0])
    bias = head.predictors["p5"].bias.detach().view(3, 8)
    # The class never seen counts as the rarest seen one.
    expected = torch.tensor([10 / 40, 30 / 40, 10 / 40], dtype=torch.float64).log()
    assert ((bias[:, 5:] - expected).abs() <= 24**-0.5).all()
    before = head.predictors["p5"].bias.detach().clone()
    head.start_biases([10, 30, 0])
    after = head.predictors["p5"].bias.detach()
    assert ((after - before).abs() <= 2 * 24**-0.5).all(), "starting again must not add up"


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [1, -1, 3], [0, 0, 0], [1, math.nan, 2], [1, math.inf, 2]])
def test_unusable_class_frequencies_are_refused(wrong: list[float]) -> None:
    with pytest.raises(InputError, match="class frequencies need 3 finite numbers"):
        make_head(3).start_biases(wrong)


def test_the_matched_head_never_holds_the_dense_map() -> None:
    feature = torch.randn(2, 8, 64, 64, requires_grad=True)
    weight, bias = torch.randn(3 * 1005, 8, 1, 1, requires_grad=True), torch.randn(3 * 1005, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            results = result if isinstance(result, tuple | list) else (result,)
            largest = max([largest, *(tensor.numel() for tensor in results if isinstance(tensor, Tensor))])
            return result

    matched = MatchedCellLogits(feature, weight, bias, 3)
    index = torch.zeros(5, dtype=torch.int64)
    with Watch():
        (matched.objectness().sum() + matched.at(index, index, index, index).sum()).backward()
    assert largest <= feature.numel()
