"""Views of an image that a network gets to see (windows, scales, mirror images) and how their detections are merged.

Window coordinates are continuous: pixel i covers i..i+1. Legend: H, W height and width in pixels, N boxes, K classes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from anchorite.boxes import clip_xyxy, join_windows, nms, weighted_boxes_fusion
from anchorite.data.images import LetterboxTransform, letterbox, letterbox_transform, rectangular_size
from anchorite.errors import InputError
from anchorite.predict.postprocess import PredictConfig, RawDetections
from anchorite.reading import shorten

ImageSize = int | tuple[int, int]
"""Size of a network input in pixels: the longer side of the smallest input that holds the image, or (height, width) of
the input of every image."""

Window = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels of the image."""

AUGMENTED = ((1.0, False), (1.0, True), (0.83, False), (1.17, True))
"""Scale of the network input and whether it is mirrored, for each view of test-time augmentation: four, for about four
times the work of one."""

_ROUNDING = 1e-9
# In pixels of the network input: half a cell of the finest level, so about as far as the edge of a box is uncertain.
_SEAM_PX = 4
_NUM_SHOWN = 5
# Above the .55 of the paper: better for views of one detector, by measurement (docs/how-to/large-images.md).
_FUSION_IOU_THRESHOLD = 0.65


class ViewConfig(BaseModel):
    """Which views of each image the networks see.

    tile: side in pixels of square windows, None for none; tile_overlap: least share of it that neighbours have in
    common; whole_image: the image as a whole as well; augment: test-time augmentation, mirrored and at other scales.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    tile: int | None = Field(default=None, ge=1)
    tile_overlap: float = Field(default=0.2, ge=0, lt=1)
    whole_image: bool = True
    augment: bool = False

    def windows(self, height: int, width: int) -> list[Window]:
        """The views of an image of (height, width) pixels: the whole image where that is one, then windows by rows.

        They are the fewest that cover it with at least the given overlap; the last of a row or column is moved inside,
        and has more. Along an axis on which the image is shorter, they are as long as the image. Whatever is at most
        tile_overlap * tile pixels wide and high lies whole in some window.
        """
        whole = (0, 0, width, height)
        if self.tile is None:
            return [whole]
        rows, columns = (_spans(length, self.tile, self.tile_overlap) for length in (height, width))
        tiles = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
        return [whole, *tiles] if self.whole_image and tiles != [whole] else tiles


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    step = max(1, side - math.ceil(overlap * side - _ROUNDING))
    count = math.ceil((length - side) / step) + 1
    starts = (min(number * step, length - side) for number in range(count))
    return [(start, start + side) for start in starts]


@dataclass(frozen=True)
class TTAView:
    """A view of test-time augmentation: size of the network input, and whether it is mirrored."""

    image_size: ImageSize
    is_mirrored: bool = False

    def __str__(self) -> str:
        return f"{size_in_words(self.image_size)} px{' mirrored' * self.is_mirrored}"


def tta_views(image_size: ImageSize, stride: int, augment: bool, is_fixed: bool = False) -> list[TTAView]:
    """The views of every window, the plain one first, each once.

    augment: mirrored and at other scales, sides in multiples of `stride`; is_fixed: the network takes `image_size`
    alone, so that it is mirrored at most.
    """
    if not augment:
        return [TTAView(image_size)]

    def scaled(scale: float) -> ImageSize:
        if isinstance(image_size, int):
            return max(1, round(scale * image_size / stride)) * stride
        height, width = (max(1, round(scale * side / stride)) * stride for side in image_size)
        return height, width

    others = [TTAView(scaled(scale), mirrored) for scale, mirrored in AUGMENTED if scale != 1 and not is_fixed]
    return list(dict.fromkeys([TTAView(image_size), TTAView(image_size, True), *others]))


def checked_image_size(given: Any, stride: int, of_what: str) -> ImageSize:
    """A whole number or a pair of them as the size of a network input; InputError, with the remedy, for anything else.

    A pair is taken as it is, so its sides must be multiples of the coarsest stride, `stride`; of_what: whose it is.
    """
    try:
        sides = [operator.index(side) for side in (given if isinstance(given, list | tuple) else [given])]
    except TypeError:
        sides = []
    if len(sides) not in (1, 2) or isinstance(given, bool):
        raise InputError(
            f"image size {shorten(given)}: give a whole number, the longer side, or a pair (height, width)"
        )
    size: ImageSize = sides[0] if len(sides) == 1 else (sides[0], sides[1])
    if min(sides) < stride:
        raise InputError(
            f"image size {size_in_words(size)}: must be at least {stride}, the coarsest stride of {of_what}"
        )
    if len(sides) == 2 and any(side % stride for side in sides):
        above = " x ".join(str(-(-side // stride) * stride) for side in sides)
        raise InputError(
            f"image size {size_in_words(size)}: height and width must be multiples of {stride}, the coarsest stride of "
            f"{of_what}; take {above}"
        )
    return size


def size_in_words(image_size: ImageSize) -> str:
    """The longer side, or height and width."""
    return str(image_size) if isinstance(image_size, int) else f"{image_size[0]} x {image_size[1]}"


@dataclass(frozen=True)
class ViewTransform:
    """From a window of an image to a network input and back; transform: from pixels of the window, not mirrored."""

    window: Window
    transform: LetterboxTransform
    is_mirrored: bool

    @classmethod
    def of(cls, window: Window, view: TTAView, stride: int) -> ViewTransform:
        """Of a window in the input of the view's size: of a longer side, the smallest in multiples of `stride`."""
        left, top, right, bottom = window
        window_hw = (bottom - top, right - left)
        size = view.image_size
        size_hw = rectangular_size(window_hw, size, stride) if isinstance(size, int) else size
        return cls(window, letterbox_transform(window_hw, size_hw), view.is_mirrored)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network input."""
        return self.transform.size_hw

    def network_input(self, image: UInt8[NDArray[np.uint8], "H W 3"]) -> NDArray[np.uint8]:
        """The window of an image, letterboxed to `size_hw` and perhaps mirrored."""
        left, top, right, bottom = self.window
        canvas, _ = letterbox(image[top:bottom, left:right], self.size_hw)
        return canvas[:, ::-1] if self.is_mirrored else canvas

    def to_image(self, boxes_xyxy: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
        """Boxes (N, 4) in network pixels as boxes in pixels of the image, clipped to the window."""
        if self.is_mirrored:
            width = self.size_hw[1]
            boxes_xyxy = boxes_xyxy[:, [2, 1, 0, 3]] * boxes_xyxy.new_tensor([-1, 1, -1, 1])
            boxes_xyxy = boxes_xyxy + boxes_xyxy.new_tensor([width, 0, width, 0])
        left, top, right, bottom = self.window
        in_window = clip_xyxy(self.transform.to_source(boxes_xyxy), right - left, bottom - top)
        return in_window + in_window.new_tensor([left, top, left, top]) if left or top else in_window

    def to_window_px(self, network_px: float) -> float:
        """A length of the network input in pixels of the image, along the axis that was shrunk most."""
        return network_px / min(self.transform.scale_xy)


def merge_windows(
    results: Sequence[tuple[ViewTransform, RawDetections]], size_hw: tuple[int, int], config: PredictConfig
) -> RawDetections:
    """The detections of all windows of an image of (H, W) pixels, in its pixels, no object twice.

    results: what was found in each window, in pixels of the network input. Boxes wholly in the padding of an input are
    dropped.
    """
    results = sorted(results, key=lambda result: result[0].window)
    boxes = [view.to_image(raw.boxes_xyxy) for view, raw in results]
    boxes_xyxy, scores = torch.cat(boxes), torch.cat([raw.scores for _, raw in results])
    class_ids = torch.cat([raw.class_ids for _, raw in results])
    kept = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1).nonzero()[:, 0]
    if len(results) > 1:
        is_cut = torch.cat(
            [
                touches_seam(part, view.window, size_hw, view.to_window_px(_SEAM_PX))
                for part, (view, _) in zip(boxes, results, strict=True)
            ]
        )
        limit = max(config.max_candidates, 2 * config.max_detections)  # who asks for more has a large image
        best = torch.sort(scores[kept], descending=True, stable=True).indices[:limit]
        kept = kept[best.sort().values]
        pools = None if config.class_agnostic else class_ids[kept]
        limits = (config.iou_threshold, config.max_detections)
        kept = kept[join_windows(boxes_xyxy[kept], scores[kept], pools, is_cut[kept], *limits)]
    return RawDetections(boxes_xyxy[kept], scores[kept], class_ids[kept])


def touches_seam(
    boxes_xyxy: Float[Tensor, "N 4"], window: Window, size_hw: tuple[int, int], margin: float
) -> Bool[Tensor, " N"]:
    """Which boxes (N, 4), in pixels of the image, end within `margin` pixels of an inner edge of their window.

    size_hw: height and width of the image; edges that are the image's own are no inner ones.
    """
    (height, width), (left, top, right, bottom) = size_hw, window
    lows = [edge + margin if edge > 0 else -math.inf for edge in (left, top)]
    highs = [edge - margin if edge < end else math.inf for edge, end in ((right, width), (bottom, height))]
    touching = (boxes_xyxy[:, :2] <= boxes_xyxy.new_tensor(lows)) | (boxes_xyxy[:, 2:] >= boxes_xyxy.new_tensor(highs))
    return touching.any(dim=1)


def fuse_channels(channels: Sequence[RawDetections], weights: Tensor, config: PredictConfig) -> RawDetections:
    """The detections of several networks or views of one image, fused; weights: how much each counts."""
    channel_ids = torch.cat([torch.full((len(one),), number) for number, one in enumerate(channels)])
    boxes_xyxy, scores = torch.cat([one.boxes_xyxy for one in channels]), torch.cat([one.scores for one in channels])
    class_ids = torch.cat([one.class_ids for one in channels])
    found = weighted_boxes_fusion(boxes_xyxy, scores, class_ids, channel_ids, weights, _FUSION_IOU_THRESHOLD)
    kept = (found.scores >= config.confidence).nonzero()[:, 0]
    if config.class_agnostic:
        limits = (config.iou_threshold, config.max_detections)
        kept = kept[nms(found.boxes_xyxy[kept], found.scores[kept], None, *limits)]
    kept = kept[: config.max_detections]
    return RawDetections(found.boxes_xyxy[kept].float(), found.scores[kept].float(), found.class_ids[kept])


def class_map(ours: tuple[str, ...], theirs: tuple[str, ...]) -> Tensor:
    """Our number, (K,) int64, of each of their classes; InputError naming what differs where the names do."""
    if ours == theirs:
        return torch.arange(len(ours))
    numbers = {name: number for number, name in enumerate(ours)}
    missing, unknown = set(ours) - set(theirs), set(theirs) - numbers.keys()
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(unknown)} besides"] * bool(unknown)
        raise InputError(
            f"cannot be fused with the first detector: {' and '.join(parts)}; the order may differ, the names may not"
        )
    if len(numbers) < len(ours) or len(theirs) != len(ours):
        raise InputError("cannot be fused: a class name occurs twice; then the order must be the same as well")
    return torch.tensor([numbers[name] for name in theirs])


def _listed(names: set[str]) -> str:
    shown = ", ".join(shorten(name) for name in sorted(names)[:_NUM_SHOWN])
    return shown + (f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else "")
