"""The IoU family of matched pairs: values by hand, against the slow loop, gradients, degenerate boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from anchorite.boxes import paired_iou
from tests import oracle

KINDS = ("iou", "giou", "diou", "ciou")


def random_pairs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = (np.concatenate([rng.uniform(-2, 2, (count, 2)), np.exp(rng.normal(0, 1, (count, 2)))], 1) for _ in "ab")
    return a, b


def ciou_with_held_alpha(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    shape = 4 / math.pi**2 * (torch.atan(b[..., 2] / b[..., 3]) - torch.atan(a[..., 2] / a[..., 3])) ** 2
    return paired_iou(a, b, "diou") - shape * alpha


def test_values_worked_by_hand_for_shifted_squares() -> None:
    # Two 2 x 2 squares, one shifted right by 1: overlap 1 x 2 = 2, union 4 + 4 - 2 = 6, IoU = 1/3.
    # They lie in a 3 x 2 rectangle: hull 6, nothing of it unused, GIoU = 1/3. Squared diagonal 9 + 4 = 13, squared
    # distance of the centres 1: DIoU = 1/3 - 1/13. Equal shapes: CIoU = DIoU.
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]).double(), torch.tensor([1.0, 0.0, 2.0, 2.0]).double()
    expected = {"iou": 1 / 3, "giou": 1 / 3, "diou": 1 / 3 - 1 / 13, "ciou": 1 / 3 - 1 / 13}
    for kind, value in expected.items():
        assert paired_iou(a, b, kind).item() == pytest.approx(value, abs=1e-7)


def test_values_worked_by_hand_for_apart_boxes() -> None:
    # Unit squares at (0, 0) and (3, 4): no overlap; hull 4 x 5 = 20, union 2: GIoU = -18/20.
    # Squared distance 25, squared diagonal 16 + 25 = 41.
    a, b = torch.tensor([0.0, 0.0, 1.0, 1.0]).double(), torch.tensor([3.0, 4.0, 1.0, 1.0]).double()
    expected = {"iou": 0.0, "giou": -0.9, "diou": -25 / 41, "ciou": -25 / 41}
    for kind, value in expected.items():
        assert paired_iou(a, b, kind).item() == pytest.approx(value, abs=1e-7)


def test_ciou_worked_by_hand_for_another_shape() -> None:
    # 2 x 2 in the middle of 4 x 2: overlap 4, union 8, IoU 0.5, equal centres.
    # v = 4/pi^2 * (atan 2 - atan 1)^2 = 0.405284735 * (1.107148718 - 0.785398163)^2 = 0.405284735 * 0.103523419
    #   = 0.041956461; alpha = v / (v - 0.5 + 1) = 0.041956461 / 0.541956461 = 0.077416663.
    # CIoU = 0.5 - 0.041956461 * 0.077416663 = 0.5 - 0.003248129 = 0.496751871.
    a, b = torch.tensor([1.0, 1.0, 2.0, 2.0]).double(), torch.tensor([1.0, 1.0, 4.0, 2.0]).double()
    assert paired_iou(a, b).item() == pytest.approx(0.496751871, abs=2e-8)


def test_eps_is_where_the_page_has_it() -> None:
    # Two points: union 0 + eps, hull 0 + eps, diagonal 0 + eps; a large eps makes its place visible.
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]).double(), torch.tensor([1.0, 0.0, 4.0, 2.0]).double()
    for kind in KINDS:
        expected = oracle.iou(a.tolist(), b.tolist(), kind, eps=0.5)
        assert paired_iou(a, b, kind, eps=0.5).item() == pytest.approx(expected, rel=1e-14)
    # IoU: overlap 1..-1 = 2 wide, 2 high -> 4; union 4 + 8 - 4 + 0.5.
    assert paired_iou(a, b, "iou", eps=0.5).item() == pytest.approx(4 / 8.5, rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_slow_loop(kind: str) -> None:
    a, b = random_pairs(0, 400)
    b[:50, :2] = a[:50, :2]  # equal centres
    b[25:75, 2:] = a[25:75, 2:]  # equal sides
    found = paired_iou(torch.from_numpy(a), torch.from_numpy(b), kind).numpy()
    expected = [oracle.iou(one, other, kind) for one, other in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_is_symmetric_bounded_and_free_of_unit_and_place(kind: str) -> None:
    a, b = (torch.from_numpy(boxes) for boxes in random_pairs(1, 300))
    value = paired_iou(a, b, kind, eps=0.0)
    torch.testing.assert_close(value, paired_iou(b, a, kind, eps=0.0), rtol=0, atol=1e-14)
    torch.testing.assert_close(value, paired_iou(a * 7, b * 7, kind, eps=0.0), rtol=0, atol=1e-13)
    shift = torch.tensor([3.0, -5.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(value, paired_iou(a + shift, b + shift, kind, eps=0.0), rtol=0, atol=1e-12)
    assert (value <= 1).all()
    assert (value >= (0 if kind == "iou" else -2)).all()
    torch.testing.assert_close(paired_iou(a, a, kind, eps=1e-14), torch.ones_like(value), rtol=0, atol=1e-9)


def test_keeps_leading_shape_and_type() -> None:
    a, b = (torch.from_numpy(boxes).float().view(3, 2, 4) for boxes in random_pairs(2, 6))
    assert paired_iou(a, b).shape == (3, 2)
    assert paired_iou(a, b).dtype == torch.float32
    assert paired_iou(a[:0], b[:0]).shape == (0, 2)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_gradcheck(kind: str) -> None:
    a, b = (torch.from_numpy(boxes).requires_grad_() for boxes in random_pairs(3, 20))
    assert torch.autograd.gradcheck(lambda one, other: paired_iou(one, other, kind), (a, b))


def test_gradients_of_ciou_are_those_with_alpha_held() -> None:
    a, b = (torch.from_numpy(boxes).requires_grad_() for boxes in random_pairs(4, 20))
    weights = [oracle.aspect_weight(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    alpha = torch.tensor(weights, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one, other: ciou_with_held_alpha(one, other, alpha), (a, b))
    expected = torch.autograd.grad(ciou_with_held_alpha(a, b, alpha).sum(), (a, b))
    found = torch.autograd.grad(paired_iou(a, b, "ciou").sum(), (a, b))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * other.abs().max().item())


DEGENERATE = [
    [0.5, 0.5, 0.0, 0.0],
    [0.5, 0.5, 0.0, 1.0],
    [0.5, 0.5, 1.0, 0.0],
    [0.5, 0.5, 1e-45, 1e-45],
    [0.5, 0.5, 1e-38, 1.0],
    [0.5, 0.5, 1e-20, 1e-20],
    [0.5, 0.5, 3e-23, 2.0],
    [0.5, 0.5, 1e3, 1e-30],
    [0.5, 0.5, 1e6, 1e6],
    [0.5, 0.5, 1.0, 1.0],
    [1.5, 0.5, 1.0, 1.0],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_boxes_have_finite_value_and_gradient(kind: str, dtype: torch.dtype) -> None:
    boxes = torch.tensor(DEGENERATE, dtype=torch.float64).to(dtype)
    a = boxes[:, None].expand(-1, len(boxes), -1).clone().requires_grad_()
    b = boxes[None].expand(len(boxes), -1, -1).clone().requires_grad_()
    value = paired_iou(a, b, kind)
    assert torch.isfinite(value).all()
    for gradient in torch.autograd.grad(value.sum(), (a, b)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("dtype", "scales"), [(torch.float32, (1e-10, 1e-22, 1e-28)), (torch.float64, (1e-12, 1e-160, 1e-290))]
)
def test_shape_of_a_vanishing_box_still_counts(dtype: torch.dtype, scales: tuple[float, ...]) -> None:
    # The angle depends on w / h alone: a box of 1 x 3 however small has the CIoU, and the same pull on the logarithm
    # of its sides. Squares of such sides underflow.
    target = torch.tensor([0.0, 0.0, 2.0, 1.0], dtype=dtype)
    v = 4 / math.pi**2 * (math.atan2(2, 1) - math.atan2(1, 3)) ** 2
    alpha = v / (v + 1 + 1e-7)
    # d angle / d log w = w h / (w^2 + h^2) = 0.3, and d CIoU = 2 * alpha * 4/pi^2 * (difference of the angles) * that.
    pull = 2 * alpha * 4 / math.pi**2 * (math.atan2(2, 1) - math.atan2(1, 3)) * 0.3
    for scale in scales:
        box = torch.tensor([0.0, 0.0, scale, 3 * scale], dtype=dtype, requires_grad=True)
        value = paired_iou(box, target)
        assert value.item() == pytest.approx(-v * alpha, abs=1e-6)
        (gradient,) = torch.autograd.grad(value, box)
        assert (gradient[2] * scale).item() == pytest.approx(pull, rel=1e-5)
        assert (gradient[3] * 3 * scale).item() == pytest.approx(-pull, rel=1e-5)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-38), (torch.float64, 1e-306)])
def test_value_holds_down_to_the_smallest_numbers(dtype: torch.dtype, scale: float) -> None:
    box, target = torch.tensor([0.0, 0.0, scale, 3 * scale], dtype=dtype), torch.tensor([0.0, 0.0, 2.0, 1.0])
    v = 4 / math.pi**2 * (math.atan2(2, 1) - math.atan2(1, 3)) ** 2
    assert paired_iou(box, target.to(dtype)).item() == pytest.approx(-v * v / (v + 1 + 1e-7), abs=1e-6)


def test_boxes_equal_but_for_rounding_are_finite_in_float32() -> None:
    # Corners are rounded, and so the intersection can come out larger than both areas: an IoU above 1.
    a = torch.tensor([[0.46875, 0.6875, 1.6874998807907104, 1.6249998807907104]])
    assert paired_iou(a, torch.tensor([[0.46875, 0.6875, 1.6875, 1.625]])).isfinite().all()
    generator = torch.Generator().manual_seed(0)
    centre, sides = (
        torch.rand(200_000, 2, generator=generator) * 3,
        torch.rand(200_000, 2, generator=generator) * 2 + 0.5,
    )
    goals = torch.cat([centre, sides], dim=1)
    nudged = (goals * (1 + torch.randint(-3, 4, goals.shape, generator=generator) * 6e-8)).requires_grad_()
    values = paired_iou(nudged, goals)
    assert values.isfinite().all()
    assert ((values > 1 - 1e-4) & (values < 1 + 1e-5)).all()
    values.sum().backward()
    assert nudged.grad is not None
    assert nudged.grad.isfinite().all()
