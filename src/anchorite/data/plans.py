"""What a training sample will show, settled before any pixel is touched; and the painter of it with OpenCV.

The same plan can be painted elsewhere (see `device_render`): all that is random, and every box, is in the plan.

Legend: S side of the canvas in pixels.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.affine import Warp, draw_warped
from anchorite.data.colour import NO_JITTER, Jitter, jitter_colours
from anchorite.data.letterbox import FILL
from anchorite.data.scratch import Scratch


class Images(Protocol):
    """Decoded images by the index of their record."""

    def image(self, index: int) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB."""
        ...


class Tile(NamedTuple):
    """One image on a canvas: source, the index of its record, and how it gets there."""

    source: int
    warp: Warp


class SamplePlan(NamedTuple):
    """A sample before it is painted.

    size: canvas side S. layers: the canvases to blend (two with mixup), each its tiles in the order of drawing. share:
    the weight of the first layer when there are two. jitter: of the colours, once all is blended.
    """

    size: int
    layers: tuple[tuple[Tile, ...], ...]
    share: float
    jitter: Jitter


def paint(plan: SamplePlan, store: Images, canvas: NDArray[np.uint8], scratch: Scratch | None = None) -> None:
    """Paint a planned sample over all of `canvas` (S, S, 3); `scratch` serves from sample to sample."""
    scratch = scratch or Scratch()
    # What is worked on stays in the processor's cache; the canvas, new in every batch, is written once.
    draft = canvas if plan.jitter == NO_JITTER else scratch.array("draft", *canvas.shape)
    _paint_layer(plan.layers[0], store, draft, scratch)
    for layer in plan.layers[1:]:
        second = scratch.array("layer", *canvas.shape)
        _paint_layer(layer, store, second, scratch)
        cv2.addWeighted(draft, plan.share, second, 1.0 - plan.share, 0.0, dst=draft)
    jitter_colours(draft, plan.jitter, canvas, scratch)


def _paint_layer(tiles: tuple[Tile, ...], store: Images, canvas: NDArray[np.uint8], scratch: Scratch) -> None:
    canvas.fill(FILL)
    for tile in tiles:
        draw_warped(store.image(tile.source), tile.warp, canvas, scratch)
