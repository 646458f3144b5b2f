"""Greedy non-maximum suppression, exact and deterministic, of a whole batch at once in plain tensor operations.

The rule: go through the boxes from the best score to the worst (equal scores: lower index first) and keep a box unless
it overlaps one already kept, of the same class, by more than the limit. All images advance together, a block of their
best undecided boxes at a time: decide the block, remove what its survivors suppress, close the gaps, until nothing is
undecided or enough boxes are kept.

An overlap is compared with the limit in float32 where rounding cannot change the answer, else in float64, which
is rare. Products of float32 sides are exact in float64, so CPU and CUDA decide alike. For float32, boxes of different
classes are shifted apart, on a square lattice that keeps the shifts short; their rounding is part of the error bound.

Legend: B images, P boxes of an image, best first, R of them undecided, M boxes of a block, S survivors.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from anchorite.boxes.iou import pairwise_overlap_xyxy
from anchorite.errors import accepts_iou_limit

# Pairs within the blocks of a batch: on the CPU arithmetic costs, on an accelerator each round trip does.
_DECIDED_CPU, _DECIDED_ACCELERATOR = 2**16, 2**24
# Boxes compared ahead of the block: those far behind are often never reached, because enough are kept before.
_WINDOW_CPU, _WINDOW_ACCELERATOR = 1024, 8192
# Pairs compared at a time: on the CPU what stays in its cache.
_PAIRS_CPU, _PAIRS_ACCELERATOR = 2**19, 2**26
_ROUNDS_AT_A_TIME = 2
# Error bound of a side in float32, as a share of the largest coordinate: two shifted edges are rounded, then the area.
_ROUNDING = 2.0**-20
_LATTICE_COLUMNS = 32


@accepts_iou_limit
def nms(
    boxes_xyxy: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    class_ids: Int[Tensor, " N"] | None,
    iou_threshold: float,
    max_detections: int,
) -> Int64[Tensor, " kept"]:
    """Indices (int64) of the boxes to keep, best first, at most `max_detections`.

    boxes_xyxy: (N, 4) in any unit; scores: (N,); class_ids: (N,), boxes of different classes never suppress each other,
    or None for one pool. A box goes when its IoU with a kept one is above `iou_threshold` (equal stays).
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    classes = None if class_ids is None else class_ids[order][None]
    counts = torch.full((1,), len(order), device=order.device)
    return order[nms_of_sorted(boxes_xyxy[order][None], classes, counts, iou_threshold, max_detections)[0]]


