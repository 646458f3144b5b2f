"""What a training sample will show, settled before any pixel is touched; and the painter of it with OpenCV.

The same plan can be painted elsewhere (see `device_render`): all that is random, and every box, is in the plan.

Legend: S side of the canvas in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.affine import Warp, draw_warped
from anchorite.data.colour import Jitter, jitter_colours
from anchorite.data.letterbox import FILL
from anchorite.data.store import ImageStore


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


def paint(plan: SamplePlan, store: ImageStore, canvas: NDArray[np.uint8]) -> None:
    """Paint a planned sample over all of `canvas` (S, S, 3)."""
    _paint_layer(plan.layers[0], store, canvas)
    for layer in plan.layers[1:]:
        second = np.empty_like(canvas)
        _paint_layer(layer, store, second)
        cv2.addWeighted(canvas, plan.share, second, 1.0 - plan.share, 0.0, dst=canvas)
    jitter_colours(canvas, plan.jitter)


def _paint_layer(tiles: tuple[Tile, ...], store: ImageStore, canvas: NDArray[np.uint8]) -> None:
    canvas.fill(FILL)
    for tile in tiles:
        draw_warped(store.image(tile.source), tile.warp, canvas)
