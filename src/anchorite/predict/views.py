"""Views: a window of an image as the network gets to see it, scaled and perhaps mirrored, and the way back.

Legend: H, W height and width in pixels, N boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from anchorite.boxes import clip_xyxy
from anchorite.data.images import LetterboxTransform, letterbox, letterbox_transform, rectangular_size
from anchorite.predict.tiles import Window

AUGMENTED = ((1.0, False), (1.0, True), (0.83, False), (1.17, True))
"""Scale of the network input and whether it is mirrored, for each look of test-time augmentation: four, for about four
times the work of one."""


@dataclass(frozen=True)
class Look:
    """One way of looking: long side of the network input in pixels, and whether left and right are exchanged."""

    long_side: int
    is_mirrored: bool = False


def looks(long_side: int, stride: int, augment: bool, is_fixed: bool = False) -> list[Look]:
    """The looks at every window, the plain one first, each once.

    augment: mirrored and at other scales, sides in multiples of `stride`; is_fixed: the network takes `long_side`
    alone, so that it is mirrored at most.
    """
    if not augment:
        return [Look(long_side)]
    scaled = (Look(_multiple(scale * long_side, stride), mirrored) for scale, mirrored in AUGMENTED if scale != 1)
    found = [Look(long_side), Look(long_side, True), *(() if is_fixed else scaled)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class View:
    """A window of an image, looked at; transform: from pixels of the window to those of the network, not mirrored."""

    window: Window
    transform: LetterboxTransform
    is_mirrored: bool

    @classmethod
    def of(cls, window: Window, look: Look, stride: int) -> View:
        """The view of a window in the smallest input, in multiples of `stride`, that holds it."""
        left, top, right, bottom = window
        window_hw = (bottom - top, right - left)
        size_hw = rectangular_size(window_hw, look.long_side, stride)
        return cls(window, letterbox_transform(window_hw, size_hw), look.is_mirrored)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network input."""
        return self.transform.size_hw

    def drawn(self, image: UInt8[NDArray[np.uint8], "H W 3"]) -> NDArray[np.uint8]:
        """The network input, of `size_hw`, made of the image that the window is one of."""
        left, top, right, bottom = self.window
        canvas, _ = letterbox(image[top:bottom, left:right], self.size_hw)
        # Mirrored at last: so the way back is the same whatever the padding.
        return canvas[:, ::-1] if self.is_mirrored else canvas

    def to_image(self, boxes_xyxy: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
        """Boxes (N, 4) in network pixels as boxes in pixels of the image, cut to the window: no more was seen."""
        if self.is_mirrored:
            width = self.size_hw[1]
            boxes_xyxy = boxes_xyxy[:, [2, 1, 0, 3]] * boxes_xyxy.new_tensor([-1, 1, -1, 1])
            boxes_xyxy = boxes_xyxy + boxes_xyxy.new_tensor([width, 0, width, 0])
        left, top, right, bottom = self.window
        in_window = clip_xyxy(self.transform.to_source(boxes_xyxy), right - left, bottom - top)
        return in_window + boxes_xyxy.new_tensor([left, top, left, top])

    def to_window_px(self, network_px: float) -> float:
        """A length of the network input in pixels of the image, along the axis that was shrunk most."""
        return network_px / min(self.transform.scale_xy)


def _multiple(length: float, stride: int) -> int:
    return max(1, round(length / stride)) * stride