def nms_of_sorted(
    boxes_xyxy: Float[Tensor, "B P 4"],
    class_ids: Int[Tensor, "B P"] | None,
    counts: Int64[Tensor, " B"],
    iou_threshold: float,
    max_detections: int,
) -> Bool[Tensor, "B P"]:
    """Which boxes to keep (B, P) of each image, by the rule of `nms`.

    boxes_xyxy: (B, P, 4), the first counts (B,) of each image in falling order of score, the others never looked at.
    """
    num_images, num_boxes = boxes_xyxy.shape[:2]
    # One more column, written to where there is no box.
    kept = torch.zeros(num_images, num_boxes + 1, dtype=torch.bool, device=boxes_xyxy.device)
    is_cpu = kept.device.type == "cpu"
    block_length = math.isqrt((_DECIDED_CPU if is_cpu else _DECIDED_ACCELERATOR) // max(1, num_images)) + 1
    field = _Field(boxes_xyxy, class_ids, iou_threshold)
    columns = torch.arange(num_boxes, device=kept.device).expand(num_images, -1)
    window = _WINDOW_CPU if is_cpu else _WINDOW_ACCELERATOR
    for start in range(0, num_boxes, window):
        ahead = columns[:, start : start + window]
        is_open = (ahead < counts[:, None]) & (kept[:, :-1].sum(dim=1, keepdim=True) < max_detections)
        if not is_open.any():
            break
        if start:
            is_open &= ~field.removed(_packed(columns[:, :start], kept[:, :start])[0], ahead)
        _decide(field, *_packed(ahead, is_open), kept, max_detections, block_length)
    kept = kept[:, :-1]
    return kept & (kept.cumsum(dim=1) <= max_detections)


def _decide(
    field: _Field, columns: Tensor, counts: Tensor, kept: Tensor, max_detections: int, block_length: int
) -> None:
    """Write into `kept` (B, P + 1) which of the first counts (B,) of `columns` (B, R) stay; no others suppress them."""
    while columns.shape[1]:
        ranks = torch.arange(columns.shape[1], device=kept.device)
        block, rest = columns[:, :block_length], columns[:, block_length:]
        is_survivor = field.survivors(block) & (ranks[:block_length] < counts[:, None])
        kept.scatter_(1, torch.where(is_survivor, block, kept.shape[1] - 1), True)
        if not rest.shape[1]:
            return
        is_open = (ranks[block_length:] < counts[:, None]) & (kept[:, :-1].sum(dim=1, keepdim=True) < max_detections)
        is_open &= ~field.removed(_packed(block, is_survivor)[0], rest)
        columns, counts = _packed(rest, is_open)


class _Field:
    """The boxes (B, P, 4) of a batch, prepared for comparing them; `columns` (B, N) below choose among each image's."""

    def __init__(self, boxes_xyxy: Tensor, class_ids: Tensor | None, iou_threshold: float) -> None:
        self.exact_xyxy = boxes_xyxy.double()
        self.class_ids = (
            boxes_xyxy.new_zeros(boxes_xyxy.shape[:2], dtype=torch.int64) if class_ids is None else class_ids
        )
        self.iou_threshold = iou_threshold

    def survivors(self, columns: Tensor) -> Tensor:
        """Which boxes survive the better ones among the same columns, (B, M)."""
        image = torch.arange(len(columns), device=columns.device)[:, None]
        rank = torch.arange(columns.shape[1], device=columns.device)
        return _greedy(self._suppresses(image, columns, columns) & (rank[:, None] < rank))

    def removed(self, survivors: Tensor, rest: Tensor) -> Tensor:
        """Whether each of the columns `rest` (B, R) overlaps one of `survivors` (B, S) too much."""
        over, under = (self._sketch.gather(2, columns.expand(6, -1, -1)) for columns in (survivors, rest))
        step = max(1, self._scratch.shape[1] // max(1, rest.numel()))
        most = torch.full(rest.shape, -torch.inf, device=rest.device)
        for start in range(0, survivors.shape[1], step):
            part = slice(start, start + step)
            most = torch.maximum(most, _largest_excess(over[:, :, part], under, self._scratch))
        excess, error = most - under[4], under[5]
        result = excess > error
        image, rank = (~result & ~(excess < -error)).nonzero(as_tuple=True)
        if image.numel():
            columns = rest[image, rank][:, None]
            result[image, rank] = self._suppresses(image[:, None], survivors[image], columns)[:, :, 0].any(dim=1)
        return result

    def _suppresses(self, image: Tensor, over: Tensor, under: Tensor) -> Tensor:
        """Whether each column of `over` (B, N) overlaps each of `under` (B, M) too much, in float64: (B, N, M).

        image: (B, 1), whose columns they are.
        """
        overlap, union = pairwise_overlap_xyxy(self.exact_xyxy[image, over], self.exact_xyxy[image, under])
        same_class = self.class_ids[image, over][:, :, None] == self.class_ids[image, under][:, None]
        return (overlap > union.mul_(self.iou_threshold)) & same_class

    @cached_property
    def _scratch(self) -> Tensor:
        pairs = _PAIRS_CPU if self.exact_xyxy.device.type == "cpu" else _PAIRS_ACCELERATOR
        return self.exact_xyxy.new_empty((3, max(pairs, self.exact_xyxy[..., 0].numel())), dtype=torch.float32)

    @cached_property
    def _sketch(self) -> Tensor:
        """The boxes for comparing them in float32, (6, B, P): right, -left, bottom, -top, share and error.

        IoU > t where an intersection exceeds t / (1 + t) of both areas together: each box has its share of that. error:
        bound of the rounding error; an overlap nearer to the limit than this is compared again in float64.
        """
        left, top, right, bottom = self.exact_xyxy.unbind(dim=2)
        width, height = (right - left).clamp(min=0), (bottom - top).clamp(min=0)
        area = width * height
        extent = self.exact_xyxy.amax() - self.exact_xyxy.amin() + 1
        row = self.class_ids.div(_LATTICE_COLUMNS, rounding_mode="floor")
        shift_x, shift_y = (self.class_ids - _LATTICE_COLUMNS * row) * extent, row * extent
        left, top, right, bottom = left + shift_x, top + shift_y, right + shift_x, bottom + shift_y
        edges = torch.stack([right, -left, bottom, -top])
        side_error = _ROUNDING * edges.abs().amax()
        error = side_error * (width + height + side_error)
        share = area * (self.iou_threshold / (1 + self.iou_threshold))
        return torch.cat([edges, share[None], error[None]]).float()


def _largest_excess(over: Tensor, under: Tensor, scratch: Tensor) -> Tensor:
    """The most by which an overlap exceeds the better box's share of the limit, for each box of `under`: (B, R).

    over, under: sketches (6, B, S) and (6, B, R); scratch: (3, at least B * S * R).
    """
    right, left, bottom, top, share, _ = over[..., None].unbind()
    under_right, under_left, under_bottom, under_top, _, _ = under[:, :, None].unbind()
    shape = (*over.shape[1:], under.shape[2])
    width, height, other = (buffer[: math.prod(shape)].view(shape) for buffer in scratch)
    torch.minimum(right, under_right, out=width).add_(torch.minimum(left, under_left, out=other))
    torch.minimum(bottom, under_bottom, out=height).add_(torch.minimum(top, under_top, out=other)).clamp_(min=0)
    return torch.addcmul(-share, width, height, out=width).amax(dim=1)


def _packed(columns: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen of `columns` (B, R), in their order and without gaps, and how many an image has, (B,).

    Shorter rows are filled up with column 0, the best box of an image: it is always kept, so comparing others with it
    once more changes nothing.
    """
    ends = chosen.cumsum(dim=1)
    counts = ends[:, -1]
    length = int(counts.max())
    packed = columns.new_zeros(len(columns), length + 1)
    # Whatever is not chosen goes into the last column, which is dropped.
    packed.scatter_(1, torch.where(chosen, ends - 1, length), columns)
    return packed[:, :length], counts


def _greedy(suppresses: Tensor) -> Tensor:
    """Which boxes (B, M) survive, given which boxes each would suppress (B, M, M), better before worse.

    Repeats "a box survives if no survivor in front suppresses it", starting from all. Box 1 is right at once, box i
    at the latest in round i, so the fixed point is the greedy answer; real images take about as many rounds as their
    longest chain of overlaps, a handful.
    """
    suppresses = suppresses.view(torch.uint8)  # amax of bytes is several times faster than any of bools
    survives = 1 - suppresses.amax(dim=1)
    while True:
        for _ in range(_ROUNDS_AT_A_TIME):
            before, survives = survives, 1 - (suppresses * survives[:, :, None]).amax(dim=1)
        if torch.equal(survives, before):
            return survives.bool()
